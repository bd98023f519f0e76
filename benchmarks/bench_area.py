"""Cost of a mask against the area of its photo: seconds a megapixel from 0.1 to 400, within 1.2 times of each other.

    python benchmarks/bench_area.py [--max-megapixels 25] [--backbone mobilenet_v2]

The network sees each photo at its own size (`--longest-side 0`), in tiles where it is large; map, mask and PNG are what
is timed, not decoding. Each area runs in a process of its own, which says its peak memory. Before the clock runs it has
made one mask: of the same photo, or of its upper left corner of 6.3 megapixels where it is larger, so that what a
process pays once tells nowhere. `ratio` is the highest cost a megapixel over the lowest; processor time, as other work
on the machine comes and goes. Small photos are done until they make 8 megapixels. The photo is a smooth random one,
made at each size.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

AREAS = (0.1, 0.4, 1.6, 6.3, 25.0, 100.0, 400.0)
WARM = 2510  # pixels along each side of 6.3 megapixels
CLASSES = ("background", "cat", "dog")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--max-megapixels", type=float, default=400.0)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each area, which take turns")
    parser.add_argument("--area", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.area is not None:
        print(json.dumps(measure(options.area, options.backbone)))
        return
    areas = [area for area in AREAS if area <= options.max_megapixels]
    rows: dict[float, list[dict[str, float]]] = {area: [] for area in areas}
    for _ in range(options.rounds):
        for area in areas:
            words = ["--area", str(area), "--backbone", options.backbone]
            done = subprocess.run(
                [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True
            )
            rows[area].append(json.loads(done.stdout.splitlines()[-1]))
    costs, peaks = {}, {}
    for area in areas:
        costs[area] = statistics.median(row["s_per_megapixel"] for row in rows[area])
        peaks[area] = max(row["peak_mib"] for row in rows[area])
        print(f"{area:7.1f} megapixels: {costs[area]:.3f} s a megapixel, peak {peaks[area]:,.0f} MiB")
    ratio = max(costs.values()) / min(costs.values())
    print(f"highest over lowest: {ratio:.2f} (wanted: at most 1.2)")
    print(
        json.dumps(
            {
                "benchmark": "area",
                "ratio": round(ratio, 3),
                "backbone": options.backbone,
                "s_per_megapixel": {str(area): round(cost, 4) for area, cost in costs.items()},
                "peak_mib": {str(area): round(peak) for area, peak in peaks.items()},
            }
        )
    )


def measure(megapixels: float, backbone: str) -> dict[str, float]:
    from milseg.data.masks import write_mask
    from milseg.inference.model_folder import ModelSpec
    from milseg.inference.segmenter import Segmenter
    from milseg.models.backbones import build_fcn
    from milseg.models.fuse import fused
    from milseg.utils.devices import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)
    model = build_fcn(backbone, len(CLASSES)).eval()
    torch.manual_seed(0)
    torch.nn.init.normal_(model.score_layer.weight, std=0.3)
    spec = ModelSpec(backbone=backbone, classes=CLASSES)
    segmenter = Segmenter(model, spec, network=fused(model))
    side = round((megapixels * 1e6) ** 0.5)
    coarse = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    photo = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    times = []
    with tempfile.TemporaryDirectory() as folder:
        write_mask(Path(folder, "mask.png"), segmenter.segment(photo[:WARM, :WARM]).mask)
        for _ in range(max(1, round(8 / megapixels))):
            began = time.process_time()
            write_mask(Path(folder, "mask.png"), segmenter.segment(photo).mask)
            times.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {"s_per_megapixel": statistics.median(times) / (side**2 / 1e6), "peak_mib": peak}


if __name__ == "__main__":
    main()
