"""Masks over photos: the photo tinted with the classes' colours, and their names on it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

from milseg.data.bags import BACKGROUND, VOID
from milseg.data.class_colours import class_colours
from milseg.data.image import UInt8

BLOCK = 2**20  # pixels of a large mask that are tinted together
COARSE = 128  # cells of the longer side of the mask in which places for names are looked for
SMALLEST = 100  # a photo whose shorter side has fewer pixels has no room for names
LETTER_SHARE = 1 / 22  # height of a name, of the photo's shorter side


def has_background(classes: Sequence[str]) -> bool:
    """Return whether value 0 of a mask of these classes is the background."""
    return len(classes) > 0 and classes[BACKGROUND] == "background"


def mask_colours(classes: Sequence[str]) -> UInt8:
    """Return the colour of each value of a mask, uint8 [256, 3]: black for the background, white for void.

    >>> mask_colours(["background", "cat"])[[0, 1, 255]].tolist()
    [[0, 0, 0], [230, 159, 0], [255, 255, 255]]
    """
    first = 1 if has_background(classes) else 0
    colours = np.zeros((256, 3), dtype=np.uint8)
    colours[first:VOID] = class_colours(VOID - first)
    colours[VOID] = 255
    return colours


def overlay(
    photo: UInt8, mask: UInt8, classes: Sequence[str], *, alpha: float = 0.5, names: bool = True
) -> UInt8:
    """Return the photo tinted with the classes' colours, uint8 [H, W, 3]; background stays clear, void goes to white.

    Args:
        photo: uint8 [H, W, 3].
        mask: uint8 [H, W], class numbers and 255 for void.
        classes: the mask's classes; number 0 stays clear where it is named "background".
        alpha: share of the colour, 0 to 1.
        names: write the name of each class into its largest region; with alpha 0 and on small photos none is written.

    Raises:
        ValueError: mask and photo differ in size, or alpha is outside 0 to 1.
    """
    if photo.shape[:2] != mask.shape:
        raise ValueError(f"photo [H, W] = {list(photo.shape[:2])} and mask {list(mask.shape)} differ")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha is {alpha}; expected 0 to 1")
    tinted = np.empty_like(photo)
    tints = _tints(alpha, tuple(classes))
    # In bands: an index takes eight bytes a pixel.
    step = max(1, BLOCK // mask.shape[1])
    for start in range(0, len(mask), step):
        rows = slice(start, start + step)
        number = mask[rows].astype(np.intp) << 8
        for channel, table in enumerate(tints):
            np.take(table, number + photo[rows, :, channel], out=tinted[rows, :, channel])
    if names and alpha and min(mask.shape) >= SMALLEST:
        _write_names(tinted, mask, classes)
    return tinted


@lru_cache(maxsize=4)
def _tints(alpha: float, classes: tuple[str, ...]) -> tuple[UInt8, ...]:
    """Return for each channel the tinted value of every number and value, uint8 [256 * 256]."""
    colours = mask_colours(classes)
    values = np.arange(256)
    tables = []
    for channel in range(3):
        table = np.rint((1.0 - alpha) * values[None] + alpha * colours[:, channel, None]).astype(np.uint8)
        if has_background(classes):
            table[0] = values
        tables.append(table.ravel())
    return tuple(tables)


def name_centres(mask: UInt8, classes: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return each class that a mask shows with a row and a column deep inside it; the background is left out.

    >>> mask = np.zeros((6, 6), np.uint8)
    >>> mask[1:4, 2:5] = 1
    >>> name_centres(mask, ["background", "cat"])
    [('cat', 2, 3)]
    """
    step = -(-max(mask.shape) // COARSE)
    coarse = np.pad(mask[step // 2 :: step, step // 2 :: step], 1, constant_values=VOID)
    centres = []
    for number in np.unique(coarse).tolist():
        if number == VOID or number >= len(classes) or (number == 0 and has_background(classes)):
            continue
        depth = distance_transform_edt(coarse == number)
        row, column = np.unravel_index(int(np.argmax(depth)), coarse.shape)
        centres.append(
            (classes[number], (int(row) - 1) * step + step // 2, (int(column) - 1) * step + step // 2)
        )
    return centres


def _write_names(picture: UInt8, mask: UInt8, classes: Sequence[str]) -> None:
    """Write class names into a picture uint8 [H, W, 3], in place; white with a dark rim, so that they show on all."""
    height, width = mask.shape
    letters = max(11, round(LETTER_SHARE * min(height, width)))
    rim = max(1, letters // 9)
    font = _font(letters)
    for name, row, column in name_centres(mask, classes):
        name = " ".join(name.split())
        left, top, right, bottom = (round(side) for side in font.getbbox(name, stroke_width=rim))
        # Only the name's own box becomes a Pillow image: a photo may have hundreds of megapixels.
        y = min(max(0, row - (bottom - top) // 2), max(0, height - (bottom - top)))
        x = min(max(0, column - (right - left) // 2), max(0, width - (right - left)))
        box = picture[y : y + bottom - top, x : x + right - left]
        patch = Image.fromarray(np.ascontiguousarray(box))
        ImageDraw.Draw(patch).text(
            (-left, -top), name, "white", font, stroke_width=rim, stroke_fill=(20, 20, 20)
        )
        box[:] = np.asarray(patch)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font of the figures, which has the letters of many languages; it comes with matplotlib."""
    found = importlib.util.find_spec("matplotlib")
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans-Bold.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def legend(
    mask: UInt8 | Iterable[UInt8], classes: Sequence[str]
) -> list[tuple[int, str, tuple[int, int, int]]]:
    """Return number, name and colour of each class that appears in one mask or in several; void is last.

    >>> legend(np.array([[0, 2]], dtype=np.uint8), ["background", "cat", "dog"])
    [(0, 'background', (0, 0, 0)), (2, 'dog', (86, 180, 233))]
    """
    masks = [mask] if isinstance(mask, np.ndarray) else mask
    numbers: set[int] = set()
    for each in masks:
        numbers.update(np.unique(each).tolist())
    colours = mask_colours(classes)
    rows: list[tuple[int, str, tuple[int, int, int]]] = []
    for number in sorted(numbers):
        name = "void" if number == VOID else classes[number] if number < len(classes) else f"number {number}"
        red, green, blue = colours[number].tolist()
        rows.append((number, name, (red, green, blue)))
    return rows
