"""Cost of a mask against the number of classes, from 2 to 1,000: a straight line within 1.2 times is wanted.

    python benchmarks/bench_tag_count.py

Timed is all that depends on the classes: the score layer on MobileNetV2's 1280 features at 15 x 20 places, each class's
highest probability and the confidence, bilinear interpolation to 375 x 500 pixels and the top class. The network below
the score layer costs the same for any number and is left out. Scores are independent random numbers, so that each class
can win somewhere and none is left out early, which real maps allow. `ratio` is the largest factor between a time and
the line fixed + each * classes fitted to all of them (by relative error). One thread, processor time, counts in turn.
Masks hold numbers up to 255; above, only the time is of interest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
import torch

from milseg.inference.score_map import ScoreMap
from milseg.utils.devices import keep_freed_memory

COUNTS = (2, 5, 10, 20, 50, 100, 200, 500, 1000)
FEATURES, PLACES, SIZE = 1280, (15, 20), (375, 500)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    features = torch.randn(1, FEATURES, *PLACES).to(memory_format=torch.channels_last)
    layers = {count: torch.nn.Conv2d(FEATURES, count, 1) for count in COUNTS}
    for layer in layers.values():
        torch.nn.init.normal_(layer.weight, std=0.1)
    times: dict[int, list[float]] = {count: [] for count in COUNTS}
    for turn in range(options.rounds + 1):
        for count, layer in layers.items():
            repeats = max(1, 100 // count)
            began = time.process_time()
            for _ in range(repeats):
                once(layer, features)
            if turn:  # the first round loads and allocates
                times[count].append((time.process_time() - began) / repeats)
    medians = {count: statistics.median(values) for count, values in times.items()}
    seconds, counts = np.array(list(medians.values())), np.array(COUNTS, dtype=float)
    design = np.stack([np.ones(len(counts)), counts], axis=1) / seconds[:, None]
    (fixed, each), *_ = np.linalg.lstsq(design, np.ones(len(counts)), rcond=None)
    line = fixed + each * counts
    factors = np.maximum(seconds / line, line / seconds)
    for count, value, expected in zip(COUNTS, seconds, line, strict=True):
        print(f"{count:5} classes: {1000 * value:7.2f} ms, line {1000 * expected:7.2f} ms")
    print(
        f"{1000 * fixed:.2f} ms and {1000 * each:.3f} ms a class; farthest from the line: {factors.max():.2f} times "
        "(wanted: at most 1.2)"
    )
    print(
        json.dumps(
            {
                "benchmark": "tag_count",
                "ratio": round(float(factors.max()), 3),
                "fixed_ms": round(1000 * float(fixed), 3),
                "each_ms": round(1000 * float(each), 4),
                "ms": {str(count): round(1000 * value, 2) for count, value in medians.items()},
            }
        )
    )


@torch.inference_mode()
def once(layer: torch.nn.Module, features: torch.Tensor) -> None:
    score_map = ScoreMap(scores=layer(features)[0], stride=16, offset=0.0, input_size=(240, 320))
    score_map.tag_confidences()
    score_map.argmax_mask(SIZE)


if __name__ == "__main__":
    main()
