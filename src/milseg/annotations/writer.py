"""What every writer shares: the prediction it takes, the record of photos done, checks of names."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from types import TracebackType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from milseg.data.bags import VOID
from milseg.data.image import PackedPhoto, UInt8
from milseg.data.masks import class_counts
from milseg.errors import OutputError, UserError
from milseg.utils.files import check_writable

# Of one part of a name, bytes: file systems take 255, and a temporary name adds its own letters.
LONGEST_PART = 220


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """One photo's mask and what is known with it.

    Attributes:
        name: unique in the run; the photo's path below the input folder without its extension, with "/".
        photo_path: the photo's file, as found, or its place in a shard.
        photo_file: the photo's path below the input folder with its extension, with "/".
        size: (height, width) of the upright photo.
        mask: uint8 [height, width], class numbers and 255 for void.
        tags: (class name, confidence) of the classes the photo is said to show.
        confidence: of the whole mask, 0 to 1.
        scores: float [C, h, w], the coarse map, for the formats that keep it.
        stride, offset: place i of the map is centred on pixel offset + i * stride of the network's input.
        input_size: (height, width) of the network's input, where it is not `size`.
        photo: uint8 [height, width, 3], to save reading the file again.
    """

    name: str
    photo_path: Path | PackedPhoto
    photo_file: str
    size: tuple[int, int]
    mask: UInt8
    tags: Sequence[tuple[str, float]] = ()
    confidence: float
    scores: NDArray[np.floating[Any]] | None = None
    stride: float | None = None
    offset: float | None = None
    input_size: tuple[int, int] | None = None
    photo: UInt8 | None = None

    def score(self, class_name: str) -> float:
        """The confidence of a class's tag; where it has none, that of the whole mask."""
        return round(float(dict(self.tags).get(class_name, self.confidence)), 6)


def check_name(name: str) -> None:
    """Refuse a relative path that could leave the output folder, or that a line of text cannot hold.

    Raises:
        UserError: empty, absolute, with "." or ".." as a part, control characters, not Unicode, or too long.
    """
    parts = name.replace("\\", "/").split("/")
    if any(part in ("", ".", "..") for part in parts) or PureWindowsPath(name).drive:
        raise UserError(
            f"{name!r}: not a path inside the output folder; expected a relative path without '.' and '..'"
        )
    try:
        longest = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError:
        raise UserError(f"{name!r}: a file name that is not Unicode; rename the photo") from None
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise UserError(f"{name!r}: a file name with control characters; rename the photo")
    if longest > LONGEST_PART:
        raise UserError(f"{name!r}: {longest} bytes, expected at most {LONGEST_PART}; rename the photo")


def _collision(name: str, first: str, second: str) -> UserError:
    return UserError(
        f"{first} and {second}: both would be written as {name!r}; rename one of them, or predict them "
        "into different folders"
    )


def check_photos(photos: Iterable[tuple[str, str]], formats: Iterable[type[Writer]] = ()) -> None:
    """Check all names of a run before hours of work depend on them.

    Args:
        photos: (name, photo_file) of each photo.
        formats: the writers to be used; some hold fewer names than others.

    Raises:
        UserError: a name that `check_name` or one of the formats refuses, or two photos with one name.
    """
    seen: dict[str, str] = {}
    writers = list(formats)
    for name, photo_file in photos:
        check_name(name)
        check_name(photo_file)
        for writer in writers:
            writer.check_photo_name(name)
        if seen.setdefault(name, photo_file) != photo_file:
            raise _collision(name, seen[name], photo_file)


def check_prediction(prediction: Prediction, classes: Sequence[str]) -> None:
    """Raise ValueError for a mask of another size or dtype, a number without a class, a nan as confidence."""
    mask = prediction.mask
    if mask.dtype != np.uint8 or mask.shape != tuple(prediction.size) or mask.size == 0:
        raise ValueError(
            f"{prediction.name}: expected a mask uint8 {list(prediction.size)}, "
            f"got {mask.dtype} {list(mask.shape)}"
        )
    numbers = np.flatnonzero(class_counts(mask))
    highest = int(max((number for number in numbers if number != VOID), default=0))
    if highest >= len(classes):
        raise ValueError(
            f"{prediction.name}: holds the number {highest}, but there are {len(classes)} classes"
        )
    if not all(math.isfinite(value) for value in (prediction.confidence, *(c for _, c in prediction.tags))):
        raise ValueError(f"{prediction.name}: a confidence that is not finite")


class Ledger:
    """A file of JSON lines, one a photo done, that survives a kill; only the names are held in memory.

    The first line says what the run was. A last line cut short is taken off: its photo is done again.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.names: dict[str, str] = {}
        first = (json.dumps(header, ensure_ascii=False) + "\n").encode()
        end = self._load(first) if resume and path.exists() else 0
        self._file = path.open("r+b" if end else "wb", buffering=0)
        self._file.truncate(end)
        self._file.seek(end)
        self._end = end
        if not end:
            self._write(first)

    def _load(self, first: bytes) -> int:
        """Read the names; returns where the last whole line ends, 0 where there is none."""
        with self.path.open("rb") as file:
            begun = file.readline()
            if not begun.endswith(b"\n"):
                return 0
            if begun != first:
                raise UserError(
                    f"{self.path}: the run to resume had other classes or options: "
                    f"{begun.decode(errors='replace').strip()}; give it the same ones, or start anew"
                )
            end = file.tell()
            for line in file:
                entry = read_entry(line)
                if entry is None:
                    break
                # One copy of each for all the ledgers of a run.
                self.names[sys.intern(entry["name"])] = sys.intern(entry["photo_file"])
                end += len(line)
        return end

    def _write(self, line: bytes) -> None:
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            # Half a line goes, so that what is written next starts a line of its own.
            self._file.truncate(self._end)
            self._file.seek(self._end)
            raise OutputError(
                f"{self.path}: cannot be written ({error.strerror}); free some space, then resume"
            ) from error
        self._end += len(line)

    def append(self, name: str, photo_file: str, data: Any, **more: Any) -> None:
        """Record a photo as done, with what the finished file needs of it, and more for the record alone."""
        entry = {"name": name, "photo_file": photo_file, "data": data, **more}
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        self._write(line.encode() + b"\n")
        self.names[sys.intern(name)] = sys.intern(photo_file)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The entries, read from the file one at a time, in the order in which they came."""
        return (entry for _, entry in entries_of(self.path))

    def close(self) -> None:
        self._file.close()


def read_entry(line: bytes) -> dict[str, Any] | None:
    """An entry of a ledger; None for a line that is not whole, or is none."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry: dict[str, Any] = json.loads(line)
        return entry if isinstance(entry["name"], str) and isinstance(entry["photo_file"], str) else None
    except (ValueError, KeyError, TypeError):
        return None


def entries_of(ledger: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Where each entry of a ledger begins, in bytes, and the entry; up to the first line that is not whole."""
    with ledger.open("rb") as file:
        at = len(file.readline())
        for line in file:
            entry = read_entry(line)
            if entry is None:
                return
            yield at, entry
            at += len(line)


class Writer(ABC):
    """Takes predictions one at a time and writes one format.

    What `add` has taken is on the disk when it returns, in `out/.parts` and in the photo's own files. `close`
    makes the files that cover the whole run, and leaves the parts, so that a later run with `resume` can add
    photos; whoever adds no more can delete `out/.parts`. As a context manager it closes after a block that
    ended well; after an exception it makes no file.
    """

    format: ClassVar[str]
    needs_scores: ClassVar[bool] = False
    # Files of the whole run, as paths below `out`.
    run_files: ClassVar[tuple[str, ...]] = ()
    # What a person should know of files written otherwise than asked, one sentence a photo.
    notes: list[str]

    def __init__(self, out: Path, classes: Sequence[str], *, resume: bool = False, **options: Any) -> None:
        """See `open_writer`; `options` are what makes two runs of this format differ."""
        self.out, self.classes, self.notes = out, tuple(classes), []
        self._check_classes()
        check_writable(out)
        self.parts = out / ".parts"
        self.parts.mkdir(exist_ok=True)
        self._header = {"format": self.format, "classes": self.classes, **options}
        self._ledger = Ledger(self.parts / f"{self.format}.jsonl", self._header, resume=resume)

    def _check_classes(self) -> None:
        if not 1 <= len(self.classes) <= VOID or len(set(self.classes)) != len(self.classes):
            raise UserError(f"{len(self.classes)} classes; expected 1 to {VOID} different names")
        for name in self.classes:
            if not name.strip() or any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
                raise UserError(f"class {name!r}: expected a name without control characters")

    @property
    def first_label(self) -> int:
        """The lowest number that is a label: 1 where number 0 is the background, else 0."""
        return int(self.classes[0] == "background")

    @property
    def labels(self) -> tuple[str, ...]:
        """The class names without the background."""
        return self.classes[self.first_label :]

    @property
    def done(self) -> Mapping[str, str]:
        """name -> photo_file of the photos taken so far, those of a resumed run included."""
        return self._ledger.names

    @classmethod
    def check_photo_name(cls, name: str) -> None:
        """Raise UserError for a name that this format cannot hold."""
        check_name(name)

    @classmethod
    def files_of(cls, name: str, header: Mapping[str, Any], data: Any = None) -> list[str]:
        """A photo's own files, as paths below `out`.

        Args:
            header: what the ledger says of the run's options.
            data: what `_write` gave for the photo, as the ledger has it.
        """
        return []

    def present(self, mask: UInt8) -> list[int]:
        """The labels' numbers that a mask shows; never the background, never void."""
        counts = class_counts(mask)
        return [number for number in range(self.first_label, len(self.classes)) if counts[number]]

    def add(self, prediction: Prediction) -> bool:
        """Write one photo; returns False, and writes nothing, where this photo was written before.

        Raises:
            UserError: a name that cannot be written, another photo with the same name, or a full disk.
            ValueError: a mask or confidence that no predictor should give (see `check_prediction`).
        """
        name, photo_file = prediction.name, prediction.photo_file
        if name in self.done:
            if self.done[name] != photo_file:
                raise _collision(name, self.done[name], photo_file)
            return False
        check_photos([(name, photo_file)], [type(self)])
        check_prediction(prediction, self.classes)
        try:
            data = self._write(prediction)
        except BaseException:
            # Nothing half-made stays: a mask without its overlay would be taken for a finished one.
            for file in self.files_of(name, self._header):
                with suppress(OSError):
                    (self.out / file).unlink(missing_ok=True)
            raise
        self._ledger.append(name, photo_file, data)
        return True

    def close(self) -> list[Path]:
        """Make the files that cover the whole run; returns what users open. May be called again."""
        self._ledger.close()
        return self._finish()

    def place(self, folder: Path, name: str, suffix: str) -> Path:
        """The file of a photo below `folder`, its own folder made."""
        path = folder / f"{name}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @abstractmethod
    def _write(self, prediction: Prediction) -> Any:
        """Write the photo's own files, if any; returns what `_finish` needs, as JSON values."""

    @abstractmethod
    def _finish(self) -> list[Path]:
        """Write the files of the whole run from the ledger."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._ledger.close()
