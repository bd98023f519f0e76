"""Write files so that a reader never meets half of one, and check output folders before work starts."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from milseg.errors import OutputError, UserError

# errno values that are the disk's or the folder's state, not a bug.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_ENTRY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
# These end a run: no other photo would fare better.
_ENDING = (*_NO_SPACE, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)


# What public functions take for a path.
PathLike = str | os.PathLike[str]


def as_path(value: PathLike) -> Path:
    """The path that a user of the Python functions gave as a text or a Path.

    >>> as_path("runs/mine").name
    'mine'

    Raises:
        UserError: neither of the two.
    """
    if isinstance(value, str | os.PathLike) and not isinstance(os.fspath(value), bytes):
        return Path(value)
    raise UserError(
        f"expected a path, as a text or a pathlib.Path; found {type(value).__name__}: {value!r:.80}"
    )


def did_you_mean(path: Path) -> str:
    """ "; did you mean 'photos'?" for a path that does not exist beside one of nearly its name; else "".

    >>> import tempfile
    >>> home = Path(tempfile.mkdtemp())
    >>> (home / "photos").mkdir()
    >>> did_you_mean(home / "photo").endswith("photos'?")
    True
    """
    near = _near(path)
    return "" if near is None else f"; did you mean {str(near)!r}?"


def _near(path: Path) -> Path | None:
    parent = path.parent
    if parent != path and not parent.exists():
        parent = _near(parent) or path
    if (parent / path.name).exists() and parent != path:
        return parent / path.name
    try:
        names = [entry.name for entry in islice(parent.iterdir(), MOST_NAMES) if entry.name[0] != "."]
    except OSError:
        return None
    return next((parent / name for name in get_close_matches(path.name, names, 1, 0.7)), None)


MOST_NAMES = 1000  # of a folder, that are compared with a mistyped one
_LEFT_BEHIND = re.compile(r"\..*\.\d+-[0-9a-f]{8}\.tmp(\..*)?")  # names of `_temporary`


def _temporary(path: Path) -> Path:
    # Hidden, so that no folder listing of ours takes it for a result; same suffix, as writers choose formats
    # by it.
    return path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}")


@contextmanager
def atomic_path(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`, to be written in the block; it takes `path`'s place when the block ends
    well.

    The old file stays whole until then: a crash or a kill in the middle leaves it as it was. When the block
    raises, the temporary file is removed and the exception goes on.

    Args:
        path: the file to write; its folder must exist.
        sync: flush the file to the disk first, so that it also survives a power cut. Costs some milliseconds.

    Raises:
        OutputError: the disk is full, or the folder is missing or does not allow writing.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with atomic_path(target) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> target.read_text(), len(list(target.parent.iterdir()))
    ('whole', 1)
    """
    temporary = _temporary(path)
    try:
        yield temporary
        if sync:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if sync:
            _sync_folder(path.parent)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise OutputError(
                f"{path}: no space left on the disk; nothing was changed. Free some space, or write elsewhere"
            ) from error
        if error.errno in _NO_ENTRY and error.filename in (str(temporary), temporary):
            raise OutputError(
                f"{path}: cannot be written ({error.strerror}); choose another folder"
            ) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def ends_run(error: BaseException) -> bool:
    """Whether an error while a photo's files are written is the output's and not the photo's."""
    return isinstance(error, OutputError) or (isinstance(error, OSError) and error.errno in _ENDING)


def _sync_folder(folder: Path) -> None:
    # The new name itself is on the disk only once the folder is; not every system lets a folder be opened.
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(path: Path) -> int:
    """Remove temporary files of `path` that a killed process left behind; returns how many.

    Only for a folder that one process writes: a temporary file of another running process would go too.
    """
    start, end = f".{path.stem}.", f".tmp{path.suffix}"
    found = [p for p in path.parent.iterdir() if p.name.startswith(start) and p.name.endswith(end)]
    for leftover in found:
        leftover.unlink(missing_ok=True)
    return len(found)


def remove_halves(folder: Path, *, but: str | None = None) -> None:
    """Remove every file below `folder` that a killed process left half-written, as `remove_leftovers` does of one.

    Args:
        but: a folder directly below, where other processes may be writing.
    """
    for place, folders, names in os.walk(folder):
        if Path(place) == folder and but in folders:
            folders.remove(but)
        for name in filter(_LEFT_BEHIND.fullmatch, names):
            Path(place, name).unlink(missing_ok=True)


def holds_files(folder: Path) -> bool:
    """Whether a folder is there and holds something; what a killed process left half-written does not count."""
    return folder.is_dir() and any(not _LEFT_BEHIND.fullmatch(path.name) for path in folder.iterdir())


def check_size(path: Path, limit: int, kind: str) -> None:
    """Check that a file has at most `limit` bytes, before it is read; one that is missing is left to the reader.

    Raises:
        UserError: it is larger.
    """
    with suppress(OSError):
        size = path.stat().st_size
        if size > limit:
            raise UserError(f"{path}: {size:,} bytes, over the limit of {limit:,} for a {kind}; not read")


def read_limited(path: Path, limit: int, kind: str) -> bytes:
    """The bytes of a file that is measured before it is read.

    Args:
        limit: bytes. kind: what messages call the file.

    Raises:
        UserError: missing, no plain file, not readable, or over the limit.
    """
    try:
        if not path.is_file():
            problem = "no plain file" if path.exists() else "missing"
            raise UserError(f"{path}: {problem}, where a {kind} is expected")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(limit + 1) if size <= limit else b""
    except OSError as error:
        raise UserError(f"{path}: the {kind} cannot be read ({error.strerror})") from None
    if max(size, len(data)) > limit:
        raise UserError(
            f"{path}: {max(size, len(data)):,} bytes, over the limit of {limit:,} for a {kind}; not read"
        )
    return data


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically (see `atomic_path`)."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically, indented, with a final newline.

    Raises:
        ValueError: a nan or an infinity in `data`, which JSON has no word for; put None in its place.
    """
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def refuse_existing(folder: Path, *, overwrite: bool = False) -> None:
    """Stop when an output folder already holds something; an empty or missing one is fine. Deletes nothing.

    Raises:
        UserError: `folder` is a file, or is not empty and `overwrite` is false.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file, where a folder for the output is expected; choose another name")
    if not overwrite and holds_files(folder):
        raise UserError(
            f"{folder}: already holds files; choose another folder, or pass --overwrite to write over them"
        )


def claim_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Take a folder for a run that can be resumed: empty or missing, unless told what to do with what is in it.

    Raises:
        UserError: `folder` is a file, holds files and neither flag is given, or cannot be written.
    """
    if not (resume or overwrite) and holds_files(folder):
        raise UserError(
            f"{folder}: already holds files; --resume goes on with that run, --overwrite starts anew, or choose "
            "another folder with --out"
        )
    refuse_existing(folder, overwrite=True)
    check_writable(folder)


@contextmanager
def no_empty_folder(folder: Path | None) -> Iterator[None]:
    """A folder that the block made, and that a user's mistake left empty, is taken away again."""
    missing = (
        [] if folder is None else [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    )
    try:
        yield
    except UserError:
        for path in missing:
            with suppress(OSError):  # it holds something, or was never made
                path.rmdir()
        raise


def check_writable(folder: Path) -> None:
    """Make the folder where it is missing, and write a trial file into it, before hours of work depend on it.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    trial = _temporary(folder / "trial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder / "trial")
        trial.write_bytes(b"milseg")
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write there ({error.strerror}); choose another output folder, "
            "or change its permissions"
        ) from None
    finally:
        with suppress(OSError):
            trial.unlink(missing_ok=True)
