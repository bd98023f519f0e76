"""Peak memory of `milseg predict` on 1,000 and on 10,000 photos; growth under 5 % is wanted.

    python benchmarks/bench_predict_memory.py

Each count runs in a process of its own with the tiny network, on small photos, in every format but npz (one file a
photo, as png writes two). Prints both peaks and one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FORMATS = ("png", "coco", "labelstudio", "cvat", "yolo")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--counts", type=int, nargs=2, default=(1_000, 10_000))
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS, metavar=("PHOTOS", "MODEL", "OUT"))
    options = parser.parse_args()
    if options.run:
        print(json.dumps(measure(*map(Path, options.run), formats=tuple(options.formats.split(",")))))
        return

    found = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        write_model(model)
        for count in options.counts:
            photos = write_photos(Path(folder, f"photos-{count}"), count)
            words = ["--run", str(photos), str(model), f"{folder}/out-{count}", "--formats", options.formats]
            done = subprocess.run(
                [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True
            )
            result = json.loads(done.stdout.splitlines()[-1])
            found.append(result["peak_mib"])
            print(f"{count:6,} photos: peak {result['peak_mib']:.1f} MiB, {result['seconds']:.0f} s")
    print(
        json.dumps(
            {
                "benchmark": "predict_memory",
                "photos": list(options.counts),
                "peak_mib": found,
                "ratio": round(found[1] / found[0], 4),
            }
        )
    )


def write_model(folder: Path) -> None:
    """A tiny network of random rows, so that masks hold every class."""
    import torch

    from milseg.inference.model_folder import ModelSpec, save_model
    from milseg.models.backbones import build_fcn

    torch.manual_seed(0)
    model = build_fcn("tiny", 3)
    torch.nn.init.normal_(model.score_layer.weight, std=0.3)
    save_model(folder, model, ModelSpec(backbone="tiny", classes=("background", "cat", "dog")))


def write_photos(folder: Path, count: int) -> Path:
    """Photos of blocks; a hundred of them differ, the rest are links to these."""
    import numpy as np
    from PIL import Image

    folder.mkdir()
    for i in range(count):
        path = folder / f"{i:06}.png"
        if i >= 100:
            os.link(folder / f"{i % 100:06}.png", path)
            continue
        blocks = np.random.default_rng(i).integers(0, 256, (6, 8, 3)).astype(np.uint8)
        Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), dtype=np.uint8))).save(path)
    return folder


def measure(photos: Path, model: Path, out: Path, *, formats: tuple[str, ...]) -> dict[str, float]:
    """Predict them all in this process; its highest resident memory, and the time."""
    from milseg.config import PredictOptions
    from milseg.inference.prediction_run import predict_run

    began = time.monotonic()
    predict_run(
        PredictOptions(inputs=(str(photos),), model=model, out=out, format=formats, device="cpu"),
        progress=False,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "peak_mib": peak / (2**20 if sys.platform == "darwin" else 2**10),
        "seconds": time.monotonic() - began,
    }


if __name__ == "__main__":
    main()
