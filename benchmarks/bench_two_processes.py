"""Two gloo processes against one with the same batch: the same losses and masks, and the time of a step.

    python benchmarks/bench_two_processes.py [--steps 30] [--repeats 3]

Each side is started anew, in turn, on the same cores: one process with a thread a core, and two with half as many each.
The small network learns scenes of digits; MobileNetV2 (random weights, no download) sees them at four times their size.
Time is that of a step on the wall without the first two, all included. Prints the largest difference of the loss at any
step, of a score after training, and the share of pixels whose class differs. Its last line is one JSON object; "ratio"
is the time of two processes over that of one, of the small network.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from milseg.config import TrainConfig
from milseg.data.bags import BagSet, load_photo
from milseg.data.sources.digits import read_digits
from milseg.distributed import collectives
from milseg.inference.segmenter import Segmenter, unnamed_spec
from milseg.models.backbones import build_fcn
from milseg.training.trainer import fit
from milseg.utils.parallel import processors

CONFIG = TrainConfig(batch_size=16, learning_rate=1e-2, schedule="linear", augment="flip", max_gradient=10.0)
SHOWN = 8  # scenes whose masks are compared
# network -> how much larger its scenes are, share of the steps
NETWORKS = {"tiny": (1, 1.0), "mobilenet_v2": (4, 0.4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--train", nargs=2, metavar=("NETWORK", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.train[0], Path(options.train[1]), options.steps)
        return
    cores = processors()
    result: dict[str, object] = {"benchmark": "two_processes", "cores": cores, "ratio": None}
    for network, (_, share) in NETWORKS.items():
        result[network] = row = compare(network, max(4, round(share * options.steps)), options.repeats, cores)
        if network == "tiny":
            result["ratio"] = row["ratio"]
    print(json.dumps(result))


def compare(network: str, steps: int, repeats: int, cores: int) -> dict[str, float]:
    """Both sides, one after the other, `repeats` times."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repeats):
            for count in (1, 2):
                out = Path(folder) / f"{network}-{count}-{number}"
                start(network, out, steps, count, max(1, cores // count))
                seconds[count].append(float(np.load(out.with_suffix(".npz"))["seconds"]))
        one, two = (np.load(Path(folder) / f"{network}-{count}-0.npz") for count in (1, 2))
        loss = float(np.abs(one["losses"] - two["losses"]).max())
        score = float(np.abs(one["scores"] - two["scores"]).max())
        pixels = float((one["masks"] != two["masks"]).mean())
    times = {count: statistics.median(found) for count, found in seconds.items()}
    ratio = statistics.median(b / a for a, b in zip(seconds[1], seconds[2], strict=True))
    print(
        f"{network}: a step of {CONFIG.batch_size} photos {times[1]:.3f} s in one process of {cores} threads, "
        f"{times[2]:.3f} s in two of {max(1, cores // 2)}; ratio {ratio:.2f} (median of {repeats} pairs). After "
        f"{steps} steps the losses differ by {loss:.1e} at most, the scores by {score:.1e}, "
        f"{100 * pixels:.3f} % of the pixels"
    )
    return {
        "one_s": times[1],
        "two_s": times[2],
        "ratio": round(ratio, 3),
        "loss_difference": loss,
        "score_difference": score,
        "pixels_differing": pixels,
    }


def start(network: str, out: Path, steps: int, count: int, threads: int) -> None:
    """So many processes, by the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--steps", str(steps), "--train", network, str(out)]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            command, env={**os.environ, **shared, "RANK": str(number), "OMP_NUM_THREADS": str(threads)}
        )
        for number in range(count)
    ]
    statuses = [process.wait() for process in processes]
    if any(statuses):
        raise SystemExit(f"{network} in {count} processes failed")


def train(network: str, out: Path, steps: int) -> None:
    """One process of a side: train, and the first one saves what came of it."""
    factor, _ = NETWORKS[network]
    bags = enlarged(read_digits("train", 4 * CONFIG.batch_size), factor)
    model = build_fcn(network, len(bags.classes), seed=0)
    ticks: list[float] = []
    with collectives.process_group("cpu") as device:
        history = fit(
            model,
            bags,
            replace(CONFIG, max_steps=steps),
            device=device,
            progress=False,
            on_step=lambda step, loss: ticks.append(time.perf_counter()),
        )
        if not collectives.is_main():
            return
    photos = [load_photo(bag) for bag in bags.bags[:SHOWN]]
    segmenter = Segmenter(model, unnamed_spec(model))
    scores = [segmenter.score_map(photo).scores.numpy() for photo in photos]
    np.savez(
        out.with_suffix(".npz"),
        seconds=statistics.median(b - a for a, b in pairwise(ticks[1:])),
        losses=[record["loss"] for record in history],
        scores=np.stack(scores),
        masks=np.stack([segmenter.segment(photo).mask for photo in photos]),
    )


def enlarged(bags: BagSet, factor: int) -> BagSet:
    """The scenes with each pixel `factor` pixels wide and high."""
    larger = [
        replace(bag, photo=load_photo(bag).repeat(factor, 0).repeat(factor, 1), mask=None)
        for bag in bags.bags
    ]
    return replace(bags, bags=tuple(larger))


if __name__ == "__main__":
    main()
