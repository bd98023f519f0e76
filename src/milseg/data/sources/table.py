"""Photos with a table of tags: comma-, semicolon-, tab- or bar-separated, or JSON lines.

Tags in one column:        One column a tag:        JSON lines:
    image,tags,split           image,cat,dog,split      {"image": "a.jpg", "tags": ["cat", "dog"]}
    a.jpg,cat dog,train        a.jpg,1,1,train          {"image": "b.jpg", "tags": "cat", "unknown": ["dog"]}
    b.jpg,cat ?dog,val         b.jpg,1,,val

1 is present, 0 is absent, blank is unknown. In a cell of tags, and in "tags" of JSON, `?dog` says that it is
not known whether there is a dog, `-dog` that there is none (which needs saying where tags are partial), and a
lone `?` that nothing is known of the photo. JSON may say the same by the lists "unknown" and "absent", or
`"tags": null`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from milseg.data.sources.json_file import parse_json, texts, typed
from milseg.data.sources.labelled import Labelled, Labels
from milseg.data.sources.photo_files import PhotoFiles
from milseg.data.sources.tag_file import read_table, read_text, relative_path, split_tags, tag_rows
from milseg.errors import UserError

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")
# As spreadsheets and data frames write them; blank is unknown.
FLAGS = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "true": 1, "false": 0, "": None, "nan": None}
EXPECTED = (
    "a header with the columns image, tags and optionally split, or image and one column a tag (1, 0, blank)"
)


def read_tags_table(root: Path | PhotoFiles, file: Path | None = None, split: str | None = None) -> Labels:
    """Photos below `root` with the tags that `file` gives them.

    Args:
        root: the photos' folder, or the photos themselves.
        file: the table.
        split: as for every reader; not used, rows carry theirs.

    Raises:
        UserError: naming the file and the line.
    """
    assert file is not None
    text = read_text(file, "tag file")
    classes: tuple[str, ...] = ()
    if text.lstrip()[:1] in ("{", "["):
        rows = list(_json_rows(file, text))
    elif has_tags_column(file, text):
        rows = [
            _marked(row.image, f"{file}, line {row.line}", row.tags, row.split)
            for row in tag_rows(file, text)
        ]
    else:
        classes, rows = _wide_rows(file, text)
    if not rows:
        raise UserError(f"{file}: no rows; expected one a photo")
    return Labels(file=file, photos=PhotoFiles.at(root), rows=rows, classes=classes, tags_from="tag file")


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
        if has_tags_column(path, text):
            return True
        names, table = _wide(path, text)
        for _, (_, cells) in zip(range(rows), table, strict=False):
            for name, cell in zip(names, cells, strict=False):
                if name not in ("image", "split", "") and cell.strip().casefold() not in FLAGS:
                    return False
    except UserError:
        return False
    return True


def _marked(image: str, where: str, tags: Iterable[str], split: str, **more: Iterable[str]) -> Labelled:
    """A row whose tags may carry the marks `?` and `-`; `more` may add to "absent" and "unknown"."""
    found: dict[str, dict[str, None]] = {
        kind: dict.fromkeys(more.get(kind, ())) for kind in ("", "absent", "unknown")
    }
    seen = True
    for tag in tags:
        name = tag[1:].strip() if tag[0] in "?-" else tag
        if tag == "?":
            seen = False
        elif not name:
            raise UserError(f"{where}: {tag!r} marks no tag; write -dog for no dog, or leave the cell empty")
        else:
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
    return Labelled(
        image=image, where=where, present=present, absent=absent, unknown=unknown, split=split, seen=seen
    )


def _wide(path: Path, text: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    return read_table(path, text, lambda names: "image" in names and len(names) > 1, EXPECTED)


def _wide_rows(path: Path, text: str) -> tuple[tuple[str, ...], list[Labelled]]:
    """The tags that are columns, and the rows."""
    names, table = _wide(path, text)
    image, split = names.index("image"), names.index("split") if "split" in names else None
    # A column without a name is a data frame's row number.
    columns = [(i, name) for i, name in enumerate(names) if i not in (image, split) and name]
    tags = tuple(name for _, name in columns)
    twice = [name for i, name in enumerate(tags) if name in tags[:i]]
    if twice:
        raise UserError(f"{path}, line 1: two columns named {twice[0]!r}; rename one of them")
    if not tags:
        raise UserError(f"{path}, line 1: no column of tags; expected {EXPECTED}")
    rows = []
    for line, cells in table:
        where = f"{path}, line {line}"
        groups: dict[int | None, list[str]] = {1: [], 0: [], None: []}
        for i, name in columns:
            cell = cells[i].strip()
            flag = FLAGS.get(cell, "") if cell in FLAGS else FLAGS.get(cell.casefold(), "")
            if isinstance(flag, str):
                raise UserError(
                    f"{where}: {cell[:40]!r} in the column {name!r}; expected 1 (present), 0 (absent) or "
                    f"blank (unknown). Otherwise the table needs a column 'tags'"
                )
            groups[flag].append(name)
        rows.append(
            Labelled(
                image=relative_path(cells[image], where),
                where=where,
                present=tuple(groups[1]),
                absent=tuple(groups[0]),
                unknown=tuple(groups[None]),
                split="" if split is None else cells[split].strip(),
            )
        )
    return tags, rows


def _json_rows(path: Path, text: str) -> Iterator[Labelled]:
    """Rows of JSON lines, or of one JSON list of the same objects."""
    if text.lstrip()[0] == "[":
        for i, item in enumerate(typed(parse_json(text, str(path)), list, str(path))):
            yield _json_row(item, f"{path}, entry {i + 1}")
        return
    # splitlines() would also split at characters that JSON allows inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _json_row(parse_json(line, f"{path}, line {number}"), f"{path}, line {number}")


def _json_row(item: Any, where: str) -> Labelled:
    row = typed(item, dict, where)
    if "image" not in row or "tags" not in row:
        shown = ", ".join(repr(key)[:40] for key in list(row)[:8]) or "none"
        raise UserError(f"{where}: the keys are {shown}; expected image, tags and optionally split")
    image = relative_path(typed(row["image"], str, f"{where}: image"), where)
    split = typed(row.get("split") or "", str, f"{where}: split")
    tags = row["tags"]
    if tags is None:
        return Labelled(image=image, where=where, split=split, seen=False)
    names = split_tags(tags) if isinstance(tags, str) else texts(tags, f"{where}: tags")
    more = {kind: texts(row.get(kind) or [], f"{where}: {kind}") for kind in ("absent", "unknown")}
    return _marked(image, where, names, split, **more)
