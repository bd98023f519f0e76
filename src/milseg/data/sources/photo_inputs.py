"""The photos that a command is given to work on: files, folders, patterns, shards."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from milseg.config.source import PLAIN_READING, ShardReading
from milseg.data.shards.read import holds_tars, names_shards, open_shards
from milseg.data.sources.names import PHOTO_SUFFIXES, without_suffix
from milseg.data.sources.outputs import is_leftover, is_output
from milseg.data.sources.photo_files import walk
from milseg.data.types import PackedPhoto, following
from milseg.errors import UserError
from milseg.utils.files import did_you_mean


@dataclass(frozen=True, slots=True)
class PhotoFile:
    """A photo to segment, small as there may be millions of them.

    Attributes:
        place: the folder it was found in; for a photo in a shard, its place there.
        below: its path below that folder, or its name in the shard.
    """

    place: Path | PackedPhoto
    below: str

    @property
    def path(self) -> Path | PackedPhoto:
        return self.place / self.below if isinstance(self.place, Path) else self.place

    @property
    def name(self) -> str:
        return without_suffix(self.below)


def find_photos(
    inputs: Iterable[str], shards: ShardReading = PLAIN_READING, *, leave_out: Sequence[Path] = ()
) -> list[PhotoFile]:
    """The photos of files, folders (with all below them), patterns and shards, each once, in order.

    Hidden files, leftovers of operating systems and milseg's own outputs below a folder are left out.

    Args:
        leave_out: folders that are no input, such as the one that a command writes into.

    Raises:
        UserError: an input that is not there, matches nothing, or holds no photo; two photos with one path.
    """
    lists = [_photos_of(given, shards, leave_out) for given in inputs]
    if len(lists) == 1:
        return lists[0]  # a folder or a pattern gives each once
    found: dict[str, PhotoFile] = {}
    for photo in (photo for photos in lists for photo in photos):
        key = os.path.abspath(photo.path) if isinstance(photo.path, Path) else str(photo.path)
        found.setdefault(key, photo)
    places: dict[str, PhotoFile] = {}
    for photo in found.values():
        other = places.setdefault(photo.below, photo)
        if other is not photo:
            raise UserError(
                f"{other.path} and {photo.path}: both would be written as {photo.name!r}; give the folder above them, "
                "or predict them into different folders"
            )
    return list(found.values())


def _photos_of(given: str, shards: ShardReading, leave_out: Sequence[Path]) -> list[PhotoFile]:
    path = Path(given)
    if names_shards(given):
        return _photos_in_shards(given, shards)
    if path.is_dir():
        out = set(map(os.path.realpath, leave_out))
        names = sorted(walk(path, PHOTO_SUFFIXES, leave_out=out))
        if not names and holds_tars(path):
            return _photos_in_shards(given, shards)
        if not names:
            raise UserError(
                f"{given}: no photo in this folder; expected files ending in {', '.join(PHOTO_SUFFIXES)}"
            )
        return [PhotoFile(path, name) for name in names]
    if path.is_file():
        return [PhotoFile(path.parent, path.name)]
    matches = sorted(Path(match) for match in glob.glob(given, recursive=True))
    base = Path(*_until_wildcard(path))
    files = [file for file in matches if file.suffix.lower() in PHOTO_SUFFIXES and file.is_file()]
    files = _inputs_only(files, base, leave_out)
    if not files:
        raise UserError(
            f"{given}: no such photo or folder, and no photo matches it as a pattern{did_you_mean(Path(given))}"
        )
    return [PhotoFile(base, file.relative_to(base).as_posix()) for file in files]


def _photos_in_shards(given: str, shards: ShardReading) -> list[PhotoFile]:
    return [PhotoFile(photo, name) for name, photo, _ in open_shards(given, shards).samples()]


def _inputs_only(files: Sequence[Path], base: Path, leave_out: Sequence[Path]) -> list[Path]:
    """A pattern's matches without leftovers and without those in folders that are no input."""
    out = set(map(os.path.realpath, leave_out))

    @cache
    def is_input(folder: Path) -> bool:
        if folder == base:
            return True
        if is_leftover(folder.name) or os.path.realpath(folder) in out or is_output(os.listdir(folder)):
            return False
        return is_input(folder.parent)

    return [file for file in files if not is_leftover(file.name) and is_input(file.parent)]


def _until_wildcard(path: Path) -> list[str]:
    parts: list[str] = []
    for part in path.parts:
        if any(letter in part for letter in "*?["):
            break
        parts.append(part)
    return parts


def fetched(photos: Sequence[PhotoFile]) -> Iterator[PhotoFile]:
    """The same; where they lie in shards elsewhere, the next shard comes while this one is worked on."""
    coming = following([photo.place for photo in photos])
    for number, photo in enumerate(photos):
        if number in coming:
            coming[number].soon()
        yield photo
