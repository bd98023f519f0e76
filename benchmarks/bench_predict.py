"""`milseg predict` against a plain torch loop: masks a second on two processors; twice as many are wanted.

    python benchmarks/bench_predict.py [--refine RECIPE] [--longest-side 0] [--overlays]
    python benchmarks/bench_predict.py --backbone vgg16 --output-stride 32 --longest-side 0 --photos 6 --rounds 3

MobileNetV2 at stride 16 with 21 classes, 500 x 375 JPEG files in, palette PNG masks out; the second command has the
paper's network as the paper has it. The rival decodes a photo with Pillow, runs the network in inference mode,
interpolates bilinearly, takes the top class and saves the mask; one photo at a time. Of one or all threads a layer, and
channels first or last, the rival is the one with the best median, over a third of the photos. Ours is what the command
does, its records and table included. Each side has its model loaded
before. Rounds take turns; the ratio is the median over rounds. Weights are random, scaled (He et al. 2015) or with
batch norm fitted to the photos, so that masks hold many classes; no network is needed. `--refine` gives both sides a
refiner, the rival one photo at a time. `latency` is one photo by itself through `Segmenter.segment` with its PNG: under
0.2 s is wanted.

The time of each side on the processor, which a busy machine disturbs less, is printed beside the time on the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import equal_pixels
from PIL import Image
from plain import plain_scores, tensor_of, top_class

from milseg.config import PredictOptions
from milseg.data.image import UInt8
from milseg.data.masks import palette, write_mask
from milseg.inference.model_folder import ModelSpec, load_model, save_model
from milseg.inference.prediction_run import predict_photos, prepare_run
from milseg.inference.segmenter import load
from milseg.models.backbones import build_fcn
from milseg.refine import find_refiner
from milseg.utils.devices import keep_freed_memory
from milseg.utils.parallel import processors

CLASSES = ("background", *(f"class{number}" for number in range(1, 21)))
SIZE = (375, 500)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--longest-side", type=int, default=320, help="0: the photo's own size")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--output-stride", type=int, default=16)
    parser.add_argument("--refine", default="none")
    parser.add_argument("--overlays", action="store_true", help="ours writes overlays too, as by default")
    options = parser.parse_args()
    if options.photos < 3 or options.rounds < 1:
        parser.error("--photos takes 3 or more (two warm the latency up), --rounds 1 or more")
    keep_freed_memory()  # for both
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder, "photos"), options.photos)
        spec = ModelSpec(
            backbone=options.backbone,
            classes=CLASSES,
            output_stride=options.output_stride,
            longest_side=options.longest_side or None,
        )
        write_model(Path(folder, "model"), spec, photos)
        ours = Ours(Path(folder), photos, options.refine, options.overlays)
        theirs = Rival(Path(folder), options.longest_side or None, options.refine)
        ours.run()
        theirs.run(photos)
        same = share_of_equal_pixels(ours.out / "masks", theirs.out)
        few = photos[: max(1, len(photos) // 3)]
        own: list[tuple[float, float]] = []
        other: dict[tuple[int, bool], list[tuple[float, float]]] = {}
        for _ in range(options.rounds):
            own.append(timed(ours.run))
            for threads in sorted({1, processors()}):
                for last in (False, True):
                    theirs.threads, theirs.channels_last = threads, last
                    theirs.run(few[:1])
                    other.setdefault((threads, last), []).append(timed(lambda: theirs.run(few)))
        latency = ours.latency(photos)
    wall = {key: statistics.median(times[0] for times in rows) / len(few) for key, rows in other.items()}
    best = min(wall, key=lambda key: wall[key])
    mine = statistics.median(times[0] for times in own) / len(photos)
    ratio = statistics.median(
        (theirs[0] / len(few)) / (ours[0] / len(photos))
        for ours, theirs in zip(own, other[best], strict=True)
    )
    used = {
        name(*key): round(1000 * statistics.median(times[1] for times in rows) / len(few), 1)
        for key, rows in other.items()
    }
    used["ours"] = round(1000 * statistics.median(times[1] for times in own) / len(photos), 1)
    for key, seconds in wall.items():
        print(
            f"rival, {name(*key)}: {1 / seconds:.1f} masks/s, {used[name(*key)]:.0f} ms of processor a mask"
        )
    print(
        f"ours: {1 / mine:.1f} masks/s, {used['ours']:.0f} ms of processor a mask\n"
        f"ratio {ratio:.2f} (median of {len(own)} rounds, to the best rival; wanted: at least 2)\n"
        f"equal pixels: {100 * same:.3f} %; one photo by itself: {latency:.3f} s; load {os.getloadavg()[0]:.1f}"
    )
    print(
        json.dumps(
            {
                "benchmark": "predict",
                "ratio": round(ratio, 3),
                "masks_per_s": round(1 / mine, 2),
                "rival_masks_per_s": round(1 / wall[best], 2),
                "rival": name(*best),
                "processor_ms": used,
                "equal_pixels": same,
                "latency": round(latency, 4),
                "backbone": options.backbone,
                "refine": options.refine,
                "longest_side": options.longest_side,
                "processors": processors(),
                "load": os.getloadavg()[0],
            }
        )
    )


def name(threads: int, channels_last: bool) -> str:
    return f"{threads} threads, channels {'last' if channels_last else 'first'}"


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds on the wall and on the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def write_photos(folder: Path, count: int) -> list[Path]:
    """Smooth random photos as JPEG."""
    folder.mkdir()
    paths = []
    for number in range(count):
        coarse = np.random.default_rng(number).integers(0, 256, (9, 12, 3)).astype(np.uint8)
        path = folder / f"{number:05}.jpg"
        Image.fromarray(coarse).resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC).save(path, quality=90)
        paths.append(path)
    return paths


def write_model(folder: Path, spec: ModelSpec, photos: list[Path]) -> None:
    """Random weights, scaled or with batch norm as the photos have it, and score rows that tell the places apart."""
    torch.manual_seed(0)
    model = build_fcn(spec.backbone, len(CLASSES), output_stride=spec.output_stride, frozen_batch_norm=False)
    images = torch.stack([tensor_of(read(path)) for path in photos[:4]])
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over what is seen
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d) and not norms:
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        model.train()(images)
        torch.nn.init.normal_(model.score_layer.weight, std=0.1)
    save_model(folder, model, spec)


class Ours:
    """The command's own way, without the loading of the model."""

    def __init__(self, folder: Path, photos: list[Path], refine: str, overlays: bool) -> None:
        self.out, self.model = folder / "ours", folder / "model"
        options = PredictOptions(
            inputs=(str(photos[0].parent),),
            model=self.model,
            out=self.out,
            device="cpu",
            refine=refine,
            no_overlays=not overlays,
        )
        self.job = prepare_run(options, torch.device("cpu"))

    def run(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        predict_photos(self.job, self.job.photos, self.out, resume=False, progress=False)

    def latency(self, photos: list[Path]) -> float:
        torch.set_num_threads(processors())
        segmenter = load(self.model, device="cpu")
        seconds = []
        for path in photos[:12]:
            began = time.perf_counter()
            write_mask(self.out / "one.png", segmenter.segment(path).mask)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds[2:])


class Rival:
    """A plain loop."""

    def __init__(self, folder: Path, longest_side: int | None, refine: str) -> None:
        self.out, self.longest_side = folder / "rival", longest_side
        self.model, _ = load_model(folder / "model")
        self.refine = None if refine == "none" else find_refiner(refine)
        self.out.mkdir()
        self.threads, self.channels_last = 1, False

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def run(self, photos: list[Path]) -> None:
        torch.set_num_threads(self.threads)
        self.model.to(memory_format=self.layout)
        for path in photos:
            mask = Image.fromarray(self.mask(path))
            mask.putpalette(palette().tobytes())
            mask.save(self.out / f"{path.stem}.png")

    @torch.inference_mode()
    def mask(self, path: Path) -> UInt8:
        photo = read(path)
        fine = plain_scores(self.model, photo, longest_side=self.longest_side, layout=self.layout)
        if self.refine is not None:
            fine = self.refine(photo, fine[0].softmax(dim=0))[None]
        return top_class(fine)


def read(path: Path) -> UInt8:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def share_of_equal_pixels(ours: Path, theirs: Path) -> float:
    """The lowest of all photos."""
    return min(equal_pixels(ours / path.name, path) for path in theirs.glob("*.png"))


if __name__ == "__main__":
    main()
