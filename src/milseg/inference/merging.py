"""One prediction on several machines: which photos are whose, and one folder from all of their folders.

Shard i of n writes into OUT/shards/i-of-n, a whole prediction folder of its own, so that no two processes ever write
one file; merging moves the photos' files into OUT and joins the records, from which the files of the whole run are
made. The records end in the order of the photos' paths, so that the files do not tell how many shards there were.
"""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from milseg.annotations import FORMATS, open_writer, writer_class
from milseg.annotations.cleanup import read_header
from milseg.annotations.writer import check_name, entries_of
from milseg.errors import UserError
from milseg.inference.prediction_files import (
    FAILED,
    LABELS,
    LEDGER,
    TABLE,
    photos_of,
    read_failed,
    write_failed,
    write_table,
)
from milseg.utils.files import atomic_path, check_writable, claim_folder, remove_halves, write_json

FOLDER = "shards"


@dataclass(frozen=True)
class Shard:
    """Part `number` of `count`, from 1."""

    number: int
    count: int

    def holds(self, photo: str) -> bool:
        """Whether a photo, by its path below the input folder, is this shard's.

        By a checksum of the path: the same on every machine, and photos that come later move no other.

        >>> [Shard(number, 2).holds("a.jpg") for number in (1, 2)]
        [True, False]
        """
        return zlib.crc32(photo.encode("utf-8", "surrogateescape")) % self.count == self.number - 1

    def folder(self, out: Path) -> Path:
        return out / FOLDER / f"{self.number}-of-{self.count}"


def parse_shard(text: str) -> Shard:
    """A shard from `2/8`.

    >>> parse_shard("2/8")
    Shard(number=2, count=8)
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {text!r}: expected I/N with I from 1 to N, such as 2/8")
    return Shard(int(match[1]), int(match[2]))


def shard_folders(out: Path) -> list[Path]:
    """The folders of shards below `out`, by count and number."""
    found = []
    for folder in (out / FOLDER).glob("*-of-*"):
        match = re.fullmatch(r"(\d+)-of-(\d+)", folder.name)
        if match and folder.is_dir():
            found.append((int(match[2]), int(match[1]), folder))
    return [folder for _, _, folder in sorted(found)]


def check_whole(out: Path) -> None:
    """Stop where shards of `out` are missing or not finished.

    Raises:
        UserError: it names them.
    """
    folders = shard_folders(out)
    for folder in folders:
        if not (folder / TABLE).is_file():
            number, _, count = folder.name.partition("-of-")
            raise UserError(
                f"{folder}: this shard is not finished; run it again with --shard {number}/{count} --resume, then merge"
            )
    for count in sorted({folder.name.partition("-of-")[2] for folder in folders}, key=int):
        there = {int(f.name.partition("-of-")[0]) for f in folders if f.name.endswith(f"-of-{count}")}
        missing = [f"{number}/{count}" for number in range(1, int(count) + 1) if number not in there]
        if missing:
            raise UserError(
                f"{out}: no folder of shard {', '.join(missing[:10])}; run it with --shard, or bring its folder to "
                f"{out / FOLDER}, then merge"
            )


def merge_folders(folders: Sequence[Path], out: Path | None, *, resume: bool = False) -> dict[str, int]:
    """`milseg merge`: the shards below one folder in place, or several folders into `out`.

    Raises:
        UserError: no shards, some that are missing or not finished, or an output folder that is in use.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; expected one that milseg predict wrote")
        check_whole(folder)
    if out is None:
        if len(folders) > 1:
            raise UserError("several folders to merge: say where to with --out")
        out, parts = folders[0], shard_folders(folders[0])
        if not parts:
            raise UserError(f"{out}: holds no folder {FOLDER}/ of milseg predict --shard; nothing to merge")
    else:
        own = [folder for folder in folders if (folder / ".parts" / LEDGER).is_file()]
        parts = [*own, *(part for folder in folders for part in shard_folders(folder))]
        claim_folder(out, resume=resume, overwrite=False)
    return merge(parts, out)


def merge(folders: Sequence[Path], out: Path, *, order: Mapping[str, int] | None = None) -> dict[str, int]:
    """Join prediction folders of one model and one set of options into `out`; returns counts: photos, failed.

    What is below `out` itself is moved, what lies elsewhere is copied and stays. Cut short, it can be done again.

    Args:
        order: of the photos by name, in the files of the whole run; None takes the order of their paths.

    Raises:
        UserError: nothing to merge, other models, classes, options or formats, or a full disk.
    """
    check_writable(out)
    names = [name for name in FORMATS if any(_record(folder, f"{name}.jsonl") for folder in (*folders, out))]
    if not names:
        raise UserError(f"{out}: no prediction to merge in {', '.join(map(str, folders)) or FOLDER}")
    (out / ".parts").mkdir(exist_ok=True)
    classes: list[str] = []
    for name in names:
        header = _same_header([*folders, out], f"{name}.jsonl")
        classes = list(header["classes"])
        for folder in folders:
            ledger = folder / ".parts" / f"{name}.jsonl"
            for _, entry in entries_of(ledger) if ledger.is_file() else ():
                check_name(entry["name"])
                for file in writer_class(name).files_of(entry["name"], header, entry.get("data")):
                    _bring(folder, out, file)
        _join([*folders, out], f"{name}.jsonl", order)
    _same_header([*folders, out], LEDGER)
    _join([*folders, out], LEDGER, order)
    write_json(out / LABELS, {"classes": classes})
    for name in names:
        header = read_header(out / ".parts" / f"{name}.jsonl") or {}
        options = {key: value for key, value in header.items() if key not in ("format", "classes")}
        open_writer(name, out, classes, resume=True, **options).close()
    write_table(out)
    done = set(photos_of(out / ".parts" / LEDGER))
    failed = {
        photo: reason
        for folder in (out, *folders)
        for photo, reason in read_failed(folder).items()
        if os.path.splitext(photo)[0] not in done
    }
    write_failed(out, failed)
    for folder in folders:
        if folder.resolve().is_relative_to((out / FOLDER).resolve()):
            _remove(folder, names)
    return {"photos": len(done), "failed": len(failed)}


def _record(folder: Path, ledger: str) -> bool:
    return read_header(folder / ".parts" / ledger) is not None


def _same_header(folders: Sequence[Path], ledger: str) -> dict[str, list[str]]:
    """The header that all folders' records have."""
    headers = [(folder, read_header(folder / ".parts" / ledger)) for folder in folders]
    there = [(folder, header) for folder, header in headers if header is not None]
    # The last one is where they are merged to, which may be empty.
    lacking = [folder for folder, header in headers[:-1] if header is None]
    if lacking:
        raise UserError(
            f"{lacking[0]}: has no record {ledger}, which {there[0][0]} has; predict all of them with the same --format"
        )
    for folder, header in there[1:]:
        if header != there[0][1]:
            raise UserError(
                f"{there[0][0]} and {folder}: predicted with other models, classes or options "
                f"({there[0][1]} and {header}); only parts of one prediction can be merged"
            )
    return there[0][1]


def _bring(folder: Path, out: Path, name: str) -> None:
    """A photo's file from a shard's folder; where it came over before a stop, it is there already."""
    source, target = folder / name, out / name
    if not source.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if folder.resolve().is_relative_to(out.resolve()):
        os.replace(source, target)
    elif source.resolve() != target.resolve():
        with atomic_path(target, sync=False) as temporary:
            shutil.copyfile(source, temporary)


def _join(folders: Sequence[Path], ledger: str, order: Mapping[str, int] | None) -> None:
    """The record of all photos in the last folder, each once, in order."""
    files = [folder / ".parts" / ledger for folder in folders if _record(folder, ledger)]
    found: dict[str, tuple[int, str, int, int]] = {}
    for number, path in enumerate(files):
        for at, entry in entries_of(path):
            name, photo = entry["name"], entry["photo_file"]
            place = -1 if order is None else order.get(name, len(order))
            before = found.setdefault(name, (place, photo, number, at))
            if before[1] != photo:
                raise UserError(f"{before[1]} and {photo}: both are written as {name!r}; rename one of them")
    opened = [path.open("rb") for path in files]
    try:
        with (
            atomic_path(folders[-1] / ".parts" / ledger) as temporary,
            temporary.open("wb") as joined,
        ):
            joined.write(opened[0].readline())
            for _, _, number, at in sorted(found.values()):
                opened[number].seek(at)
                joined.write(opened[number].readline())
    finally:
        for file in opened:
            file.close()


def _remove(folder: Path, names: Sequence[str]) -> None:
    """A shard's folder whose files have been moved; what is not milseg's stays."""
    for name in names:
        writer = writer_class(name)
        for file in (*writer.run_files, f".parts/{name}.jsonl"):
            (folder / file).unlink(missing_ok=True)
    for file in (f".parts/{LEDGER}", TABLE, FAILED, LABELS):
        (folder / file).unlink(missing_ok=True)
    remove_halves(folder, but=FOLDER)
    for below, _, _ in sorted(os.walk(folder), reverse=True):
        with suppress(OSError):  # not empty
            os.rmdir(below)
    with suppress(OSError):
        os.rmdir(folder.parent)
