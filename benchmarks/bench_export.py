"""Masks a second of an exported model by ONNX Runtime and OpenVINO, against the same network in PyTorch.

    python benchmarks/bench_export.py [--model RUN] [--backbone mobilenet_v2] [--photos FOLDER]

Needs `pip install "milseg[export]"`. All sides take a photo of 500 x 375 from its pixels to its mask, without walk and
refiner: milseg's own prediction in PyTorch (as `milseg.load` makes it), and the exported graph alone, by ONNX Runtime
in 8 bits too (`milseg export --int8`, its scales from these photos). Each is tried with every number of threads from 1
to the processors' and runs with its best. They take turns, photo by photo, so that a busy machine meets all alike;
--clock processor counts processor time in place of time on the wall. Without --model, random weights are timed.
Prints medians, the share of equal mask pixels, ratios, and one JSON line last, where "ratio" is the better of ONNX
Runtime and OpenVINO over PyTorch, 8 bits left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from milseg.config import InferenceConfig
from milseg.data.image import UInt8
from milseg.export.int8 import quantize
from milseg.export.write import onnx_model, openvino_model
from milseg.inference.model_folder import ModelSpec, load_model
from milseg.inference.onnx_network import needed
from milseg.inference.segmenter import Segmenter
from milseg.models.backbones import build_fcn
from milseg.models.fcn import FCN
from milseg.models.fuse import fused

HEIGHT, WIDTH = 375, 500
# A photo to its mask, both uint8.
Side = Callable[[UInt8], UInt8]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, help="model folder; without it, random weights")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--photos", type=Path, help="folder of JPEG photos; without it, photos made here")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--clock", choices=("processor", "wall"), default="wall")
    options = parser.parse_args()
    clock = time.process_time if options.clock == "processor" else time.perf_counter
    model, spec = model_of(options.model, options.backbone)
    photos = [photo_of(options.photos, number) for number in range(options.repeats)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        exact = onnx_model(model, spec)
        path.write_bytes(exact.SerializeToString())
        rough = Path(folder) / "rough.onnx"
        rough.write_bytes(quantize(exact, photos).SerializeToString())
        makers = {
            "torch": lambda threads: torch_side(Segmenter(model, spec, network=fused(model)), threads),
            "onnxruntime": lambda threads: onnxruntime_side(path, threads),
            "onnxruntime in 8 bits": lambda threads: onnxruntime_side(rough, threads),
            "openvino": lambda threads: openvino_side(path, threads),
        }
        sides = {name: tuned(name, make, photos[:3], clock) for name, make in makers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    same: dict[str, list[float]] = {name: [] for name in sides}
    for photo in photos:
        masks = {}
        for name, side in sides.items():
            began = clock()
            masks[name] = side(photo)
            seconds[name].append(clock() - began)
        for name, mask in masks.items():
            same[name].append(float((mask == masks["torch"]).mean()))
    result: dict[str, Any] = {"benchmark": "export", "clock": options.clock, "network": spec.backbone}
    for name in sides:
        ratio = statistics.median(a / b for a, b in zip(seconds["torch"], seconds[name], strict=True))
        rate = 1 / statistics.median(seconds[name])
        result[name] = {"masks_per_s": rate, "ratio": ratio, "same_pixels": min(same[name])}
        print(
            f"{name}: {rate:.2f} masks/s, {ratio:.2f} times PyTorch's; at least {100 * min(same[name]):.3f} % of a "
            "mask's pixels are PyTorch's"
        )
    result["ratio"] = max(result[name]["ratio"] for name in ("onnxruntime", "openvino"))
    print(json.dumps(result))


def model_of(folder: Path | None, backbone: str) -> tuple[FCN, ModelSpec]:
    """A network and its settings, walk and refiner left out, as the files leave them out."""
    if folder is None:
        spec = ModelSpec(backbone=backbone, classes=tuple("abcdefg"), longest_side=320)
        return build_fcn(backbone, 7).eval(), replace(spec, inference=InferenceConfig(flip=True))
    model, spec = load_model(folder)
    return model, replace(spec, inference=replace(spec.inference, refine="none", random_walk=0))


def tuned(name: str, make: Callable[[int], Side], photos: list[UInt8], clock: Callable[[], float]) -> Side:
    """The side with its best number of threads."""
    found: dict[int, tuple[float, Side]] = {}
    for threads in range(1, (os.cpu_count() or 1) + 1):
        side = make(threads)
        side(photos[0])  # the first call of each size allocates
        taken = []
        for photo in photos:
            began = clock()
            side(photo)
            taken.append(clock() - began)
        found[threads] = (statistics.median(taken), side)
    best = min(found, key=lambda threads: found[threads][0])
    told = ", ".join(f"{threads}: {seconds:.3f} s" for threads, (seconds, _) in found.items())
    print(f"{name}: threads {told}; takes {best}")
    return found[best][1]


def torch_side(segmenter: Segmenter, threads: int) -> Side:
    def run(photo: UInt8) -> UInt8:
        torch.set_num_threads(threads)
        return segmenter.segment(photo).mask

    return run


def onnxruntime_side(path: Path, threads: int) -> Side:
    onnxruntime = needed("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda photo: np.asarray(session.run(["mask"], {"photo": photo[None]})[0][0], dtype=np.uint8)


def openvino_side(path: Path, threads: int) -> Side:
    openvino = needed("openvino")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(openvino_model(path), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda photo: np.array(request.infer({"photo": photo[None]})["mask"][0], dtype=np.uint8)


def photo_of(folder: Path | None, number: int) -> UInt8:
    """A photo of the folder, or blocks of colour with camera noise; uint8 [HEIGHT, WIDTH, 3]."""
    if folder is not None:
        files = sorted(folder.glob("*.jpg"))
        with Image.open(files[number % len(files)]) as image:
            return np.array(image.convert("RGB").resize((WIDTH, HEIGHT)))
    random = np.random.default_rng(number)
    blocks = np.kron(random.integers(0, 256, (10, 10, 3)), np.ones((40, 50, 1)))[:HEIGHT, :WIDTH]
    return (blocks + random.normal(0, 8, blocks.shape)).clip(0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
