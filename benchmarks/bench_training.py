"""Photos a second of `milseg.fit` as `milseg train` runs it, against a plain torch loop; 1.5 times is wanted.

    python benchmarks/bench_training.py [--quick]

MobileNetV2 at stride 16 with random weights, 21 classes, JPEG photos of 500 x 375 (a quarter of them upright) made
here, batches of 16 at a longest side of 320, the rule and settings of `--recipe best`. Twice: with the layers up to
stride 8 frozen, as that recipe has it, and with all layers trained. The rival is what one would write first: a
`DataLoader` with two worker processes (Pillow, resize, normalise), the network in float32 as it was built, the same
rule's loss, the same SGD, clipping and frozen layers, the system's allocator as it is. Both see the same batches,
mirrored alike, in the same order; dropout, which depends on the memory's layout, is off in both. The rival pads a batch
to its largest sides, ours pads wide and tall photos apart, and what lies beyond a photo's border reaches it.
So the largest difference of their losses is printed twice: as timed, and from a rival that pads as ours does, untimed.

Each side runs in a process of its own, in turn, anew in every round. Time is from the end of the second step to the end
of the last, reading included. Processor time has our reading in it, and not that of the rival's workers. One JSON line
last; `ratio` is the one with frozen layers.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Times, fit_batch_norm, load, made_photo, ratios
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from milseg.config import TrainConfig
from milseg.data.bags import Bag, BagSet
from milseg.data.image import MEAN, STD
from milseg.data.loader import load_batch
from milseg.data.sampler import batch_at, generator
from milseg.models.backbones import build_fcn
from milseg.models.fcn import FCN, freeze
from milseg.rules import find_rule
from milseg.training.optimizer import learning_rate_at, parameter_groups
from milseg.training.recipes import POOLED
from milseg.training.trainer import fit
from milseg.utils.devices import keep_freed_memory
from milseg.utils.parallel import processors

WANTED = 1.5
BACKBONE, CLASSES, STRIDE = "mobilenet_v2", 21, 16
WARM = 2  # steps before the clock starts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=8, help="timed ones of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of both sides; by default one for each processor")
    parser.add_argument(
        "--frozen", type=int, nargs="+", default=(8, 0), help="strides up to which layers are frozen"
    )
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="fewer steps, one round")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS, metavar=("SIDE", "FOLDER", "FROZEN"))
    options = parser.parse_args()
    if options.side:
        name, folder, frozen = options.side
        print(json.dumps(SIDES[name](Path(folder), int(frozen), WARM + options.steps, options.threads)))
        return
    steps, rounds = (3, 1) if options.quick else (options.steps, options.rounds)
    threads = options.threads or processors()
    result: dict[str, Any] = {"benchmark": "training", "ratio": None, "threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), options.photos)
        for frozen in options.frozen:
            row = compare(Path(folder), frozen, steps, rounds, threads)
            result[f"frozen_{frozen}"] = row
            result["ratio"] = result["ratio"] or row["ratio"]
    print(json.dumps({**result, "load": load()}))


def compare(folder: Path, frozen: int, steps: int, rounds: int, threads: int) -> dict[str, float]:
    """Both sides, one after the other, `rounds` times."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in SIDES}
    for number in range(rounds):
        for name, rows in found.items():
            if name == "alike" and number:
                continue
            words = [
                "--steps",
                str(steps),
                "--threads",
                str(threads),
                "--side",
                name,
                str(folder),
                str(frozen),
            ]
            done = subprocess.run(
                [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True
            )
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    times = {
        name: [Times(*row["seconds"]) for row in rows] for name, rows in found.items() if name != "alike"
    }
    rates = {
        name: steps * POOLED.batch_size / statistics.median(time.wall for time in rows)
        for name, rows in times.items()
    }
    used = {
        name: 1000 * statistics.median(time.processor for time in rows) / (steps * POOLED.batch_size)
        for name, rows in times.items()
    }
    wall, processor = ratios(times["plain"], times["ours"])
    losses = {name: np.array(rows[0]["losses"]) for name, rows in found.items()}
    apart, alike = (float(np.abs(losses["ours"] - losses[other]).max()) for other in ("plain", "alike"))
    print(
        f"frozen to stride {frozen}: ours {rates['ours']:.2f} photos/s ({used['ours']:.0f} ms of processor a photo), "
        f"plain {rates['plain']:.2f} ({used['plain']:.0f} ms); losses of {WARM + steps} steps, "
        f"{losses['ours'][0]:.3f} to {losses['ours'][-1]:.3f}, differ by {apart:.1e} at most, by {alike:.1e} from a "
        f"rival that pads alike\n"
        f"ratio {wall:.2f} on the wall, {processor:.2f} by processor time (median of {rounds} pairs of {steps} steps; "
        f"wanted: at least {WANTED}); load {load()}",
        flush=True,
    )
    return {
        "ratio": round(wall, 3),
        "ratio_processor": round(processor, 3),
        "photos_per_s": round(rates["ours"], 2),
        "plain_photos_per_s": round(rates["plain"], 2),
        "processor_ms": round(used["ours"], 1),
        "plain_processor_ms": round(used["plain"], 1),
        "loss_difference": apart,
        "loss_difference_padded_alike": alike,
    }


def write_photos(folder: Path, count: int) -> None:
    for number in range(count):
        sides = (500, 375) if number % 4 == 0 else (375, 500)
        Image.fromarray(made_photo(number, *sides)).save(folder / f"{number:05}.jpg", quality=90)


def bags_of(folder: Path) -> BagSet:
    """The photos with one to three tags each, by their number."""
    bags = []
    for path in sorted(folder.glob("*.jpg")):
        random = np.random.default_rng(int(path.stem))
        shown = {0, *random.choice(np.arange(1, CLASSES), random.integers(1, 4), replace=False).tolist()}
        tags = tuple(int(number in shown) for number in range(CLASSES))
        bags.append(Bag(name=path.stem, photo=path, tags=tags))
    names = ("background", *(f"class{number}" for number in range(1, CLASSES)))
    return BagSet(name="made here", classes=names, bags=tuple(bags), tags_from="made here")


def settings(frozen: int, steps: int) -> TrainConfig:
    return replace(POOLED, max_steps=steps, longest_side=320, frozen_stride=frozen, dropout=False)


def network(folder: Path) -> FCN:
    """Random weights, batch norm as the photos have it, and score rows that tell places apart; alike on both sides."""
    model = build_fcn(BACKBONE, CLASSES, output_stride=STRIDE)
    images = load_batch(bags_of(folder), range(1, 4), longest_side=320).images
    fit_batch_norm(model, images)
    model.replace_score_layer(CLASSES, std=0.1, generator=torch.Generator().manual_seed(0))
    return model


class Clock:
    """Seconds from the end of step WARM on, on the wall and on the processor, of this process."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.marks: list[tuple[float, float]] = []

    def tick(self, step: int, loss: float) -> None:
        self.losses.append(loss)
        self.marks.append((time.perf_counter(), time.process_time()))

    def record(self) -> dict[str, Any]:
        (wall, processor), (ended, used) = self.marks[WARM - 1], self.marks[-1]
        return {"seconds": [ended - wall, used - processor], "losses": self.losses}


def ours(folder: Path, frozen: int, steps: int, threads: int) -> dict[str, Any]:
    """As the command does: memory kept, then fit."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    clock = Clock()
    fit(network(folder), bags_of(folder), settings(frozen, steps), progress=False, on_step=clock.tick)
    return clock.record()


class Photos(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A photo by (its number, whether to mirror it): float32 [3, h, w] and its tags."""

    def __init__(self, bags: BagSet) -> None:
        self.files = [(str(bag.photo), bag.tags) for bag in bags.bags]

    def __getitem__(self, item: tuple[int, bool]) -> tuple[torch.Tensor, torch.Tensor]:
        number, mirrored = item
        path, tags = self.files[number]
        with Image.open(path) as image:
            photo = image.convert("RGB")
        scale = 320 / max(photo.size)
        photo = photo.resize(
            (round(photo.width * scale), round(photo.height * scale)), Image.Resampling.BILINEAR
        )
        values = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 255
        values = (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        return values.flip(2) if mirrored else values, torch.tensor(tags)


def stack(
    samples: list[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Photos padded to the largest height and width, their own sizes, their tags."""
    sizes = torch.tensor([image.shape[1:] for image, _ in samples])
    images = torch.zeros(len(samples), 3, *sizes.amax(dim=0).tolist())
    for row, (image, _) in zip(images, samples, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return images, sizes, torch.stack([tags for _, tags in samples])


def mirrored_batch(step: int, count: int, config: TrainConfig) -> list[tuple[int, bool]]:
    """The bags of a step, each with whether ours mirrors it."""
    numbers = batch_at(step, count, config.batch_size, seed=config.seed)
    draws = [
        bool(torch.randint(0, 2, (), generator=generator(config.seed, position, stream=1)))
        for position in range(step * config.batch_size, (step + 1) * config.batch_size)
    ]
    return list(zip(numbers, draws, strict=True))


def plain(folder: Path, frozen: int, steps: int, threads: int, *, apart: bool = False) -> dict[str, Any]:
    """The loop one would write first; `apart` pads wide and tall photos apart."""
    torch.set_num_threads(threads)
    bags, config = bags_of(folder), settings(frozen, steps)
    model = network(folder).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    freeze(model, frozen)
    rule = find_rule(config.rule).rule
    groups = parameter_groups(model, config)
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimiser = torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum)
    order = [mirrored_batch(step, len(bags), config) for step in range(steps)]
    clock = Clock()
    loader = DataLoader(Photos(bags), batch_sampler=order, num_workers=2, collate_fn=stack)
    for step, (images, sizes, tags) in enumerate(loader):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(step, config) * group["factor"]
        optimiser.zero_grad()
        tall, loss = sizes[:, 0] > sizes[:, 1], torch.tensor(0.0)
        for rows in [tall, ~tall] if apart and 0 < tall.sum() < len(tall) else [torch.ones_like(tall)]:
            height, width = sizes[rows].amax(dim=0).tolist()
            scores = model(images[rows, :, :height, :width] if apart else images)
            valid = model.valid_mask(sizes[rows], (scores.shape[2], scores.shape[3]))
            loss = loss + rule(scores, tags[rows], valid).sum() / len(images)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, config.max_gradient or math.inf)
        optimiser.step()
        clock.tick(step, float(loss.detach()))
    return clock.record()


Side = Callable[[Path, int, int, int], dict[str, Any]]
SIDES: dict[str, Side] = {"ours": ours, "plain": plain, "alike": partial(plain, apart=True)}


if __name__ == "__main__":
    main()
