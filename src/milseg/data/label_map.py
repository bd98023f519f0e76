"""Colour masks with a label map, as CVAT writes "Segmentation mask 1.1", and as `predict --format cvat` does.

labelmap.txt          # label:color_rgb:parts:actions
                      background:0,0,0::
                      cat:128,0,0::
SegmentationClass/a.png      the colour of its class at each pixel
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from milseg.errors import UserError

LABEL_MAP = "labelmap.txt"
ABOVE = 5  # folders above a mask in which its label map may lie
Colour = tuple[int, int, int]


def find_label_map(folder: Path) -> Path | None:
    """The label map of masks in a folder: in it, or in one of the folders above."""
    places = (folder, *folder.absolute().parents)[: ABOVE + 1]
    return next((place / LABEL_MAP for place in places if (place / LABEL_MAP).is_file()), None)


def read_label_map(path: Path) -> dict[str, Colour]:
    """Class names with their colours, in the file's order, which numbers them.

    Raises:
        UserError: it cannot be read, a line of another form, a name or a colour twice, or more than 255 classes.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the label map cannot be read ({error})") from None
    colours: dict[str, Colour] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, rest = line.strip().partition(":")
        values = rest.partition(":")[0].split(",")
        if not name or len(values) != 3 or not all(v.strip().isdecimal() and int(v) < 256 for v in values):
            raise UserError(
                f"{path}, line {number}: {line[:60]!r}; expected NAME:RED,GREEN,BLUE:: as CVAT writes it"
            )
        red, green, blue = map(int, values)
        if name in colours or (red, green, blue) in colours.values():
            raise UserError(
                f"{path}, line {number}: {line[:60]!r} has a name or a colour that another line has too"
            )
        colours[name] = (red, green, blue)
    if not 1 <= len(colours) <= 255:
        raise UserError(f"{path}: {len(colours)} classes; expected 1 to 255")
    return colours


def numbers_of_colours(pixels: NDArray[np.uint8], where: Path) -> NDArray[np.uint8] | None:
    """Class numbers of a colour mask by its label map; None where none lies beside or above it.

    Args:
        pixels: uint8 [H, W, 3] or more channels, of which the first three count.
        where: the mask's file.

    Returns:
        uint8 [H, W], positions in the label map; None too where the pixels are grey and of no colour in the map.

    Raises:
        UserError: as `read_label_map`, or a colour that the label map does not have.
    """
    path = find_label_map(where.parent)
    if path is None:
        return None
    colours = read_label_map(path)
    packed = pixels[..., 0].astype(np.uint32) << 16 | pixels[..., 1].astype(np.uint32) << 8 | pixels[..., 2]
    found, places = np.unique(packed, return_inverse=True)
    numbers = {red << 16 | green << 8 | blue: i for i, (red, green, blue) in enumerate(colours.values())}
    strange = [int(colour) for colour in found if int(colour) not in numbers]
    if strange:
        if (pixels[..., :3] == pixels[..., :1]).all():
            return None
        shown = ",".join(str(strange[0] >> shift & 255) for shift in (16, 8, 0))
        raise UserError(
            f"{where}: the colour {shown} is not in {path}; export masks and label map together, without anti-aliasing"
        )
    table = np.array([numbers[int(colour)] for colour in found], dtype=np.uint8)
    mask: NDArray[np.uint8] = table[places.reshape(packed.shape)]
    return mask
