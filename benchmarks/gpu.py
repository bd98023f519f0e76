"""One GPU: equal to the CPU, how fast, and what limits it. `benchmarks/gpu.sh` starts it.

Each part prints its rows as they come. A part that fails prints why; the others go on, and the exit status is 1.
Rates are medians. A share of the roofline is the least time that a step's operations and bytes need at the card's own
measured matrix rate and memory rate, over the time that the step took.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import fit_batch_norm, made_photo
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from milseg.config import InferenceConfig, TrainConfig
from milseg.data.bags import Bag, BagSet
from milseg.data.loader import load_batch
from milseg.inference.model_folder import ModelSpec, save_model
from milseg.inference.segmenter import load
from milseg.models.backbones import build_fcn
from milseg.models.fcn import FCN
from milseg.refine import find_refiner
from milseg.rules import RULES
from milseg.training.trainer import fit

CLASSES = ("background", *(f"class{number}" for number in range(1, 21)))
LOSSES_APART, PIXELS_EQUAL = 1e-4, 0.999  # wanted: at most, at least
VGG_SHARE = 0.4  # of the measured matrix rate, wanted


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every part needs: the device, the size of the job, made-up photos as JPEG files, the card's own rates."""

    device: torch.device
    small: bool
    folder: Path
    matrix_rate: float  # operations a second, bfloat16
    memory_rate: float  # bytes a second, read and written

    def photos(self, count: int) -> list[Path]:
        return sorted((self.folder / "photos").glob("*.jpg"))[:count]

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--small", action="store_true", help="few photos, small networks; the default without a GPU"
    )
    parser.add_argument("--out", type=Path, help="folder for gpu.json")
    parser.add_argument("--only", nargs="+", choices=sorted(PARTS), help="these parts alone")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small = options.small or device.type == "cpu"
    result: dict[str, Any] = {"device": name_of(device), "torch": torch.__version__, "small": small}
    print(f"{result['device']}, torch {torch.__version__}, {os.cpu_count()} processor cores", flush=True)
    failed = []
    with tempfile.TemporaryDirectory() as name:
        write_photos(Path(name) / "photos", 24 if small else 600, shrink=4 if small else 1)
        matrix_rate, memory_rate = ceilings(device, small)
        bench = Bench(
            device=device, small=small, folder=Path(name), matrix_rate=matrix_rate, memory_rate=memory_rate
        )
        row(result, "ceilings", matrix_tflops=matrix_rate / 1e12, memory_gb_per_s=memory_rate / 1e9)
        for part in options.only or PARTS:
            began = time.monotonic()
            try:
                PARTS[part](bench, result)
            except Exception:  # the other parts still tell something
                traceback.print_exc()
                failed.append(part)
            print(f"   ({part}: {time.monotonic() - began:.0f} s)", flush=True)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "gpu.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    failed += [name for name, kept in result.get("wanted", {}).items() if not kept]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def row(result: dict[str, Any], name: str, **numbers: Any) -> None:
    """Keep and print one row."""
    result[name] = numbers
    words = (
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in numbers.items()
    )
    print(f"{name}: {', '.join(words)}", flush=True)


def wanted(result: dict[str, Any], name: str, kept: bool) -> None:
    result.setdefault("wanted", {})[name] = bool(kept)


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "CPU"


def write_photos(folder: Path, count: int, *, shrink: int) -> None:
    folder.mkdir()
    for number in range(count):
        sides = (500 // shrink, 375 // shrink) if number % 4 == 0 else (375 // shrink, 500 // shrink)
        Image.fromarray(made_photo(number, *sides)).save(folder / f"{number:05}.jpg", quality=90)


def seconds_of(
    work: Callable[[], object], bench: Bench | torch.device, *, repeats: int, warm: int = 2
) -> float:
    """The median time of a call, the device's own work included."""
    device = bench if isinstance(bench, torch.device) else bench.device
    times = []
    for number in range(warm + repeats):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= warm:
            times.append(time.perf_counter() - began)
    return statistics.median(times)


def ceilings(device: torch.device, small: bool) -> tuple[float, float]:
    """The measured matrix rate in bfloat16 (float32 on a CPU), and the rate of a copy, bytes read and written."""
    side = 512 if small else 8192
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn(2**20 if small else 2**29, device=device)
    target = torch.empty_like(source)
    matrix = 2 * side**3 / seconds_of(lambda: a @ b, device, repeats=10, warm=3)
    copy = 2 * source.numel() * 4 / seconds_of(lambda: target.copy_(source), device, repeats=10)
    return matrix, copy


def network(backbone: str, stride: int, bench: Bench) -> FCN:
    """Random weights from one seed, with batch norm and score rows that tell photos apart; on the CPU."""
    model = build_fcn(backbone, len(CLASSES), output_stride=stride, seed=0)
    images = load_batch(bags_of(bench, 4), range(4), longest_side=160).images
    fit_batch_norm(model, images)
    model.replace_score_layer(len(CLASSES), std=0.1, generator=torch.Generator().manual_seed(0))
    return model.eval()


def bags_of(bench: Bench, count: int) -> BagSet:
    """Photos with one to three tags each, by their number."""
    bags = []
    for path in bench.photos(count):
        random = np.random.default_rng(int(path.stem))
        shown = {0, *random.choice(np.arange(1, len(CLASSES)), random.integers(1, 4), replace=False).tolist()}
        tags = tuple(int(number in shown) for number in range(len(CLASSES)))
        bags.append(Bag(name=path.stem, photo=path, tags=tags))
    return BagSet(name="made here", classes=CLASSES, bags=tuple(bags), tags_from="made here")


def equal_rules(bench: Bench, result: dict[str, Any]) -> None:
    """Each rule's loss and gradient in float32 on the device, against float64 on the CPU."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(4, 5, 12, 16, generator=generator, dtype=torch.float64) * 2
    tags = torch.randint(0, 2, (4, 5), generator=generator, dtype=torch.int8)
    tags[:, 0] = 1
    valid = torch.ones(4, 12, 16, dtype=torch.bool)
    valid[0, :, -3:] = False
    extras = {
        "segments": torch.randint(0, 6, valid.shape, generator=generator).masked_fill(~valid, -1),
        "masks": torch.randint(0, 5, valid.shape, generator=generator),
    }
    apart: dict[str, float] = {}
    for name, entry in RULES.items():
        torch.manual_seed(0)
        rule = entry.load().build(5)
        given = {key: extras[key] for key in extras if key == "masks" or entry.needs_segments}
        given = {
            key: value for key, value in given.items() if key == "segments" or entry.supervision == "masks"
        }
        sides = []
        for device, dtype in ((torch.device("cpu"), torch.float64), (bench.device, torch.float32)):
            if isinstance(rule, torch.nn.Module):
                rule = rule.to(device=device, dtype=dtype)
            x = scores.to(device=device, dtype=dtype).requires_grad_()
            moved = {key: value.to(device) for key, value in given.items()}
            loss = rule(x, tags.to(device), valid.to(device), **moved)
            (gradient,) = torch.autograd.grad(loss.sum(), x)
            sides.append(torch.cat([loss.detach().double().cpu(), gradient.double().cpu().flatten()]))
        apart[name] = float((sides[0] - sides[1]).norm() / sides[0].norm().clamp_min(1e-12))
    worst = max(apart, key=lambda name: apart[name])
    row(result, "rules against float64 on the CPU", rules=len(apart), worst=worst, apart=apart[worst])
    wanted(result, "rules equal", apart[worst] <= LOSSES_APART)


def equal_masks(bench: Bench, result: dict[str, Any]) -> None:
    """Masks of a saved model on the CPU and on the device, as the network gives them and by the whole recipe."""
    count = 3 if bench.small else 12
    for backbone, stride in (("tiny", 4),) if bench.small else (("mobilenet_v2", 16), ("resnet18", 16)):
        folder = bench.folder / f"model-{backbone}"
        save_model(
            folder,
            network(backbone, stride, bench),
            ModelSpec(
                backbone=backbone,
                classes=CLASSES,
                output_stride=stride,
                longest_side=160 if bench.small else 320,
            ),
        )
        for title, inference in (
            ("plain", InferenceConfig()),
            ("whole recipe", InferenceConfig(scales=(1.0, 1.5), flip=True, random_walk=2, refine="crf")),
        ):
            masks = []
            for device in ("cpu", str(bench.device)):
                segmenter = load(folder, device=device, inference=inference)
                masks.append([segmenter.segment(photo).mask for photo in bench.photos(count)])
            equal = float(np.mean([(a == b).mean() for a, b in zip(*masks, strict=True)]))
            shown = len(np.unique(np.concatenate([mask.ravel() for mask in masks[0]])))
            row(result, f"masks equal, {backbone}, {title}", pixels=equal, classes_shown=shown)
            wanted(result, f"masks of {backbone}, {title}", equal >= PIXELS_EQUAL)


def equal_training(bench: Bench, result: dict[str, Any]) -> None:
    """Losses of a few steps on both devices, and a run that is stopped and resumed against one that is not."""
    bags, steps = bags_of(bench, 16), 6
    config = TrainConfig(
        rule="weighted-pooling",
        max_steps=steps,
        batch_size=4,
        learning_rate=1e-3,
        longest_side=96 if bench.small else 320,
        dropout=False,
        checkpoint_every=3,
    )
    backbone, stride = ("tiny", 4) if bench.small else ("mobilenet_v2", 16)
    losses = {}
    for device in {torch.device("cpu"), bench.device}:
        model = network(backbone, stride, bench)
        losses[device.type] = [r["loss"] for r in fit(model, bags, config, device=device, progress=False)]
        whole = model
    first = losses["cpu"]
    apart = max(abs(a - b) for a, b in zip(first, losses[bench.device.type], strict=True))
    out = bench.folder / "resumed"
    resumed = network(backbone, stride, bench)

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise InterruptedError

    try:
        fit(resumed, bags, config, device=bench.device, progress=False, out=out, on_step=stop)
    except InterruptedError:
        resumed = network(backbone, stride, bench)
    fit(resumed, bags, config, device=bench.device, progress=False, out=out, resume=True)
    whole = network(backbone, stride, bench)
    fit(whole, bags, config, device=bench.device, progress=False)
    differ = max(
        float((a.detach() - b.detach()).abs().max())
        for a, b in zip(whole.parameters(), resumed.parameters(), strict=True)
    )
    row(result, f"training {backbone}, {steps} steps", losses_apart=apart, resumed_weights_apart=differ)
    wanted(result, "training equal", apart <= 1e-2 * max(1.0, max(first)))
    wanted(result, "resume equal", differ <= 1e-4)


def training(bench: Bench, result: dict[str, Any]) -> None:
    """Photos a second of `fit` from JPEG files, of the network's step alone, and what a step needs at the least."""
    cases = (
        [("tiny", 4, 4, 96, "float32")]
        if bench.small
        else [
            ("vgg16", 32, 20, None, "bfloat16"),
            ("mobilenet_v2", 16, 32, 512, "bfloat16"),
            ("resnet50", 16, 32, 512, "bfloat16"),
        ]
    )
    for backbone, stride, batch_size, side, precision in cases:
        steps = 6 if bench.small else 14
        config = TrainConfig(
            max_steps=steps, batch_size=batch_size, learning_rate=1e-4, longest_side=side, precision=precision
        )
        model = network(backbone, stride, bench)
        records = fit(
            model, bags_of(bench, len(bench.photos(10**6))), config, device=bench.device, progress=False
        )
        took = [b["seconds"] - a["seconds"] for a, b in pairwise(records[3:])]
        rate = batch_size / statistics.median(took)
        step, operations, moved = step_alone(model, bench, config)
        least = max(operations / bench.matrix_rate, moved / bench.memory_rate)
        share = operations / step / bench.matrix_rate
        row(
            result,
            f"training {backbone}, stride {stride}, batch {batch_size}, {precision}",
            photos_per_s=rate,
            network_alone_photos_per_s=batch_size / step,
            tera_operations_a_step=operations / 1e12,
            share_of_matrix_rate=share,
            share_of_roofline=least / step,
            limited_by="reading photos" if rate < 0.8 * batch_size / step else "the network",
        )
        if backbone == "vgg16":
            wanted(result, "vgg16's share of the matrix rate", share >= VGG_SHARE)


def step_alone(model: FCN, bench: Bench, config: TrainConfig) -> tuple[float, float, float]:
    """Seconds of forward, loss, backward and update on a batch that lies on the device; its operations; its bytes.

    Bytes count weights read and written, their gradients and momentum, and each layer's output written and read once in
    each direction: what no fusion could leave out.
    """
    bags = bags_of(bench, 4 * config.batch_size)
    wide = [n for n, path in enumerate(bench.photos(4 * config.batch_size)) if int(path.stem) % 4]
    batch = load_batch(bags, wide[: config.batch_size], longest_side=config.longest_side).to(bench.device)
    images = batch.images.to(memory_format=torch.channels_last)
    model.to(bench.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    half = config.precision == "bfloat16"
    outputs = 0

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=half):
            scores = model(images)
        valid = model.valid_mask(batch.sizes, (scores.shape[-2], scores.shape[-1]))
        RULES["max"].load().rule(scores.float(), batch.tags, valid).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    def count(module: torch.nn.Module, given: Any, out: Any) -> None:
        nonlocal outputs
        outputs += out.numel() * out.element_size() if isinstance(out, torch.Tensor) else 0

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    with FlopCounterMode(display=False) as counter:
        step()
    for hook in hooks:
        hook.remove()
    weights = sum(p.numel() for p in model.parameters()) * 4
    seconds = seconds_of(step, bench, repeats=3 if bench.small else 10)
    return seconds, float(counter.get_total_flops()), 4.0 * outputs + 6.0 * weights


def features(bench: Bench, result: dict[str, Any]) -> None:
    """Photos a second of timm's networks alone, in bfloat16: the ceiling of features computed once."""
    try:
        import timm
    except ImportError:
        print("features: timm is not installed; left out", flush=True)
        return
    names = {"vit_small_patch14_dinov2": 518, "vit_base_patch16_224": 512, "tf_efficientnet_lite2": 512}
    for name, side in ({"tf_efficientnet_lite0": 64} if bench.small else names).items():
        more = {"dynamic_img_size": True} if name.startswith("vit") else {}
        model = timm.create_model(name, pretrained=False, num_classes=0, **more).eval().to(bench.device)
        count = 2 if bench.small else 64
        images = torch.randn(count, 3, side, side, device=bench.device)

        @torch.inference_mode()
        def run(model: Any = model, images: torch.Tensor = images) -> None:
            with torch.autocast(bench.device.type, torch.bfloat16):
                model.forward_features(images)

        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model.forward_features(images)
        seconds, operations = (
            seconds_of(run, bench, repeats=3 if bench.small else 10),
            counter.get_total_flops(),
        )
        row(
            result,
            f"features {name}, {side} pixels, timm's network alone",
            photos_per_s=count / seconds,
            share_of_matrix_rate=operations / seconds / bench.matrix_rate,
        )


def stages(bench: Bench, result: dict[str, Any]) -> None:
    """Milliseconds a photo of the network, several views, the random walk and the CRF."""
    folder = next(iter(sorted(bench.folder.glob("model-*"))), None)
    if folder is None:
        folder = bench.folder / "model-tiny"
        save_model(
            folder, network("tiny", 4, bench), ModelSpec(backbone="tiny", classes=CLASSES, output_stride=4)
        )
    photos = bench.photos(2 if bench.small else 16)
    settings = {
        "network": InferenceConfig(),
        "network, 6 views": InferenceConfig(scales=(1.0, 1.5, 2.0), flip=True),
        "network, random walk": InferenceConfig(random_walk=2),
        "network, CRF": InferenceConfig(refine="crf"),
    }
    for title, inference in settings.items():
        segmenter = load(folder, device=str(bench.device), inference=inference)
        for photo in photos[:2]:
            segmenter.segment(photo)
        began = time.perf_counter()
        for photo in photos:
            segmenter.segment(photo)
        milliseconds = 1000 * (time.perf_counter() - began) / len(photos)
        row(result, f"a photo, {folder.name.removeprefix('model-')}: {title}", ms=milliseconds)
    pixels = made_photo(0, *((94, 125) if bench.small else (375, 500)))
    probs = torch.rand(len(CLASSES), *pixels.shape[:2]).softmax(dim=0)
    refine = find_refiner("crf")
    for device in {torch.device("cpu"), bench.device}:
        seconds = seconds_of(
            partial(refine, pixels, probs.to(device)), bench, repeats=1 if bench.small else 3, warm=1
        )
        row(result, f"CRF of 21 classes on {device.type}", ms=1000 * seconds)


def prediction(bench: Bench, result: dict[str, Any]) -> None:
    """Photos a second of `milseg predict`, from JPEG files to PNG masks; starting up is taken out by two sizes."""
    backbone, stride = ("tiny", 4) if bench.small else ("mobilenet_v2", 16)
    folder = bench.folder / "model-predict"
    spec = ModelSpec(backbone=backbone, classes=CLASSES, output_stride=stride, longest_side=None)
    save_model(folder, network(backbone, stride, bench), spec)
    counts = (4, 24) if bench.small else (60, 600)
    for words in ([], ["--scales", "1,1.5", "--refine", "crf"]) if not bench.small else ([],):
        seconds = []
        for count in counts if not words else (20, 100):
            names = [str(photo) for photo in bench.photos(count)]
            out = bench.folder / f"masks-{count}-{len(words)}"
            command = [
                sys.executable,
                "-m",
                "milseg",
                "predict",
                *names,
                "--model",
                str(folder),
                "--out",
                str(out),
                "--format",
                "png",
                *words,
            ]
            began = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            seconds.append(time.perf_counter() - began)
        few, many = counts if not words else (20, 100)
        row(
            result,
            f"milseg predict, {backbone}{', ' * bool(words)}{' '.join(words)}",
            photos_per_s=(many - few) / max(seconds[1] - seconds[0], 1e-9),
            seconds_to_start=seconds[0],
        )


PARTS: dict[str, Callable[[Bench, dict[str, Any]], None]] = {
    "equal-rules": equal_rules,
    "equal-masks": equal_masks,
    "equal-training": equal_training,
    "training": training,
    "features": features,
    "stages": stages,
    "prediction": prediction,
}


if __name__ == "__main__":
    main()
