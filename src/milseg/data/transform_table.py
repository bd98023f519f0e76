"""The table of augmentations; loads none before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class TransformRow(NamedTuple):
    """An augmentation.

    Attributes:
        where: its function, (sample, generator, *, options) -> sample.
        about: one line for listings.
        stream: of its random numbers, its own; see `milseg.data.sampler.generator`.
        limits: the lowest and highest value of each option.
    """

    where: str
    about: str
    stream: int
    limits: Mapping[str, tuple[float, float]] = {}


UNIT = (0.0, 1.0)
NONE = "none"

# In the order in which they run: first what changes the size, last what changes colours.
TRANSFORMS: dict[str, TransformRow] = {
    "scale": TransformRow(
        "milseg.data.transforms:scale",
        "random scale and crop; without masks only smaller",
        4,
        {"most": (1.0, 4.0)},
    ),
    "flip": TransformRow("milseg.data.transforms:flip", "mirror half of the photos left to right", 1),
    "jitter": TransformRow(
        "milseg.data.transforms:jitter",
        "other brightness, contrast, saturation and hue",
        5,
        {"brightness": UNIT, "contrast": UNIT, "saturation": UNIT, "hue": (0.0, 0.5)},
    ),
    "grey": TransformRow(
        "milseg.data.transforms:grey", "take the colours away from some photos", 6, {"probability": UNIT}
    ),
    "blur": TransformRow(
        "milseg.data.transforms:blur", "blur some photos", 7, {"probability": UNIT, "most": (0.1, 10.0)}
    ),
}
