"""Predictions for the writers' tests, and readers of what was written that share no code with the writers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image
from skimage.filters import gaussian

from milseg.annotations.writer import Prediction
from milseg.data.image import UInt8

CLASSES = ("background", "cat", "dog")


def mask_of(*rows: list[int]) -> UInt8:
    return np.array(rows, dtype=np.uint8)


def prediction(name: str, mask: UInt8, **more: Any) -> Prediction:
    """A prediction for a grey photo NAME.jpg; `more` replaces fields."""
    height, width = mask.shape
    fields: dict[str, Any] = {
        "name": name,
        "photo_path": Path(f"{name}.jpg"),
        "photo_file": f"{name}.jpg",
        "size": (height, width),
        "mask": mask,
        "tags": [("cat", 0.75)],
        "confidence": 0.5,
        "scores": np.zeros((3, 2, 2), dtype=np.float32),
        "stride": 32.0,
        "offset": 0.0,
        "photo": np.full((height, width, 3), 100, dtype=np.uint8),
    }
    return Prediction(**{**fields, **more})


def blobs(height: int, width: int, classes: int, *, seed: int = 0, sigma: float = 6.0) -> UInt8:
    """A mask of smooth regions with holes, as a network draws them."""
    noise = np.random.default_rng(seed).random((classes, height, width))
    fields = [gaussian(one, sigma) for one in noise]
    return np.argmax(fields, axis=0).astype(np.uint8)


def masks(values: tuple[int, ...] = (0, 1, 2, 255), side: int = 12) -> st.SearchStrategy[UInt8]:
    """Masks of any small shape from 1 x 1 on."""
    return hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=side), elements=st.sampled_from(values)
    )


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_coco_string(text: str) -> list[int]:
    """COCO's counts from their text, letter by letter."""
    counts: list[int] = []
    at = 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            group = ord(text[at]) - 48
            value |= (group & 31) << shift
            more = bool(group & 32)
            at, shift = at + 1, shift + 5
        if group & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts


def read_coco_rle(rle: dict[str, Any]) -> NDArray[np.bool_]:
    height, width = rle["size"]
    flat: list[bool] = []
    for i, count in enumerate(read_coco_string(rle["counts"])):
        flat += [bool(i % 2)] * count
    return np.array(flat, dtype=bool).reshape(width, height).T


def read_label_studio_rle(rle: list[int]) -> list[int]:
    """The bytes in Label Studio's RLE, bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in rle)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    count, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < count:
        repeated = take(1)
        length = take(sizes[take(2)]) + 1
        out += [take(word)] * length if repeated else [take(word) for _ in range(length)]
    assert len(bits) - at < 8
    return out


def save_photo(path: Path, height: int, width: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (10, 200, 30)).save(path)
    return path
