"""The fully connected CRF against pydensecrf's C++ on one core; at most 1.5 times its time is wanted.

    python benchmarks/bench_crf.py [--photos FOLDER]

Needs `pip install pydensecrf2` (extra crf-test; it builds with a C++ compiler); without it only our side is timed. Both
sides take 375 x 500 photos and 10 iterations with 3 and 21 classes, in turn in one process on one thread, everything
included: lattice, normalisation, inference. Time is the process's own on the processor, so that a busy machine says
the same; --clock wall takes the time on the wall. Also the highest difference of any probability, the share of equal
labels, the time of a photo of 240 x 320 with 7 classes, and peak memory on pure noise. Prints medians and one JSON line
last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from milseg.data.image import UInt8
from milseg.refine.crf import dense_crf
from milseg.utils.devices import keep_freed_memory

KERNELS = {
    "spatial_sigma": 3.0,
    "spatial_weight": 3.0,
    "bilateral_sigma_xy": 80.0,
    "bilateral_sigma_rgb": 13.0,
    "bilateral_weight": 10.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path, help="folder of JPEG photos; without it, photos made here")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--clock", choices=("processor", "wall"), default="processor")
    parser.add_argument("--noise", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # for both
    if options.noise is not None:
        print(json.dumps({"peak_mib": noise_peak(options.noise)}))
        return
    clock = time.process_time if options.clock == "processor" else time.perf_counter
    result: dict[str, object] = {"benchmark": "crf", "clock": options.clock, "ratio": None}
    ratios = []
    for classes in (3, 21):
        row = compare(classes, options.photos, options.repeats, clock)
        result[f"classes_{classes}"] = row
        if row["ratio"] is not None:
            ratios.append(row["ratio"])
    if ratios:
        result["ratio"] = max(ratios)  # the worse of the two
    result["small_photo_s"] = small_photos(options.photos, options.repeats, clock)
    if sys.platform == "linux":
        result["noise_peak_mib"] = {classes: in_own_process(classes) for classes in (3, 21)}
        print(f"pure noise 375 x 500: MiB at most, by classes: {result['noise_peak_mib']}")
    print(json.dumps(result))


def compare(
    classes: int, folder: Path | None, repeats: int, clock: Callable[[], float]
) -> dict[str, float | None]:
    """Both sides on the same photos, one after the other."""
    ours, theirs, same, apart = [], [], [], []
    for number in range(repeats + 1):
        photo, probs = photo_of(folder, number, (375, 500)), probs_of(classes, 375, 500, number)
        began = clock()
        found = dense_crf(photo, probs)
        seconds = clock() - began
        began = clock()
        expected = reference(photo, probs.numpy())
        reference_seconds = clock() - began
        if number == 0:
            continue  # the first call of each side loads and allocates
        ours.append(seconds)
        if expected is not None:
            theirs.append(reference_seconds)
            same.append(float((found.argmax(dim=0).numpy() == expected.argmax(axis=0)).mean()))
            apart.append(float(np.abs(found.numpy() - expected).max()))
    mine = statistics.median(ours)
    if not theirs:
        print(f"{classes} classes: ours {mine:.3f} s; pydensecrf is not installed")
        return {"ours_s": mine, "pydensecrf_s": None, "ratio": None}
    other = statistics.median(theirs)
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    print(
        f"{classes} classes: ours {mine:.3f} s, pydensecrf {other:.3f} s, ratio {ratio:.2f} (median of {len(ours)} "
        f"pairs; wanted: at most 1.5); same label {100 * min(same):.3f} %, probabilities differ by {max(apart):.1e}"
    )
    return {
        "ours_s": mine,
        "pydensecrf_s": other,
        "ratio": round(ratio, 3),
        "same_label": min(same),
        "difference": max(apart),
    }


def reference(photo: UInt8, probs: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """pydensecrf's answer, where it is installed."""
    try:
        from pydensecrf.densecrf import DenseCRF2D
        from pydensecrf.utils import unary_from_softmax
    except ImportError:
        return None
    classes, height, width = probs.shape
    crf = DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(unary_from_softmax(probs))
    crf.addPairwiseGaussian(sxy=KERNELS["spatial_sigma"], compat=KERNELS["spatial_weight"])
    crf.addPairwiseBilateral(
        sxy=KERNELS["bilateral_sigma_xy"],
        srgb=KERNELS["bilateral_sigma_rgb"],
        rgbim=np.array(photo),
        compat=KERNELS["bilateral_weight"],
    )
    return np.asarray(crf.inference(10), dtype=np.float32).reshape(probs.shape)


def small_photos(folder: Path | None, repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds for a photo of 240 x 320 with 7 classes, whole and at half its size."""
    found = {}
    for scale in (1, 2):
        seconds = []
        for number in range(repeats + 1):
            photo, probs = photo_of(folder, number, (240, 320)), probs_of(7, 240, 320, number)
            began = clock()
            dense_crf(photo, probs, scale=scale)
            seconds.append(clock() - began)
        found[f"scale_{scale}"] = statistics.median(seconds[1:])
        print(f"240 x 320, 7 classes, scale {scale}: {found[f'scale_{scale}']:.3f} s a photo")
    return found


def photo_of(folder: Path | None, number: int, size: tuple[int, int]) -> UInt8:
    """A photo of the folder, or blocks and slopes of colour with camera noise; uint8 [height, width, 3]."""
    height, width = size
    if folder is not None:
        files = sorted(folder.glob("*.jpg"))
        with Image.open(files[number % len(files)]) as image:
            return np.array(image.convert("RGB").resize((width, height)))
    random = np.random.default_rng(number)
    photo = np.kron(random.integers(0, 256, (-(-height // 40), -(-width // 50), 3)), np.ones((40, 50, 1)))
    photo = photo[:height, :width] + np.linspace(-40, 40, width)[None, :, None]
    return (photo + random.normal(0, 8, photo.shape)).clip(0, 255).astype(np.uint8)


def probs_of(classes: int, height: int, width: int, seed: int) -> torch.Tensor:
    """A coarse random map, interpolated; float32 [classes, height, width]."""
    scores = torch.randn(1, classes, height // 16, width // 16, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(3 * scores, size=(height, width), mode="bilinear")
    return fine.softmax(dim=1)[0].contiguous()


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (its highest) of this process, MiB; Linux only."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 2**10
    raise SystemExit(f"no {field} in /proc/self/status")


def noise_peak(classes: int) -> float:
    """How much memory the CRF of pure noise takes at most, MiB."""
    probs = probs_of(classes, 375, 500, 0)
    dense_crf(np.zeros((8, 8, 3), np.uint8), probs[:, :8, :8])
    before = resident("VmRSS")
    dense_crf(np.random.default_rng(0).integers(0, 256, (375, 500, 3)).astype(np.uint8), probs)
    return round(resident("VmHWM") - before, 1)


def in_own_process(classes: int) -> float:
    done = subprocess.run(
        [sys.executable, __file__, "--noise", str(classes)], stdout=subprocess.PIPE, text=True, check=True
    )
    return float(json.loads(done.stdout.splitlines()[-1])["peak_mib"])


if __name__ == "__main__":
    main()
