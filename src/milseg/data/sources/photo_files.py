"""The photos below a folder, and which of them a tag file means. Files are listed, never opened."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from milseg.data.sources.tag_file import PHOTO_SUFFIXES, is_plain_text
from milseg.errors import UserError

# Folders that usually hold the photos themselves, whatever is in them.
PLAIN_FOLDERS = ("images", "JPEGImages", "photos", "img", "imgs")
# VOC's masks are PNG files, and archives made on some systems carry a shadow of each file.
NOT_PHOTOS = ("SegmentationClass", "SegmentationObject", "__MACOSX")


def without_suffix(name: str) -> str:
    """A path without a photo's extension; other endings stay.

    >>> without_suffix("a/b.c.JPG"), without_suffix("a/site.12")
    ('a/b.c', 'a/site.12')
    """
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in PHOTO_SUFFIXES else name


def walk(root: Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """The files below `root` with these extensions, relative, with forward slashes, sorted folder by folder.

    Links are followed, each folder once; what begins with a dot, or is in `NOT_PHOTOS`, is skipped.

    Raises:
        UserError: a folder that cannot be read.
    """
    seen: set[tuple[int, int]] = set()

    def below(folder: str, prefix: str) -> Iterator[str]:
        try:
            here = os.stat(folder)
            if (here.st_dev, here.st_ino) in seen:
                return
            seen.add((here.st_dev, here.st_ino))
            with os.scandir(folder) as scan:
                entries = sorted((entry.name, entry.is_dir()) for entry in scan)
        except OSError as error:
            raise UserError(
                f"{folder}: the folder cannot be read ({error.strerror}); make it readable"
            ) from None
        for name, is_folder in entries:
            if name.startswith(".") or name in NOT_PHOTOS:
                continue
            if is_folder:
                yield from below(f"{folder}/{name}", f"{prefix}{name}/")
            elif name.lower().endswith(suffixes):
                yield prefix + name

    yield from below(str(root), "")


class PhotoFiles:
    """The photos below a folder.

    Args:
        root: the folder.
        names: the photos to take, by their paths below it; None lists the folder.

    Attributes:
        root: the folder.
        names: the photos' paths below it, with forward slashes, sorted.
        unreadable: names of photos that are not plain text (bytes outside UTF-8, control characters): left
            out, as no tag file can name them.

    Raises:
        UserError: no such folder, or one that cannot be read.
    """

    def __init__(self, root: Path, names: Iterable[str] | None = None) -> None:
        if not root.is_dir():
            what = "a file" if root.exists() else "no such folder"
            raise UserError(f"{root}: {what}; expected the folder of the photos")
        self.root = root
        found = list(walk(root, PHOTO_SUFFIXES) if names is None else names)
        self.names = tuple(sorted(name for name in found if is_plain_text(name)))
        self.unreadable = tuple(ascii(name) for name in found if not is_plain_text(name))

    @classmethod
    def at(cls, place: Path | PhotoFiles) -> PhotoFiles:
        """The photos below a folder, or those that were found already."""
        return place if isinstance(place, PhotoFiles) else cls(place)

    @cached_property
    def _all(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def _by_last(self) -> dict[str, list[str]]:
        """Photos by file name, with and without the extension."""
        table: dict[str, list[str]] = {}
        for name in self.names:
            last = name.rpartition("/")[2]
            for key in {last, without_suffix(last)}:
                table.setdefault(key, []).append(name)
        return table

    def find(self, image: str, where: str) -> str | None:
        """The photo that a tag file calls `image`, as one of `names`; None where there is none.

        In this order: that path below the root; below one of `PLAIN_FOLDERS`; the only photo whose path ends
        so; the path without its first folders, when the last of these is the root itself. The extension may
        be left out.

        Args:
            image: a relative path, as `relative_path` gives it.
            where: file and line, for the message.

        Raises:
            UserError: several photos answer to it.
        """
        if image in self._all:
            return image
        for folder in PLAIN_FOLDERS:
            if f"{folder}/{image}" in self._all:
                return f"{folder}/{image}"
        last = image.rpartition("/")[2]
        tail = "/" + image
        found = [name for name in self._by_last.get(last, ()) if f"/{name}".endswith(tail)]
        found = found or [
            name for name in self._by_last.get(last, ()) if f"/{without_suffix(name)}".endswith(tail)
        ]
        if len(found) > 1:
            raise UserError(
                f"{where}: {image!r} may be {found[0]} or {found[1]} below {self.root}; write the path from "
                "that folder, with the extension"
            )
        if not found and "/" in image:
            first, _, rest = image.partition(f"{self.root.absolute().name}/")
            if rest in self._all and (not first or first.endswith("/")):
                return rest
        return found[0] if found else None

    def path(self, name: str) -> Path:
        """The file of one of `names`."""
        return self.root / PurePosixPath(name)
