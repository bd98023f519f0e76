"""Class numbers from the pixels of a mask file, whatever the pixels are; what holds no numbers is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from milseg.data.label_map import numbers_of_colours
from milseg.errors import UserError

EXPECTED = "expected a palette or grey PNG whose values are class numbers (255 = void)"
# Pillow spreads grey values of few bits over 0 to 255, and files of class numbers mean the numbers themselves.
SPREAD = {"L;2": 85, "L;4": 17}


def class_numbers(image: Image.Image, where: Path | str) -> NDArray[np.uint8]:
    """The numbers stored in an opened mask: palette indices, or grey values of 1 to 16 bits; uint8 [H, W].

    Colours with equal red, green and blue are grey; so are pixels whose transparency is the same everywhere. Other
    colours are classes where a label map lies beside the mask or above it (see `milseg.data.label_map`).

    Raises:
        UserError: a JPEG, colours, values above 255 or fractions.
    """
    if image.format == "JPEG":
        raise UserError(f"{where}: a JPEG, which changes class numbers; export the mask as PNG")
    tiles = getattr(image, "tile", None)
    spread = SPREAD.get(str(tiles[0][3]), 1) if tiles else 1
    image.load()
    if image.mode in ("P", "L", "1"):
        # .convert("L") would turn palette indices into brightness: take the raw values.
        return np.asarray(image, dtype=np.uint8) // np.uint8(spread)
    if image.mode == "F" or image.mode.startswith("I"):
        return _small_numbers(np.asarray(image), where)
    pixels = np.asarray(image)
    if isinstance(where, Path) and image.mode in ("RGB", "RGBA"):
        numbers = numbers_of_colours(pixels, where)
        if numbers is not None:
            return numbers
    return _equal_channels(pixels, image.mode, where)


def _small_numbers(values: NDArray[np.generic], where: Path | str) -> NDArray[np.uint8]:
    """Numbers of 16 or 32 bits, or floats, that 8 bits hold as well."""
    numbers = values.astype(np.float64)
    if not (np.isfinite(numbers).all() and (numbers == np.rint(numbers)).all()):
        raise UserError(f"{where}: a mask of fractions, as of probabilities; {EXPECTED}")
    worst = numbers.max(initial=0) if numbers.min(initial=0) >= 0 else numbers.min()
    if not 0 <= worst <= 255:
        raise UserError(
            f"{where}: a mask with values of 16 bits or more that holds {int(worst)}; {EXPECTED}. Export the class "
            "numbers themselves, in 8 bits"
        )
    return numbers.astype(np.uint8)


def _equal_channels(pixels: NDArray[np.uint8], mode: str, where: Path | str) -> NDArray[np.uint8]:
    """Grey values from pixels that have a value a channel."""
    colours = pixels[..., :-1] if mode in ("LA", "La", "PA", "RGBA", "RGBa") else pixels
    alike = mode in ("LA", "RGB", "RGBA") and (colours == colours[..., :1]).all()
    if not alike or (mode != "RGB" and np.ptp(pixels[..., -1])):
        raise UserError(
            f"{where}: a mask with {mode} pixels in colours; {EXPECTED}, or CVAT's labelmap.txt beside colours"
        )
    return np.ascontiguousarray(colours[..., 0])
