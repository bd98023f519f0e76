"""What a reader gives: an image's values as its file stores them, and how they become RGB of 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from milseg.data.types import UInt8
from milseg.data.value_range import Span, ValueRanges, photo_range, span_of, to_eight_bits

# EXIF orientation to how the stored rows and columns become upright: transposed, then flipped along these axes.
# Exif 2.3, 4.6.4.
UPRIGHT: dict[int, tuple[bool, tuple[int, ...]]] = {
    2: (False, (1,)),
    3: (False, (0, 1)),
    4: (False, (0,)),
    5: (True, ()),
    6: (True, (1,)),
    7: (True, (0, 1)),
    8: (True, (0,)),
}


class Refused(Exception):
    """A file that a reader does not read: what was found, what was expected, the way out, without the file's name."""


class NotAnImage(Exception):
    """A file that no reader knows."""


class CheckSize(Protocol):
    """Raises where a picture is too large to be decoded.

    Args:
        width, height: of the picture, or of a tile inside it.
        weight: how many pixels of 8 bytes one of its pixels takes.
    """

    def __call__(self, width: int, height: int, weight: int = 1, /) -> None: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Raster:
    """An image's values, upright.

    Attributes:
        values: [H, W, C] of any number type; one band (grey) or three (red, green, blue).
        alpha: float32 [H, W], 0 (clear) to 1; None where the image has none, or it is on white already.
        nodata: the value that stands for "not measured"; None where the file names none.
        notes: what was left out or is odd, each a few words.
        format: Pillow's name for the file's format.
    """

    values: NDArray[Any]
    alpha: NDArray[np.float32] | None = None
    nodata: float | None = None
    notes: tuple[str, ...] = ()
    format: str = ""

    @property
    def span(self) -> Span | None:
        """The span of its values; None for 8 bits."""
        return span_of(self.values, self.nodata)


def upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn an array [H, W, ...] as the EXIF orientation says; an unknown one leaves it.

    >>> upright(np.array([[3, 6], [2, 5], [1, 4]]), 6).tolist()
    [[1, 2, 3], [4, 5, 6]]
    """
    transposed, axes = UPRIGHT.get(orientation, (False, ()))
    return np.flip(values.swapaxes(0, 1) if transposed else values, axes)


def to_rgb(raster: Raster, ranges: ValueRanges | None = None) -> UInt8:
    """RGB of 8 bits, uint8 [H, W, 3]; transparency goes on white.

    Args:
        ranges: of the set that the photo is in; a kind of values without one gets the photo's own range.
    """
    pixels = raster.values
    if pixels.dtype != np.uint8:
        pixels = to_eight_bits(pixels, photo_range(pixels, raster.nodata, ranges), raster.nodata)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    if raster.alpha is not None:
        alpha = raster.alpha[..., None]
        pixels = np.rint(pixels * alpha + 255.0 * (1.0 - alpha)).astype(np.uint8)
    return np.asarray(pixels)
