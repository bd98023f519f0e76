"""Pixels, and photos that lie inside another file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]

MAX_PIXELS = 100_000_000


class PackedPhoto(ABC):
    """A photo inside another file, as in a tar shard. `str` of it names both, for messages; it can be pickled.

    Attributes:
        length: of the photo's own bytes.
        suffix: as a file of its own would end, such as ".jpg".
        group: what the photos share that lie together, in the order they lie in.
    """

    length: int
    suffix: str
    group: str

    @abstractmethod
    def read(self) -> bytes:
        """The bytes of the photo's file.

        Raises:
            UserError: they cannot be read.
        """

    def soon(self) -> None:  # noqa: B027
        """Begin to fetch it, where it is elsewhere: it will be read soon."""


def following(photos: Sequence[object]) -> dict[int, PackedPhoto]:
    """By the place of each shard's first photo the first photo of the next shard, for photos that are read in order."""
    groups = [photo.group if isinstance(photo, PackedPhoto) else None for photo in photos]
    firsts = [i for i, group in enumerate(groups) if group and (i == 0 or groups[i - 1] != group)]
    found = {here: photos[there] for here, there in pairwise(firsts)}
    return {here: photo for here, photo in found.items() if isinstance(photo, PackedPhoto)}
