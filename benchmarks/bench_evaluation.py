"""Counting masks against the truth by `milseg.evaluation`, against torchmetrics' confusion matrix; 5 times is wanted.

    pip install "milseg[bench]"; python benchmarks/bench_evaluation.py [--quick]

Masks of 375 x 500 with 21 classes and void pixels: blobs, as a network's masks are, not noise. Ours is
`Evaluation.update`, mask by mask, its checks of every value included. The rival is `MulticlassConfusionMatrix` with
`ignore_index=255` and without its own checks; one or all threads and 1, 4 or 16 masks an update, whichever a trial
shows to be quickest. Both start from uint8 arrays in memory. Checked first: the same matrix. One JSON line last.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
import torch
from common import HEIGHT, WIDTH, in_turn, load, median_wall, ratios, timed
from numpy.typing import NDArray
from PIL import Image

from milseg.data.image import UInt8
from milseg.evaluation.confusion import Evaluation
from milseg.utils.devices import keep_freed_memory
from milseg.utils.parallel import processors

CLASSES = 21
VOID_SHARE = 0.05
WANTED = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--masks", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a quarter of the masks, fewer rounds")
    options = parser.parse_args()
    try:
        import torchmetrics  # noqa: F401
    except ImportError:
        sys.exit('torchmetrics is not installed: pip install "milseg[bench]"')
    count = options.masks // 4 if options.quick else options.masks
    keep_freed_memory()
    pairs = [made_masks(number) for number in range(count)]
    few = pairs[: max(1, count // 8)]
    assert (ours(pairs) == theirs(pairs, 1, 1)).all(), "the two sides count differently"

    tried = {
        (threads, batch): min(timed(lambda: theirs(few, threads, batch)).wall for _ in range(3))  # noqa: B023
        for threads in sorted({1, processors()})
        for batch in (1, 4, 16)
    }
    threads, batch = min(tried, key=lambda key: tried[key])
    times = in_turn(
        {"ours": lambda: ours(pairs), "torchmetrics": lambda: theirs(pairs, threads, batch)},
        3 if options.quick else options.rounds,
    )
    wall, processor = ratios(times["torchmetrics"], times["ours"])
    rates = {name: count / median_wall(found) for name, found in times.items()}
    print(
        f"ours: {rates['ours']:,.0f} masks/s; torchmetrics: {rates['torchmetrics']:,.0f} masks/s ({threads} threads, "
        f"{batch} masks an update); the same matrix\n"
        f"ratio {wall:.2f} on the wall, {processor:.2f} by processor time (median of {len(times['ours'])} pairs; "
        f"wanted: at least {WANTED}); load {load()}"
    )
    print(
        json.dumps(
            {
                "benchmark": "evaluation",
                "ratio": round(wall, 3),
                "ratio_processor": round(processor, 3),
                "masks_per_s": round(rates["ours"], 1),
                "torchmetrics_masks_per_s": round(rates["torchmetrics"], 1),
                "processor_ms": round(1000 * min(time.processor for time in times["ours"]) / count, 3),
                "masks": count,
                "threads": threads,
                "batch": batch,
                "load": load(),
            }
        )
    )


def made_masks(number: int) -> tuple[UInt8, UInt8]:
    """A prediction and its truth, uint8 [HEIGHT, WIDTH]: a few classes in blobs, shifted against each other."""
    random = np.random.default_rng(number)
    shown = np.concatenate([[0], random.choice(np.arange(1, CLASSES), 3, replace=False)])
    fine = [blobs(random) for _ in shown]
    prediction = shown[np.argmax(fine, axis=0)].astype(np.uint8)
    truth = np.roll(prediction, (5, 9), axis=(0, 1))
    edge = blobs(random)
    truth[edge > np.quantile(edge, 1 - VOID_SHARE)] = 255
    return prediction, truth


def blobs(random: np.random.Generator) -> NDArray[np.float32]:
    coarse = random.random((9, 12)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def ours(pairs: list[tuple[UInt8, UInt8]]) -> NDArray[np.int64]:
    evaluation = Evaluation([f"class{number}" for number in range(CLASSES)])
    for prediction, truth in pairs:
        evaluation.update(prediction, truth)
    return evaluation.matrix[:, :CLASSES]


def theirs(pairs: list[tuple[UInt8, UInt8]], threads: int, batch: int) -> NDArray[np.int64]:
    from torchmetrics.classification import MulticlassConfusionMatrix

    torch.set_num_threads(threads)
    metric = MulticlassConfusionMatrix(CLASSES, ignore_index=255, validate_args=False)
    for first in range(0, len(pairs), batch):
        predictions, truths = zip(*pairs[first : first + batch], strict=True)
        metric.update(stacked(predictions), stacked(truths))
    return np.asarray(metric.compute().numpy(), dtype=np.int64)


def stacked(masks: tuple[UInt8, ...]) -> torch.Tensor:
    return torch.from_numpy(masks[0] if len(masks) == 1 else np.stack(masks))


if __name__ == "__main__":
    main()
