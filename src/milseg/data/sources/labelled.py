"""What a reader of any kind finds: which photos are spoken of, and which tags each has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from milseg.data.image import PackedPhoto
from milseg.data.sources.photo_files import PhotoFiles

SPLIT_NAMES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """One photo as a reader found it.

    Attributes:
        image: its path as written, with forward slashes; never absolute, never upwards.
        where: file and line, or what else finds the place again, for messages.
        present, absent, unknown: tags that are said to be so, each in one of the three.
        split: "train", "val" or whatever is written; "" where nothing is.
        seen: False where nobody has looked at the photo yet: all its tags are unknown.
    """

    image: str
    where: str
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    split: str = ""
    seen: bool = True


@dataclass(frozen=True, kw_only=True)
class Labels:
    """All that a reader found.

    Attributes:
        file: the file or folder that says it, for messages.
        photos: the photos on disk.
        rows: one for each photo that is spoken of.
        classes: tags that the source lists by themselves (folders, columns, categories), used or not.
        tags_from: see `BagSet`.
        count_rest: photos on disk without a row are worth a note.
        masks: mask file by `image`, where there are any, and
        stored: what their values mean.
        notes: what is odd, one sentence each.
        packed: photos that lie in shards, by their names among `photos`; empty where photos are files.
    """

    file: Path
    photos: PhotoFiles
    rows: Sequence[Labelled]
    classes: tuple[str, ...] = ()
    tags_from: str
    count_rest: bool = True
    masks: Mapping[str, Path] = field(default_factory=dict)
    stored: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    packed: Mapping[str, PackedPhoto] = field(default_factory=dict)


def split_name(split: str) -> str:
    """A split's name as it is compared.

    >>> split_name("Validation"), split_name("val"), split_name("part 3")
    ('val', 'val', 'part 3')
    """
    plain = split.strip().casefold()
    return SPLIT_NAMES.get(plain, plain)
