"""Label Studio's flat exports, CSV, TSV and JSON-MIN: a row for each annotation, a column for each control.

    annotation_id,annotator,created_at,id,image,lead_time,animals,updated_at
    5,1,2024-01-01,3,/data/upload/1/0123abcd-a.jpg,1.2,"{""choices"":[""cat"",""dog""]}",2024-01-01

A control's column has the name that the project gives it. It is known by what is in it: choices, taxonomies and
regions with labels; of a single choice Label Studio writes the bare word.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from milseg.data.sources.cells import column_of, is_no_tag, labels_in
from milseg.data.sources.labelled import Labelled
from milseg.data.sources.names import PHOTO_SUFFIXES, spellings
from milseg.data.sources.tag_file import written_name
from milseg.errors import UserError

# What Label Studio itself says of an annotation.
ABOUT = frozenset(
    (
        *(
            "annotation_id",
            "annotator",
            "created_at",
            "updated_at",
            "lead_time",
            "id",
            "inner_id",
            "agreement",
        ),
        *(
            "total_annotations",
            "cancelled_annotations",
            "total_predictions",
            "predictions",
            "comments",
            "project",
        ),
        *(
            "comment_count",
            "unresolved_comment_count",
            "last_comment_updated_at",
            "comment_authors",
            "updated_by",
        ),
        *(
            "drafts",
            "file_upload",
            "meta",
            "allow_skip",
            "split",
            "storage_filename",
            "task_id",
            "sentiment_id",
        ),
    )
)
SIGNS = frozenset(("annotation_id", "annotator", "lead_time"))
# Usual names of a control whose values are bare words.
CONTROLS = ("tags", "tag", "choice", "choices", "label", "labels", "class", "classes", "category", "taxonomy")
Item = tuple[str, Mapping[str, Any]]


def is_flat(names: Iterable[str]) -> bool:
    """Whether columns or keys are those of a flat export."""
    return len(SIGNS & set(names)) >= 2


def flat_rows(file: str, items: Sequence[Item]) -> tuple[list[Labelled], list[str]]:
    """The rows of a flat export, and notes of columns that were not read.

    Args:
        file: for messages.
        items: where each row is, and its values by column.

    Raises:
        UserError: no column of photos or of labels, or several that may be one.
    """
    keys = list(dict.fromkeys(key for _, item in items for key in item))
    image = _photo_key(file, keys, items)
    others = [key for key in keys if key != image and key not in ABOUT and key]
    controls = _controls(file, others, items)
    unread = [
        key for key in others if key not in controls and any(_is_word(item.get(key)) for _, item in items)
    ]
    notes = [
        f"labels are read from the columns {', '.join(controls)}, not from {', '.join(unread[:5])}; call a column of "
        "labels tags, or export as JSON"
    ] * bool(unread)
    columns = {
        key: column_of(item[key] for _, item in items if isinstance(item.get(key), str)) for key in controls
    }
    rows = []
    for where, item in items:
        tags: list[str] = []
        for key in controls:
            value = item.get(key)
            tags += columns[key].tags(value, where) if isinstance(value, str) else labels_in(value, where)
        written = item.get(image)
        rows.append(
            Labelled(
                image=written_name(written if isinstance(written, str) else "", where),
                where=where,
                present=tuple(dict.fromkeys(filter(None, map(str.strip, tags)))),
                split=str(item.get("split") or ""),
            )
        )
    return rows, notes


def _photo_key(file: str, keys: Sequence[str], items: Sequence[Item]) -> str:
    """The column of photos: `image`, else the first whose values end as photos do."""
    if "image" in keys:
        return "image"
    for key in keys:
        values = [item[key] for _, item in items if isinstance(item.get(key), str) and item[key]]
        if values and all(_is_photo(value) for value in values):
            return key
    raise UserError(f"{file}: no column of photos among {', '.join(keys[:12])}; expected image")


def _is_photo(value: str) -> bool:
    return any(parts[-1].lower().endswith(PHOTO_SUFFIXES) for parts in spellings(value))


def _controls(file: str, keys: Sequence[str], items: Sequence[Item]) -> list[str]:
    """The columns of labels: those with Label Studio's objects, a usual name, or the only one left."""
    found = [key for key in keys if any(_has_labels(item.get(key)) for _, item in items)]
    found += [key for key in keys if key.casefold() in CONTROLS and key not in found]
    bare = [key for key in keys if any(_is_word(item.get(key)) for _, item in items)]
    if not found and len(bare) > 1:
        raise UserError(
            f"{file}: any of the columns {', '.join(bare[:6])} may hold the labels; export from Label Studio as JSON, "
            "or call the column of labels tags"
        )
    found = found or bare or list(keys[:1])
    if not found:
        raise UserError(f"{file}: no column of labels; export from Label Studio as JSON")
    return found


def _has_labels(value: Any) -> bool:
    if isinstance(value, str):
        if not value.lstrip().startswith(("{", "[")):
            return False
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
    items = value if isinstance(value, list) else [value]
    return any(
        isinstance(item, dict)
        and any(key in ("choices", "taxonomy") or key.endswith("labels") for key in item)
        for item in items
    )


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and not is_no_tag(value)
