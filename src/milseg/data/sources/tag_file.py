"""Text files that name photos: tag files (image, tags and optionally split), and lists of photo ids.

A tag file is a table in UTF-8, its columns separated by commas, semicolons, tabs or bars:

    image,tags,split
    2007_000063.jpg,chair dog,train
    2007_000392.jpg,"horse, person",train

Tags in a cell are separated by `,`, `;` or `|` where one of these is in the cell, and by white space
otherwise; so a tag with a space in it ("potted plant") needs one of them beside it ("potted plant;").
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from milseg.errors import UserError, unknown_name

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
COLUMNS = ("image", "tags", "split")
PHOTO_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"),
    *(".heic", ".heif", ".jp2", ".ppm", ".pgm", ".tga"),
)

_DRIVE = re.compile(r"[A-Za-z]:")
# Control characters, and halves of surrogate pairs, which no file name or output in UTF-8 can hold.
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class TagRow:
    """One row of a tag file.

    Attributes:
        image: the photo's path or bare name as written, with forward slashes; never absolute, never upwards.
        tags: the tags, each once, in the order written; () means that the photo shows background only.
        split: "train", "val" or whatever is written; "" where there is none.
        line: the row's line in the file, from 1.
    """

    image: str
    tags: tuple[str, ...]
    split: str
    line: int


def read_text(path: Path, kind: str) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: missing, a folder, not readable, empty, not UTF-8, or with NUL bytes.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such {kind}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, not a {kind}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the {kind} cannot be read ({error})") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8 (Latin-1 or UTF-16, perhaps); "
            "save the file as UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}, line {line}: holds a NUL byte; expected plain text, save the file as UTF-8")
    if not text.strip():
        raise UserError(f"{path}: the {kind} is empty")
    return text


def read_ids(path: Path) -> tuple[str, ...]:
    """Photo ids, one a line, as in PASCAL VOC's ImageSets; blank lines do not count, nor an id's second time.

    Raises:
        UserError: as `read_text`, or a line that is no plain file name.
    """
    ids = {}
    for number, line in enumerate(read_text(path, "list of photo ids").splitlines(), start=1):
        name = line.strip()
        if not name:
            continue
        if name in (".", "..") or "/" in name or "\\" in name or _CONTROL.search(name):
            raise UserError(
                f"{path}, line {number}: {name!r} is no photo id; expected a file name without folder and "
                "extension, such as 2007_000063"
            )
        ids[name] = number
    return tuple(ids)


def read_tag_file(path: Path) -> tuple[TagRow, ...]:
    """Read a tag file: a header with the columns image, tags and optionally split, then one row a photo.

    Other columns are skipped, and so are blank lines. The delimiter is the one that makes the header fit.

    Raises:
        UserError: naming the file and the line: missing or empty file, not UTF-8, NUL bytes, missing columns,
            a row of another length, an image twice, an absolute path or one with `..`.
    """
    return tag_rows(path, read_text(path, "tag file"))


def tag_rows(path: Path, text: str) -> tuple[TagRow, ...]:
    """As `read_tag_file`, of a text that was read already; `path` is for messages."""
    header, table = read_table(
        path,
        text,
        lambda names: "image" in names and "tags" in names,
        "a header with the columns image, tags and optionally split",
    )
    columns = {name: header.index(name) for name in COLUMNS if name in header}
    rows: dict[str, TagRow] = {}
    for line, cells in table:
        image = relative_path(cells[columns["image"]], f"{path}, line {line}")
        if image in rows:
            raise UserError(
                f"{path}, line {line}: {image} has a row already, on line {rows[image].line}; keep one of "
                "the two"
            )
        split = cells[columns["split"]].strip() if "split" in columns else ""
        rows[image] = TagRow(image=image, tags=split_tags(cells[columns["tags"]]), split=split, line=line)
    if not rows:
        raise UserError(f"{path}: a header and no rows; expected one row a photo")
    return tuple(rows.values())


def read_table(
    path: Path, text: str, fits: Callable[[Sequence[str]], bool], expected: str
) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """A table with a header, at the first delimiter that makes the header fit.

    Args:
        path: for messages.
        fits: says of the column names, COLUMNS in lower case, whether this is the table.
        expected: what it asks for, for the message.

    Returns:
        The column names, and an iterator over line and cells of each row that is not blank, as many cells as
        there are columns.

    Raises:
        UserError: no delimiter fits; two columns of one of COLUMNS' names; while iterating, rows of another
            length.
    """
    found: list[str] = []
    for delimiter in DELIMITERS:
        rows = _rows(path, text, delimiter)
        try:
            line, cells = next(rows, (1, []))
        except UserError:
            # Quotes that do not fit this delimiter; another one may.
            continue
        names = [cell.strip() for cell in cells]
        names = [name.lower() if name.lower() in COLUMNS else name for name in names]
        if fits(names):
            twice = [name for name in COLUMNS if names.count(name) > 1]
            if twice:
                raise UserError(f"{path}, line {line}: two columns named {twice[0]!r}; rename one of them")
            return names, _full_rows(path, rows, len(names))
        found = max(found, names, key=len)
    shown = ", ".join(repr(name[:40]) for name in found[:8]) or "not readable"
    raise UserError(
        f"{path}, line 1: the columns are {shown}; expected {expected}, separated by commas, semicolons, "
        "tabs or bars"
    )


def _full_rows(
    path: Path, rows: Iterator[tuple[int, list[str]]], width: int
) -> Iterator[tuple[int, list[str]]]:
    for line, cells in rows:
        if any(cells[width:]) or len(cells) < width:
            raise UserError(
                f"{path}, line {line}: {len(cells)} cells where the header has {width}; put quotes "
                "around a cell that holds the delimiter"
            )
        yield line, cells


def _rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with the line it begins on."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}, line {line}: not a row of a {DELIMITERS[delimiter]}-separated table "
            f"({error}); look for a quote that is not closed"
        ) from None


def relative_path(text: str, where: str) -> str:
    """A photo's path as written in a file, with forward slashes, when it stays below the photos' folder.

    Args:
        where: file and line, for the message.

    Raises:
        UserError: an absolute path, one with `..`, or one that names no file.
    """
    name = text.strip().replace("\\", "/")
    parts = name.split("/")
    if name.startswith("/") or _DRIVE.match(name) or ".." in parts:
        raise UserError(
            f"{where}: {name[:200]!r} leads out of the photos' folder; expected a file name, or a path "
            "relative to that folder without '..'"
        )
    if parts[-1] in ("", ".") or _CONTROL.search(name):
        raise UserError(f"{where}: {name[:200]!r} in the image column names no file")
    return str(PurePosixPath(name))


def is_plain_text(name: str) -> bool:
    """Whether a name is fit for file names and messages: no control characters, nothing outside Unicode."""
    return not _CONTROL.search(name)


def split_tags(cell: str) -> tuple[str, ...]:
    """The tags of one cell, each once: split at `,`, `;` or `|` where there is one, else at white space.

    >>> split_tags("dog  cat dog"), split_tags("potted plant; dog;")
    (('dog', 'cat'), ('potted plant', 'dog'))
    """
    parts = re.split(r"[,;|]", cell) if re.search(r"[,;|]", cell) else cell.split()
    return tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))


def photo_id(image: str) -> str:
    """The file name of an image cell without its folder and without a photo's extension.

    >>> photo_id("JPEGImages/2007_000063.jpg"), photo_id("site.12")
    ('2007_000063', 'site.12')
    """
    name = PurePosixPath(image)
    return name.stem if name.suffix.lower() in PHOTO_SUFFIXES else name.name


def known_tags(
    path: Path, row: TagRow, known: Collection[str], *, ignore_unknown: bool = False
) -> tuple[str, ...]:
    """The row's tags that are in `known`.

    Raises:
        UserError: a tag that is not, with file, line and nearest known name, unless `ignore_unknown`.
    """
    unknown = [tag for tag in row.tags if tag not in known]
    if unknown and not ignore_unknown:
        raise UserError(f"{path}, line {row.line}: {unknown_name('tag', unknown[0], known)}")
    return tuple(tag for tag in row.tags if tag in known)


def tags_for(
    ids: Sequence[str],
    path: Path,
    known: Collection[str],
    *,
    splits: Collection[str] = (),
    ignore_unknown: bool = False,
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The tags of the photos `ids` from a tag file, and what is odd about it, one sentence each.

    Rows are found by file name alone, with or without folder and extension. `ids` say what is in the set; a
    row whose split column says otherwise is only noted.

    Args:
        ids: photo ids, file names without extension.
        known: the tags there are.
        splits: what the split column may call this set, in lower case.

    Returns:
        Each photo's tags, for photos that have a row, in the order of `ids`; and the notes.

    Raises:
        UserError: as `read_tag_file` and `known_tags`; two rows for one photo; no row for any photo.
    """
    rows: dict[str, TagRow] = {}
    for row in read_tag_file(path):
        name = photo_id(row.image)
        if name in rows:
            raise UserError(
                f"{path}, line {row.line}: {row.image} is the photo of line {rows[name].line} "
                f"again; keep one "
                "of the two"
            )
        rows[name] = row
    listed = {i: rows[i] for i in ids if i in rows}
    if not listed:
        raise UserError(
            f"{path}: has no row for any photo of the set; its images are like "
            f"{next(iter(rows))!r}, the set's "
            f"like {ids[0]!r}"
        )
    tags = {i: known_tags(path, row, known, ignore_unknown=ignore_unknown) for i, row in listed.items()}
    missing = [i for i in ids if i not in rows]
    other = [(i, row) for i, row in listed.items() if row.split and row.split.lower() not in splits]
    strangers = [(i, row) for i, row in rows.items() if i not in listed and row.split.lower() in splits]
    unknown = [tag for row in listed.values() for tag in row.tags if tag not in known]
    notes = []
    if missing:
        notes.append(f"{len(missing):,} photos without a row in {path.name} left out, such as {missing[0]}")
    if other:
        notes.append(
            f"{len(other):,} photos are in the list on disk but {path.name} puts them in another "
            f"split, such as "
            f"{other[0][0]} ({other[0][1].split!r}, line {other[0][1].line}); kept"
        )
    if strangers:
        notes.append(
            f"{len(strangers):,} rows of {path.name} name this split but are not in the list on "
            f"disk, such as "
            f"{strangers[0][0]} (line {strangers[0][1].line}); left out"
        )
    if unknown:
        notes.append(f"{len(unknown):,} unknown tags ignored, such as {unknown[0]!r}")
    return tags, notes
