"""The photos below a folder, and which of them a tag file means. Files are listed, never opened."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from milseg.data.sources.names import EXACT, PHOTO_SUFFIXES, Ambiguous, Match, NameIndex, is_plain_text
from milseg.data.sources.outputs import is_leftover, is_output
from milseg.errors import UserError


def walk(
    root: Path,
    suffixes: tuple[str, ...],
    *,
    leave_out: Collection[str] = (),
    outputs: list[str] | None = None,
) -> Iterator[str]:
    """The files below `root` with these extensions, relative, with forward slashes, sorted folder by folder.

    Links are followed, each folder once. Hidden files, what operating systems leave (`is_leftover`), and milseg's
    own outputs (`is_output`) below `root` are skipped.

    Args:
        leave_out: real paths of folders to skip as outputs.
        outputs: takes the output folders that were skipped, relative to `root`.

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
        names = [name for name, _ in entries]
        if prefix and (is_output(names) or (leave_out and os.path.realpath(folder) in leave_out)):
            if outputs is not None:
                outputs.append(prefix.rstrip("/"))
            return
        for name, is_folder in entries:
            if is_leftover(name):
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
        leave_out: folders below it that are no input, such as the one that a command writes into.

    Attributes:
        root: the folder.
        names: the photos' paths below it, with forward slashes, sorted.
        outputs: folders below the root that are milseg's own outputs, and were left out.
        unreadable: names of photos that are not plain text (bytes outside UTF-8, control characters): left
            out, as no tag file can name them.

    Raises:
        UserError: no such folder, or one that cannot be read.
    """

    def __init__(
        self, root: Path, names: Iterable[str] | None = None, *, leave_out: Iterable[Path] = ()
    ) -> None:
        if not root.is_dir():
            what = "a file" if root.exists() else "no such folder"
            raise UserError(f"{root}: {what}; expected the folder of the photos")
        self.root = root
        outputs: list[str] = []
        if names is None:
            names = walk(
                root, PHOTO_SUFFIXES, leave_out=set(map(os.path.realpath, leave_out)), outputs=outputs
            )
        found = list(names)
        self.outputs = tuple(outputs)
        self.names = tuple(sorted(name for name in found if is_plain_text(name)))
        self.unreadable = tuple(ascii(name) for name in found if not is_plain_text(name))

    @classmethod
    def at(cls, place: Path | PhotoFiles) -> PhotoFiles:
        """The photos below a folder, or those that were found already."""
        return place if isinstance(place, PhotoFiles) else cls(place)

    @cached_property
    def _index(self) -> NameIndex:
        root = self.root.absolute()
        roots = dict.fromkeys((root.parts[1:], Path(os.path.realpath(root)).parts[1:]))
        return NameIndex(self.names, tuple(roots))

    def match(self, written: str, where: str) -> Match | None:
        """The photo that a written name means (see `NameIndex.find`); None where there is none.

        Args:
            written: a name as a file has it.
            where: file and line, for the message.

        Raises:
            UserError: several photos answer to it.
        """
        found = self._index.find(written)
        if isinstance(found, Ambiguous):
            if found.likeness > EXACT:
                return None
            raise UserError(
                f"{where}: {written[:200]!r} may be {found.names[0]} or {found.names[1]} below {self.root}; write the "
                "path from that folder, with the extension"
            )
        return found

    def find(self, written: str, where: str) -> str | None:
        """The name of the photo that a written name means, as `match` finds it."""
        found = self.match(written, where)
        return None if found is None else found.name

    def why_not(self, written: str) -> str:
        """Why a name means no photo, where one looks like it; "" where none does."""
        return self._index.why_not(written)

    def path(self, name: str) -> Path:
        """The file of one of `names`."""
        return self.root / PurePosixPath(name)
