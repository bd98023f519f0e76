"""Take away what an earlier run wrote into a folder, by its own records, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from milseg.annotations import FORMATS, writer_class
from milseg.annotations.writer import check_name, entries_of
from milseg.errors import UserError
from milseg.utils.files import atomic_path


def remove_earlier(out: Path, *, keep: Collection[Path] = ()) -> int:
    """Remove the files that earlier writers recorded below `out`; returns how many.

    Goes by the ledgers in `out/.parts`: of each format the files of the whole run and those of each photo named
    there, then the ledger, so that a removal cut short can go on. Folders that became empty go too. What no ledger
    names stays, as does anything that lies outside `out` or is reached by a link to there.

    Args:
        keep: files that stay in any case, resolved.
    """
    root = out.resolve()
    count = 0
    for name in FORMATS:
        ledger = out / ".parts" / f"{name}.jsonl"
        header = read_header(ledger)
        if header is None or header.get("format") != name:
            continue
        writer = writer_class(name)
        count += _remove(root, writer.run_files, keep)
        for photo, data in _photos(ledger):
            count += _remove(root, writer.files_of(photo, header, data), keep)
        _remove(root, [f".parts/{ledger.name}"], keep)
    return count


def forget_photos(out: Path, names: Collection[str], ledgers: Iterable[str] = ()) -> None:
    """Take photos out of the records in `out/.parts`, with their own files, so that they are made again.

    Args:
        names: the photos' names.
        ledgers: file names of further records without files of their own.
    """
    root = out.resolve()
    for format_name in FORMATS:
        ledger = out / ".parts" / f"{format_name}.jsonl"
        header = read_header(ledger)
        if header is None or header.get("format") != format_name:
            continue
        for name, data in _photos(ledger):
            if name in names:
                _remove(root, writer_class(format_name).files_of(name, header, data), ())
        _drop_entries(ledger, names)
    for file in ledgers:
        if read_header(out / ".parts" / file) is not None:
            _drop_entries(out / ".parts" / file, names)


def _drop_entries(ledger: Path, names: Collection[str]) -> None:
    with atomic_path(ledger) as temporary, ledger.open("rb") as old, temporary.open("wb") as new:
        new.write(old.readline())
        for _, entry in entries_of(ledger):
            line = old.readline()
            if entry["name"] not in names:
                new.write(line)


def read_header(ledger: Path) -> dict[str, Any] | None:
    """The first line of a ledger; None where there is no whole one."""
    try:
        with ledger.open("rb") as file:
            line = file.readline()
        header = json.loads(line) if line.endswith(b"\n") else None
    except (OSError, ValueError, RecursionError):
        return None
    return header if isinstance(header, dict) else None


def _photos(ledger: Path) -> Iterator[tuple[str, Any]]:
    """Name and data of each photo in a ledger."""
    for _, entry in entries_of(ledger):
        # A ledger is a file like any other: what it says must not lead elsewhere.
        with suppress(UserError):
            check_name(entry["name"])
            yield entry["name"], entry.get("data")


def _remove(root: Path, names: Iterable[str], keep: Collection[Path]) -> int:
    count = 0
    for name in names:
        path = root / name
        folder = path.parent.resolve()
        if not folder.is_relative_to(root) or path.resolve() in keep or not path.is_file():
            continue
        path.unlink()
        count += 1
        while folder != root and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent
    return count
