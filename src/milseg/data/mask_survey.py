"""Masks looked at together before they count: what a single mask cannot show.

A folder of 0 and 255 alone reads as background and void, and calling everything background would score 100. Masks that
were made smaller with smooth edges, saved with another palette each, or numbered otherwise than said are wrong without
any one of them being damaged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from milseg.data.bags import VOID
from milseg.data.image import UInt8, open_mask
from milseg.utils.parallel import prefetch_map, processors

Counts = NDArray[np.int64]


@dataclass(kw_only=True)
class MaskSurvey:
    """What a set of masks holds together.

    Attributes:
        masks: how many were looked at.
        pixels: of each value, over the set, [256].
        showing: masks that show each value, [256].
        example: the first mask that shows a value.
        changes, between: neighbours in a row that differ; those of them at a value between its two neighbours.
        colours: what each value that is shown looks like in the palettes, with an example of each look.
        one_bit: masks of one bit a pixel.
    """

    masks: int = 0
    pixels: Counts = field(default_factory=lambda: np.zeros(256, np.int64))
    showing: Counts = field(default_factory=lambda: np.zeros(256, np.int64))
    example: dict[int, str] = field(default_factory=dict)
    changes: int = 0
    between: int = 0
    colours: dict[int, dict[tuple[int, ...], str]] = field(default_factory=dict)
    one_bit: int = 0

    def add(self, where: str, mask: UInt8, header: Header | None = None) -> None:
        """Count one more mask."""
        counts = np.bincount(mask.ravel(), minlength=256)
        values = np.flatnonzero(counts).tolist()
        self.masks += 1
        self.pixels += counts
        self.showing[values] += 1
        for value in values:
            self.example.setdefault(value, where)
        changes, between = smooth_changes(mask)
        self.changes += changes
        self.between += between
        if header is not None:
            self.one_bit += header.one_bit
            for value in values if header.palette else ():
                self.colours.setdefault(value, {}).setdefault(header.palette[value], where)

    @property
    def values(self) -> list[int]:
        """The values that any mask shows."""
        return [int(value) for value in np.flatnonzero(self.showing)]


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a mask file says beside its numbers: the palette's 256 colours, where it has one; one bit a pixel."""

    palette: Sequence[tuple[int, ...]] = ()
    one_bit: bool = False


def mask_header(path: Path) -> Header | None:
    """The header of a mask file; None where there is none, which reading the mask will tell."""
    try:
        with Image.open(path) as image:
            colours = image.getpalette() if image.mode == "P" else None
            one_bit = image.mode == "1"
    except Exception:  # whatever is wrong with the file is told where its pixels are read
        return None
    if not colours:
        return Header(one_bit=one_bit)
    colours += [0] * (768 - len(colours))
    return Header(palette=[tuple(colours[i : i + 3]) for i in range(0, 768, 3)], one_bit=one_bit)


def smooth_changes(mask: UInt8) -> tuple[int, int]:
    """How many neighbours in a row differ, and at how many pixels a row goes up or down twice in a run.

    Void has no place in the order of the classes: it counts for neither.

    >>> smooth_changes(np.array([[0, 0, 9, 9]], np.uint8)), smooth_changes(np.array([[0, 3, 6, 9]], np.uint8))
    ((1, 0), (3, 2))
    """
    steps = np.diff(mask.astype(np.int16), axis=1)
    known = mask != VOID
    steps[~(known[:, 1:] & known[:, :-1])] = 0
    rising, falling = steps > 0, steps < 0
    runs = np.count_nonzero(rising[:, 1:] & rising[:, :-1]) + np.count_nonzero(
        falling[:, 1:] & falling[:, :-1]
    )
    return int(np.count_nonzero(steps)), int(runs)


def read_mask(item: tuple[str, Path | UInt8]) -> tuple[str, UInt8, Header | None]:
    """A mask's name for messages, its numbers, and its header where it is a file that has one.

    Raises:
        UserError: a mask that cannot be read.
    """
    name, mask = item
    if not isinstance(mask, Path):
        return name, mask, None
    return str(mask), open_mask(mask), mask_header(mask) if mask.suffix.lower() != ".mat" else None


def survey(masks: Iterable[Path]) -> MaskSurvey:
    """Read every mask file once, several at the same time, and count what the set holds.

    Raises:
        UserError: a mask that cannot be read.
    """
    found = MaskSurvey()
    items = ((str(path), path) for path in masks)
    for _, looked_at in prefetch_map(read_mask, items, workers=min(4, processors())):
        found.add(*looked_at)
    return found
