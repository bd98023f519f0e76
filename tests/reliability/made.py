"""Made-up photos with tags and true masks, a tiny model, and the words of the commands on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from milseg.config import InferenceConfig
from milseg.data.masks import write_mask
from milseg.inference.model_folder import ModelSpec, save_model
from milseg.inference.prior import Prior

COLOURS = {"cat": (220, 30, 30), "dog": (30, 30, 220)}
CLASSES = ("background", "cat", "dog")


def make_source(root: Path, count: int = 8) -> Path:
    """root/photos, tags.csv, a true mask of each photo in truth/; returns root."""
    rows = ["image,tags\n"]
    for i in range(count):
        tag = ("cat", "dog")[i % 2]
        name = f"more/p{i}" if i > 3 else f"p{i}"
        pixels = np.random.default_rng(i).integers(100, 150, (36 + i % 8, 48, 3)).astype(np.uint8)
        mask = np.zeros(pixels.shape[:2], dtype=np.uint8)
        pixels[6:28, 8:30], mask[6:28, 8:30] = COLOURS[tag], CLASSES.index(tag)
        for folder in ("photos", "truth"):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / "photos" / f"{name}.png")
        write_mask(root / "truth" / f"{name}.png", mask)
        rows.append(f"{name}.png,{tag}\n")
    (root / "tags.csv").write_text("".join(rows))
    return root


def make_model(folder: Path, *, seed: int = 5) -> Path:
    """A random model of CLASSES with a prior and two views, whose masks show every class."""
    inference = InferenceConfig(scales=(1.0, 1.5), flip=True, prior=0.5)
    prior = Prior(slope=(0.0, 1.0, 1.0), intercept=(0.0, 0.1, -0.1))
    spec = ModelSpec(backbone="tiny", classes=CLASSES, inference=inference, prior=prior)
    model = spec.build()
    with torch.no_grad():
        model.score_layer.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    save_model(folder, model, spec)
    return folder


def train_words(root: Path, out: str = "run", *more: str) -> list[str]:
    """`milseg train` of some steps, in two stages: from tags, then on its own masks."""
    return [
        *("train", str(root / "photos"), "--tags", str(root / "tags.csv"), "--out", str(root / out)),
        *"--backbone tiny --weights none --max-steps 6 --batch-size 2 --hold-out 0.3".split(),
        *"--checkpoint-every 1 --select-every 3 --device cpu".split(),
        *more,
    ]


def predict_words(root: Path, out: str = "masks", *more: str) -> list[str]:
    """`milseg predict` of the photos with root/model, in every format that resumes line by line."""
    return [
        *("predict", str(root / "photos"), "--model", str(root / "model"), "--out", str(root / out)),
        *"--format coco,labelstudio,cvat,yolo,npz --device cpu".split(),
        *more,
    ]


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path; of safetensors the header in alphabetical order.

    safetensors writes what a header says of the file itself in any order, so that equal files may differ there.
    """
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _ordered(path) for path in found}


def _ordered(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    end = 8 + int.from_bytes(data[:8], "little")
    return json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:]
