"""Class maps of all tags of a photo against pytorch-grad-cam, which takes them one by one; 5 times as fast is wanted.

    pip install "milseg[bench]"; python benchmarks/bench_class_maps.py

MobileNetV2 with 1,000 classes and random weights, the same in both, on a photo of 375 x 500; maps for 1, 3, 5 and 20
tags at the photo's size. Ours runs the network once: cast into a fully convolutional one, its score map is the class
activation map of every class. Grad-CAM runs it forward and backward for each tag, as its documentation shows; on a
classifier that averages its features it gives the same coarse map, but for a bias, a factor, and what is below zero. It
stretches that map over the photo, where ours puts each place on the pixel on which it is centred, half a place away:
the correlation is printed. Of one or all threads the rival has what is quicker. `ratio` is at 5 tags.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from milseg.inference.score_map import upsample
from milseg.models.backbones import cast_classifier, make_classifier
from milseg.models.fcn import FCN
from milseg.models.fuse import fused
from milseg.utils.devices import keep_freed_memory
from milseg.utils.parallel import processors

SIZE = (375, 500)
COUNTS = (1, 3, 5, 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError:
        sys.exit('pytorch-grad-cam is not installed: pip install "milseg[bench]"')
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    photo = torch.nn.functional.interpolate(
        torch.randn(1, 3, 9, 12, generator=generator), size=SIZE, mode="bicubic"
    )
    network = make_classifier("mobilenet_v2", 1000).eval()
    fit_norms(network, photo)
    model = fused(cast_classifier("mobilenet_v2", same(network)).eval())
    rival: Any = GradCAM(model=network, target_layers=[network.features[-1]])  # type: ignore[index]

    def theirs(tags: list[int]) -> NDArray[np.float32]:
        maps = [rival(input_tensor=photo, targets=[ClassifierOutputTarget(tag)])[0] for tag in tags]
        return np.stack(maps)

    rows = {}
    for count in COUNTS:
        tags = list(range(0, 1000, 1000 // count))[:count]
        rows[count] = compare(model, photo, tags, theirs, options.rounds)
        print(
            f"{count:3} tags: ours {1000 * rows[count]['ours_s']:.0f} ms, "
            f"Grad-CAM {1000 * rows[count]['rival_s']:.0f} ms, "
            f"{rows[count]['ratio']:.1f} times; correlation {rows[count]['correlation']:.4f}"
        )
    print(f"at 5 tags {rows[5]['ratio']:.1f} times (median of {options.rounds} rounds; wanted: at least 5)")
    print(json.dumps({"benchmark": "class_maps", "ratio": rows[5]["ratio"], "tags": rows}))


def same(network: torch.nn.Module) -> torch.nn.Module:
    """The same classifier once more, to be taken apart."""
    other = make_classifier("mobilenet_v2", 1000)
    other.load_state_dict(network.state_dict())
    return other


def fit_norms(network: torch.nn.Module, photo: torch.Tensor) -> None:
    """Batch norm as the photo has it, and classes that differ: random weights alone give next to nothing."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            module.train()
    with torch.no_grad():
        network(photo)
    network.eval()
    torch.nn.init.normal_(network.classifier[1].weight, std=0.1)  # type: ignore[index,union-attr]


@torch.inference_mode()
def ours(model: FCN, photo: torch.Tensor, tags: list[int]) -> NDArray[np.float32]:
    """The maps of the tags, [T, H, W], from one run of the network."""
    scores = model(photo.to(memory_format=torch.channels_last))[0, tags]
    fine = upsample(scores, SIZE, stride=model.stride, offset=model.offset)
    return np.asarray(fine.clamp_min(0).numpy(), dtype=np.float32)


def compare(
    model: FCN,
    photo: torch.Tensor,
    tags: list[int],
    theirs: Callable[[list[int]], NDArray[np.float32]],
    rounds: int,
) -> dict[str, float]:
    own: list[float] = []
    other: dict[int, list[float]] = {}
    ours(model, photo, tags)
    for _ in range(rounds):
        torch.set_num_threads(processors())
        began = time.perf_counter()
        found = ours(model, photo, tags)
        own.append(time.perf_counter() - began)
        for threads in sorted({1, processors()}):
            torch.set_num_threads(threads)
            began = time.perf_counter()
            expected = theirs(tags)
            other.setdefault(threads, []).append(time.perf_counter() - began)
    best = min(other.values(), key=statistics.median)
    ratios = [rival / mine for rival, mine in zip(best, own, strict=True)]
    return {
        "ours_s": round(statistics.median(own), 4),
        "rival_s": round(statistics.median(best), 4),
        "ratio": round(statistics.median(ratios), 2),
        "correlation": float(np.corrcoef(found.reshape(-1), expected.reshape(-1))[0, 1])
        if len(tags) == 1
        else float(
            np.median([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(found, expected, strict=True)])
        ),
    }


if __name__ == "__main__":
    main()
