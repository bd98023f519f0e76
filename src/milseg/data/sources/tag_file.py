"""Text files that name photos, read as text: tables as programs write them, and lists of photo ids.

A table is in UTF-8, or in UTF-16 with its byte order mark; its columns are separated by commas, semicolons, tabs or
bars. Spreadsheets' first line `sep=;` says which. What the cells mean is `cells` and `table`.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from milseg.data.sources.names import CONTROL, names_a_file
from milseg.errors import UserError
from milseg.utils.files import did_you_mean

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
COLUMNS = ("image", "tags", "split")
ORDER_MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
SEPARATOR_LINE = re.compile(r'\A"?sep=(.)"?[ ,;\t]*(?:\r\n|\n|\r)', re.IGNORECASE)
# Files that are no text, by their first bytes, and the way out.
NO_TEXT = {
    b"PK\x03\x04": "a zip archive or an Excel workbook; save a workbook as CSV UTF-8, unpack an archive and give the "
    "file or folder in it",
    b"PK\x05\x06": "an empty zip archive; expected a file of tags",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save it as CSV UTF-8",
    b"PAR1": "a Parquet table; write it as CSV or JSON lines",
    b"\x1f\x8b": "packed by gzip; unpack it",
    b"SQLite format 3": "a database; export its tags as CSV",
    b"\x89PNG": "a photo; expected a file of tags",
    b"\xff\xd8\xff": "a photo; expected a file of tags",
    b"%PDF": "a PDF; expected a table of tags",
}


def read_text(path: Path, kind: str) -> str:
    """A text file in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Raises:
        UserError: missing, a folder, not readable, empty, a file of another kind, not UTF-8, or with NUL bytes.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such {kind}{did_you_mean(Path(path))}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, not a {kind}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the {kind} cannot be read ({error})") from None
    for start, what in NO_TEXT.items():
        if data.startswith(start):
            raise UserError(f"{path}: {what}")
    mark = next((mark for mark in ORDER_MARKS if data.startswith(mark)), b"")
    try:
        text = data[len(mark) :].decode(ORDER_MARKS.get(mark, "utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{data[min(error.start, len(data) - 1)]:02x} is not UTF-8 (Latin-1 or "
            "UTF-16, perhaps); save the file as UTF-8"
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
        if name in (".", "..") or "/" in name or "\\" in name or CONTROL.search(name):
            raise UserError(
                f"{path}, line {number}: {name!r} is no photo id; expected a file name without folder and "
                "extension, such as 2007_000063"
            )
        ids[name] = number
    return tuple(ids)


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
    told = SEPARATOR_LINE.match(text)
    if told is not None:
        text = "\n" + text[told.end() :]  # the lines keep their numbers
    for delimiter in DELIMITERS if told is None or told[1] not in DELIMITERS else told[1]:
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
        yield line, [_text(cell) if cell.startswith("=") else cell for cell in cells]


def _text(cell: str) -> str:
    """A cell without the formula that keeps a spreadsheet from reading a text as a number.

    >>> _text('="0001"')
    '0001'
    """
    text = cell.strip()
    return (
        text[2:-1].replace('""', '"')
        if text.startswith('="') and text.endswith('"') and text != '="'
        else cell
    )


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


def written_name(text: str, where: str) -> str:
    """A photo's name as it is written in a file.

    Args:
        where: file and line, for the message.

    Raises:
        UserError: it can be no photo's name: empty, a folder, or with control characters.
    """
    if not names_a_file(text):
        raise UserError(f"{where}: {text[:200]!r} in place of a photo names no file")
    return text.strip()
