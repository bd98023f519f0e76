"""A photo seen nearer or from farther away while training, so that a network knows its classes at every size."""

from __future__ import annotations

from typing import NamedTuple

from milseg.data.image import UInt8, resize_mask, resize_photo


class Zoom(NamedTuple):
    """How a step sees a photo.

    Attributes:
        factor: above 1 the photo is larger, and a window of its own size is cut out; below 1 it is smaller.
        down, across: where the window lies, 0 (top, left) to 1 (bottom, right).
    """

    factor: float = 1.0
    down: float = 0.5
    across: float = 0.5


def zoomed_size(size: tuple[int, int], zoom: Zoom) -> tuple[int, int]:
    """(height, width) of the whole photo under `zoom`, before the window is cut out.

    >>> zoomed_size((240, 320), Zoom(1.5))
    (360, 480)
    """
    return max(1, round(size[0] * zoom.factor)), max(1, round(size[1] * zoom.factor))


def window(size: tuple[int, int], zoom: Zoom) -> tuple[slice, slice]:
    """Rows and columns of the zoomed photo that are seen: no more of it than `size`, its size without zoom.

    >>> window((100, 200), Zoom(2.0, down=1.0, across=0.0))
    (slice(100, 200, None), slice(0, 200, None))
    """
    rows, columns = (
        slice(start, start + side)
        for side, start in (
            (min(full, whole), round(place * max(0, whole - full)))
            for full, whole, place in zip(
                size, zoomed_size(size, zoom), (zoom.down, zoom.across), strict=True
            )
        )
    )
    return rows, columns


def zoomed_photo(photo: UInt8, size: tuple[int, int], zoom: Zoom) -> UInt8:
    """A photo uint8 [H, W, 3] that is trained on at `size`, under `zoom`: uint8, at most `size`."""
    rows, columns = window(size, zoom)
    return resize_photo(photo, zoomed_size(size, zoom))[rows, columns]


def zoomed_mask(mask: UInt8, size: tuple[int, int], zoom: Zoom) -> UInt8:
    """The mask uint8 [H, W] of the same photo under the same zoom."""
    rows, columns = window(size, zoom)
    return resize_mask(mask, zoomed_size(size, zoom))[rows, columns]
