"""Digit scenes: real handwriting on real textures, with exact masks and no download.

scikit-learn's handwritten digits, in colour and at several sizes, on scikit-image's photographs of brick,
grass and gravel. One to three digits a scene; the tag set names them. Single-digit pictures pre-train a
classifier, as ILSVRC does in the paper. Train and val share neither handwriting nor texture.

The generator is frozen: figures from different versions of the package compare. It uses integer arithmetic
and numpy's legacy random stream, which numpy promises never to change; a test holds a hash of the result.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milseg.data.bags import Bag, BagSet, make_tags
from milseg.data.image import UInt8
from milseg.errors import unknown_name

CLASSES = ("background", *(str(digit) for digit in range(10)))
HEIGHT, WIDTH = 64, 128
SINGLE = 48  # side of a single-digit picture, pixels
SPLITS = ("train", "val")
FACTORS = (4, 5, 6)  # digits are 8 x 8: 32 to 48 pixels high
_INK = 4  # of 16: from here on a pixel belongs to the digit
# Far apart in the seed space, so that no two splits or seeds share a random stream.
_STREAM = {"train": 0, "val": 1, "single": 2}


@lru_cache(maxsize=1)
def _handwriting() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return digits.images.astype(np.int64), digits.target.astype(np.int64)


@lru_cache(maxsize=1)
def _textures() -> tuple[NDArray[np.int64], ...]:
    from skimage import data

    pictures: tuple[Any, ...] = (data.brick, data.grass, data.gravel)
    return tuple(picture().astype(np.int64) for picture in pictures)


def _pool(split: str) -> NDArray[np.int64]:
    """Handwriting of a split: every fourth digit is kept for val."""
    _, labels = _handwriting()
    kept = np.arange(len(labels)) % 4 == 3
    return np.flatnonzero(kept if split == "val" else ~kept)


def _enlarge(ink: NDArray[np.int64], factor: int) -> NDArray[np.int64]:
    """Bilinear enlargement of an 8 x 8 digit in integers; values stay 0..16, rounded down."""
    position = np.clip(2 * np.arange(8 * factor) + 1 - factor, 0, 7 * 2 * factor)
    low, part = position // (2 * factor), position % (2 * factor)
    high = np.minimum(low + 1, 7)
    rows = ink[low] * (2 * factor - part)[:, None] + ink[high] * part[:, None]
    both = rows[:, low] * (2 * factor - part)[None] + rows[:, high] * part[None]
    return np.asarray(both // (4 * factor * factor), dtype=np.int64)


def _ground(random: np.random.RandomState, split: str, height: int, width: int) -> NDArray[np.int64]:
    """A tinted piece of texture, int [height, width, 3]; train sees the left halves, val the right ones."""
    texture = _textures()[random.randint(3)]
    half = texture.shape[1] // 2
    top = random.randint(texture.shape[0] - height + 1)
    left = random.randint(half - width + 1) + (half if split == "val" else 0)
    tint = random.randint(120, 256, size=3)
    return texture[top : top + height, left : left + width, None] * tint // 255


def _colour(random: np.random.RandomState, ground: NDArray[np.int64]) -> NDArray[np.int64]:
    """A colour well apart from the mean of the ground it is drawn on."""
    mean = ground.sum(axis=(0, 1)) // (ground.shape[0] * ground.shape[1])
    while True:
        colour = random.randint(0, 256, size=3)
        if np.abs(colour - mean).sum() >= 220:
            return colour


def _draw(
    random: np.random.RandomState,
    scene: NDArray[np.int64],
    mask: UInt8,
    box: tuple[int, int, int],
    ink: NDArray[np.int64],
    label: int,
) -> None:
    top, left, side = box
    window = scene[top : top + side, left : left + side]
    colour = _colour(random, window)
    inside = ink >= _INK
    # Thin strokes are a little darker, so that the pen is visible, but every mask pixel is covered fully.
    window[inside] = (colour[None] * (8 + ink[inside] // 2)[:, None]) // 16
    mask[top : top + side, left : left + side][inside] = label


def _layout(random: np.random.RandomState, count: int) -> list[tuple[int, int, int]]:
    """Boxes (top, left, side) of `count` digits that do not overlap; sizes and places are drawn until they fit."""
    for _ in range(50):
        boxes: list[tuple[int, int, int]] = []
        for _ in range(10 * count):
            side = 8 * FACTORS[random.randint(len(FACTORS))]
            box = (random.randint(HEIGHT - side + 1), random.randint(WIDTH - side + 1), side)
            if not any(_overlap(box, other) for other in boxes):
                boxes.append(box)
            if len(boxes) == count:
                return boxes
    # Three of the smallest always fit side by side.
    side = 8 * FACTORS[0]
    return [(random.randint(HEIGHT - side + 1), i * (WIDTH // 3), side) for i in range(count)]


def _overlap(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    return (
        abs(2 * a[0] + a[2] - 2 * b[0] - b[2]) < a[2] + b[2]
        and abs(2 * a[1] + a[2] - 2 * b[1] - b[2]) < a[2] + b[2]
    )


def make_scene(seed: int, split: str, index: int) -> tuple[UInt8, UInt8]:
    """Scene `index` of a split: photo uint8 [64, 128, 3], mask uint8 [64, 128] (digit d is d + 1)."""
    random = np.random.RandomState([seed, _STREAM[split], index])
    images, labels = _handwriting()
    pool = _pool(split)
    scene = _ground(random, split, HEIGHT, WIDTH)
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    for top, left, side in _layout(random, 1 + random.randint(3)):
        digit = pool[random.randint(len(pool))]
        ink = _enlarge(images[digit], side // 8)
        _draw(random, scene, mask, (top, left, side), ink, int(labels[digit]) + 1)
    return _with_grain(random, scene), mask


def make_single(seed: int, index: int) -> tuple[UInt8, int]:
    """Single-digit picture `index` of the train split: uint8 [48, 48, 3] and its digit."""
    random = np.random.RandomState([seed, _STREAM["single"], index])
    images, labels = _handwriting()
    pool = _pool("train")
    digit = pool[random.randint(len(pool))]
    factor = FACTORS[random.randint(len(FACTORS))]
    side = 8 * factor
    scene = _ground(random, "train", SINGLE, SINGLE)
    top, left = random.randint(SINGLE - side + 1), random.randint(SINGLE - side + 1)
    mask = np.zeros((SINGLE, SINGLE), dtype=np.uint8)
    _draw(random, scene, mask, (top, left, side), _enlarge(images[digit], factor), int(labels[digit]) + 1)
    return _with_grain(random, scene), int(labels[digit])


def _with_grain(random: np.random.RandomState, scene: NDArray[np.int64]) -> UInt8:
    grain = random.randint(-8, 9, size=scene.shape)
    return np.asarray(np.clip(scene + grain, 0, 255), dtype=np.uint8)


def read_digits(split: str, count: int, *, seed: int = 0) -> BagSet:
    """`count` scenes of a split as bags; the same seed gives the same scenes, whatever the count.

    The masks come along for scoring and for the supervised oracle; training from tags does not touch them.

    Raises:
        UserError: a split other than "train" and "val".

    >>> read_digits("val", 2).classes[:3]
    ('background', '0', '1')
    """
    if split not in SPLITS:
        raise unknown_name("split of digits", split, SPLITS)
    bags = []
    for index in range(count):
        photo, mask = make_scene(seed, split, index)
        present = [CLASSES[value] for value in np.unique(mask)]
        bags.append(
            Bag(name=f"{split}-{index:05d}", photo=photo, tags=make_tags(present, CLASSES), mask=mask)
        )
    return BagSet(name=f"digits {split}", classes=CLASSES, bags=tuple(bags), tags_from="generator")


def read_singles(count: int, *, seed: int = 0) -> tuple[UInt8, NDArray[np.int64]]:
    """`count` single-digit pictures, uint8 [count, 48, 48, 3], and their digits, int64 [count]."""
    pairs = [make_single(seed, index) for index in range(count)]
    return np.stack([picture for picture, _ in pairs]), np.array([digit for _, digit in pairs])
