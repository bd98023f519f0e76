"""Colours of classes over photos, which people who see fewer colours can tell apart too."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Colours = NDArray[np.uint8]
_Numbers = NDArray[np.float64]

# Okabe and Ito, "Color Universal Design" (2008): their set without black.
_FIRST = ("e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7")
# Linear RGB as protanopes, deuteranopes and tritanopes see it: Machado, Oliveira, Fernandes, "A Physiologically-based
# Model for Simulation of Color Vision Deficiency" (2009), severity 1.
_VISIONS = (
    np.eye(3),
    np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
)
# Linear RGB to cone responses, and their cube roots to Oklab: Ottosson, "A perceptual color space for image
# processing" (2020).
_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


@lru_cache(maxsize=8)
def _table(count: int) -> Colours:
    first = np.array([list(bytes.fromhex(text)) for text in _FIRST], dtype=np.uint8)
    levels = np.arange(0, 256, 32).clip(max=255)
    others = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3).astype(np.uint8)
    lightness = _seen(others)[0, :, 0]
    # Neither as dark as the shadows of a photo nor as light as its sky.
    others = others[(lightness > 0.4) & (lightness < 0.95)]
    pool = np.concatenate([first, others])
    seen = _seen(pool)
    nearest = np.full(len(pool), np.inf)
    chosen: list[int] = []
    while len(chosen) < count:
        best = len(chosen) if len(chosen) < len(first) else int(nearest.argmax())
        chosen.append(best)
        nearest = np.minimum(nearest, np.linalg.norm(seen - seen[:, best : best + 1], axis=2).min(axis=0))
    return pool[chosen]


def class_colours(count: int) -> Colours:
    """Colours of `count` classes, the background not among them; uint8 [count, 3].

    The first seven are Okabe's and Ito's. Each further one is the farthest, for the eye that sees it worst, from those
    before. Fewer colours are the first of more. Beyond about a dozen classes, names must help.

    >>> class_colours(2).tolist()
    [[230, 159, 0], [86, 180, 233]]
    """
    return _table(count).copy()


def colour_distances(colours: Colours) -> _Numbers:
    """Distance in Oklab of each pair of colours [n, 3] for the eye that tells them apart worst; float64 [n, n]."""
    seen = _seen(colours)
    distances: _Numbers = np.linalg.norm(seen[:, :, None] - seen[:, None], axis=3).min(axis=0)
    return distances


def _seen(colours: Colours) -> _Numbers:
    """Oklab of sRGB colours [n, 3] as each kind of eye sees them, float64 [eyes, n, 3]."""
    values = colours / 255.0
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    eyes = np.stack([(linear @ vision.T).clip(0, 1) for vision in _VISIONS])
    lab: _Numbers = np.cbrt(eyes @ _CONES.T) @ _OKLAB.T
    return lab
