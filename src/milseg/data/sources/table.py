"""Photos with a table of tags: comma-, semicolon-, tab- or bar-separated, or JSON lines.

Tags in one column:        One column a tag:        JSON lines:
    image,tags,split           image,cat,dog,split      {"image": "a.jpg", "tags": ["cat", "dog"]}
    a.jpg,cat dog,train        a.jpg,1,1,train          {"image": "b.jpg", "tags": "cat", "unknown": ["dog"]}
    b.jpg,cat ?dog,val         b.jpg,1,,val

1 is present, 0 is absent, blank is unknown; where presence is marked by crosses or ticks, blank is absent. In a cell
of tags (see `cells`), and in "tags" of JSON, `?dog` says that it is not known whether there is a dog, `-dog` that
there is none (which needs saying where tags are partial), and a lone `?` that nothing is known of the photo. JSON may
say the same by the lists "unknown" and "absent", or `"tags": null`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from milseg.data.sources.cells import Column, clean_tag, column_of, is_no_tag
from milseg.data.sources.json_file import parse_json, texts, typed
from milseg.data.sources.label_studio_flat import flat_rows, is_flat
from milseg.data.sources.labelled import Labelled, Labels
from milseg.data.sources.photo_files import PhotoFiles
from milseg.data.sources.tag_file import read_table, read_text, written_name
from milseg.errors import UserError

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")
# As spreadsheets and data frames write them, with decimal commas and in some languages; blank is unknown.
PRESENT = ("1", "1.0", "1,0", "1.00", "1,00", "true", "yes", "y", "wahr", "vrai", "verdadero", "vero", "waar")
ABSENT = ("0", "0.0", "0,0", "0.00", "0,00", "false", "no", "n", "falsch", "faux", "falso", "onwaar")
CROSSES = ("x", "✓", "✔", "☑")
FLAGS: dict[str, int] = {**dict.fromkeys((*PRESENT, *CROSSES), 1), **dict.fromkeys(ABSENT, 0)}
EXPECTED = (
    "a header with the columns image, tags and optionally split, or image and one column a tag (1, 0, blank)"
)


def read_tags_table(root: Path | PhotoFiles, file: Path, known: Collection[str] = ()) -> Labels:
    """Photos below `root` with the tags that `file` gives them.

    Args:
        root: the photos' folder, or the photos themselves.
        file: the table.
        known: names of the classes, where they are known: they may tell a tag of two words from two tags.

    Raises:
        UserError: naming the file and the line.
    """
    text = read_text(file, "tag file")
    classes: tuple[str, ...] = ()
    notes: list[str] = []
    if text.lstrip()[:1] in ("{", "["):
        rows, column = _json_rows(file, text, known)
        notes += column.notes
    elif (exported := _label_studio_rows(file, text)) is not None:
        rows, more = exported
        notes += more
    elif has_tags_column(file, text):
        rows, more = _tag_rows(file, text, known)
        notes += more
    else:
        classes, rows, more = _wide_rows(file, text)
        notes += more
    if not rows:
        raise UserError(f"{file}: no rows; expected one a photo")
    return Labels(
        file=file,
        photos=PhotoFiles.at(root),
        rows=rows,
        classes=classes,
        tags_from="tag file",
        notes=tuple(notes),
    )


def has_tags_column(path: Path, text: str) -> bool:
    """Whether the header has the columns image and tags, rather than image and one column a tag.

    Raises:
        UserError: it has neither.
    """
    names, _ = read_table(path, text, lambda names: "image" in names and len(names) > 1, EXPECTED)
    return "tags" in names


def looks_like_tags(path: Path, text: str, *, rows: int = 20) -> bool:
    """Whether a table that nobody pointed at holds tags: by its header, and flags in its first rows."""
    try:
        if _label_studio_rows(path, text) is not None or has_tags_column(path, text):
            return True
        names, table = _wide(path, text)
        for _, (_, cells) in zip(range(rows), table, strict=False):
            for name, cell in zip(names, cells, strict=False):
                if name not in ("image", "split", "") and not _is_flag(cell):
                    return False
    except UserError:
        return False
    return True


def _label_studio_rows(path: Path, text: str) -> tuple[list[Labelled], list[str]] | None:
    """The rows and notes of a table that Label Studio exported; None for another table."""
    try:
        names, table = read_table(path, text, is_flat, EXPECTED)
    except UserError:
        return None
    items = [(f"{path}, line {line}", dict(zip(names, cells, strict=False))) for line, cells in table]
    return flat_rows(str(path), items)


def _tag_rows(path: Path, text: str, known: Collection[str]) -> tuple[list[Labelled], list[str]]:
    """The rows of a table with a column of tags, and how its cells were read."""
    names, table = read_table(path, text, lambda names: "image" in names and "tags" in names, EXPECTED)
    image, tags = names.index("image"), names.index("tags")
    split = names.index("split") if "split" in names else None
    lines = list(table)
    column = column_of((cells[tags] for _, cells in lines), known)
    rows, read = [], {}
    for line, cells in lines:
        where, cell = f"{path}, line {line}", cells[tags]
        if cell not in read:
            read[cell] = _marks(column.tags(cell, where), where)
        part = "" if split is None else cells[split].strip()
        rows.append(replace(read[cell], image=written_name(cells[image], where), where=where, split=part))
    return rows, [*column.notes, *_no_tag_note(cells[tags] for _, cells in lines)]


def _no_tag_note(cells: Iterable[str]) -> list[str]:
    """Words that were read as no tag could be somebody's class, so they are told."""
    words = dict.fromkeys(cell.strip() for cell in cells if is_no_tag(cell) and any(map(str.isalpha, cell)))
    if not words:
        return []
    return [f"cells that say {' or '.join(map(repr, list(words)[:4]))} were read as no tag"]


def _marks(tags: Iterable[str], where: str, **more: Iterable[str]) -> Labelled:
    """Tags that may carry the marks `?` and `-`, of no photo yet; `more` may add to "absent" and "unknown"."""
    found: dict[str, dict[str, None]] = {
        kind: dict.fromkeys(map(clean_tag, more.get(kind, ()))) for kind in ("", "absent", "unknown")
    }
    seen = True
    for tag in tags:
        name = tag[1:].strip() if tag[0] in "?-" else tag
        if tag == "?":
            seen = False
        elif name:
            found["unknown" if tag[0] == "?" else "absent" if tag[0] == "-" else ""][name] = None
    present, absent, unknown = (tuple(names) for names in found.values())
    both = sorted({*present} & {*absent} | {*present, *absent} & {*unknown})
    if both or (not seen and (present or absent)):
        what = (
            f"{both[0]!r} is said to be two of"
            if both
            else "a lone '?' says all tags are unknown, others are"
        )
        raise UserError(f"{where}: {what} present, absent or unknown; keep one")
    return Labelled(image="", where=where, present=present, absent=absent, unknown=unknown, seen=seen)


def _wide(path: Path, text: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    return read_table(path, text, lambda names: "image" in names and len(names) > 1, EXPECTED)


def _is_flag(cell: str) -> bool:
    return is_no_tag(cell) or _flag_text(cell) in FLAGS


def _flag_text(cell: str) -> str:
    text = cell.strip().casefold()
    if text.startswith("=") and text.endswith("()"):
        text = text[1:-2]  # =TRUE(), as some spreadsheets save it
    return text


def _wide_rows(path: Path, text: str) -> tuple[tuple[str, ...], list[Labelled], list[str]]:
    """The tags that are columns, the rows, and how they were read."""
    names, table = _wide(path, text)
    image, split = names.index("image"), names.index("split") if "split" in names else None
    # A column without a name is a data frame's row number.
    columns = [(i, clean_tag(name)) for i, name in enumerate(names) if i not in (image, split) and name]
    tags = tuple(name for _, name in columns)
    twice = [name for i, name in enumerate(tags) if name in tags[:i]]
    if twice:
        raise UserError(f"{path}, line 1: two columns named {twice[0]!r}; rename one of them")
    if not tags:
        raise UserError(f"{path}, line 1: no column of tags; expected {EXPECTED}")
    lines = list(table)
    flags = {_flag_text(cells[i]) for _, cells in lines for i, _ in columns}
    crosses = not flags.isdisjoint(CROSSES) and flags.isdisjoint(ABSENT)
    rows = []
    for line, cells in lines:
        where = f"{path}, line {line}"
        groups: dict[int | None, list[str]] = {1: [], 0: [], None: []}
        for i, name in columns:
            groups[_flag(cells[i], where, name, 0 if crosses else None)].append(name)
        rows.append(
            Labelled(
                image=written_name(cells[image], where),
                where=where,
                present=tuple(groups[1]),
                absent=tuple(groups[0]),
                unknown=tuple(groups[None]),
                split="" if split is None else cells[split].strip(),
            )
        )
    return tags, rows, ["tags are marked by crosses, so blank cells were read as absent"] * crosses


def _flag(cell: str, where: str, name: str, blank: int | None) -> int | None:
    """What a cell says of its column's tag.

    Raises:
        UserError: neither a flag nor blank.
    """
    if is_no_tag(cell):
        return blank
    flag = FLAGS.get(_flag_text(cell))
    if flag is None:
        raise UserError(
            f"{where}: {cell.strip()[:40]!r} in the column {name!r}; expected 1 (present), 0 (absent) or "
            f"blank (unknown). Otherwise the table needs a column 'tags'"
        )
    return flag


def _json_rows(path: Path, text: str, known: Collection[str]) -> tuple[list[Labelled], Column]:
    """Rows of JSON lines, or of one JSON list of the same objects, and how their texts of tags are separated."""
    items = [(typed(item, dict, where), where) for item, where in _json_items(path, text)]
    column = column_of((item["tags"] for item, _ in items if isinstance(item.get("tags"), str)), known)
    return [_json_row(item, where, column) for item, where in items], column


def _json_items(path: Path, text: str) -> Iterator[tuple[Any, str]]:
    if text.lstrip()[0] == "[":
        for i, item in enumerate(typed(parse_json(text, str(path)), list, str(path))):
            yield item, f"{path}, entry {i + 1}"
        return
    # splitlines() would also split at characters that JSON allows inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield parse_json(line, f"{path}, line {number}"), f"{path}, line {number}"


def _json_row(row: dict[str, Any], where: str, column: Column) -> Labelled:
    if "image" not in row or "tags" not in row:
        shown = ", ".join(repr(key)[:40] for key in list(row)[:8]) or "none"
        raise UserError(f"{where}: the keys are {shown}; expected image, tags and optionally split")
    image = written_name(typed(row["image"], str, f"{where}: image"), where)
    split = typed(row.get("split") or "", str, f"{where}: split")
    tags = row["tags"]
    if tags is None:
        return Labelled(image=image, where=where, split=split, seen=False)
    names = column.tags(tags, where) if isinstance(tags, str) else texts(tags, f"{where}: tags")
    more = {kind: texts(row.get(kind) or [], f"{where}: {kind}") for kind in ("absent", "unknown")}
    return replace(_marks(filter(None, map(clean_tag, names)), where, **more), image=image, split=split)
