"""What a prediction run writes beside the annotation formats: its record, the table to review, photos left out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from milseg.annotations.cleanup import read_header, remove_earlier
from milseg.annotations.writer import entries_of
from milseg.utils.files import atomic_path, write_text

COLUMNS = ("photo", "mask", "confidence", "tags", "tag_confidence", "areas", "tags_given", "review")
LEDGER = "predictions.jsonl"
TABLE, FAILED, LABELS = "predictions.csv", "failed.csv", "labels.json"


def review_first(areas: Mapping[str, float], present: Sequence[str] | None) -> str:
    """Why a mask is surely wrong, however sure the network is of it; "" where nothing says so.

    Args:
        areas: share of the photo by class shown, background included.
        present: the tags that were given; None if nothing was.

    >>> review_first({"background": 1.0}, None), review_first({"cat": 1.0}, ["cat", "dog"])
    ('shows nothing', 'lacks dog')
    """
    shown = areas.keys() - {"background"}
    missing = [name for name in present or () if name not in shown]
    if missing:
        return f"lacks {';'.join(missing)}"
    return "" if shown or present is not None else "shows nothing"


def write_table(out: Path) -> None:
    """`predictions.csv` from the record: masks that show nothing or lack a given tag first, then the least certain.

    Rows are read from the record in the table's order: of each photo only three numbers are held.
    """
    ledger = out / ".parts" / LEDGER
    offsets, keys = _places(ledger)
    with (
        ledger.open("rb") as file,
        atomic_path(out / TABLE) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as text,
    ):
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        order = np.argsort(keys, kind="stable")
        for equal in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1) if len(order) else ():
            rows = []
            for number in equal:
                file.seek(int(offsets[number]))
                rows.append(json.loads(file.readline())["data"])
            writer.writerows(sorted(rows, key=lambda row: row["photo"]))


def _places(ledger: Path) -> tuple[Any, Any]:
    """Where each entry begins, int64 [N], and its place in the table, float64 [N]: the confidence, less 2 to review."""
    offsets, keys = [], []
    for at, entry in entries_of(ledger):
        offsets.append(at)
        keys.append(entry["data"]["confidence"] - 2 * bool(entry["data"].get("review")))
    return np.array(offsets, dtype=np.int64), np.array(keys, dtype=np.float64)


def write_failed(out: Path, failed: Mapping[str, str]) -> None:
    """`failed.csv`: photo and reason; no file where there is none."""
    if not failed:
        (out / FAILED).unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("photo", "reason"))
    writer.writerows(failed.items())
    write_text(out / FAILED, text.getvalue())


def read_failed(out: Path) -> dict[str, str]:
    """The photos of `failed.csv` and why they were left out."""
    if not (out / FAILED).is_file():
        return {}
    with (out / FAILED).open(newline="", encoding="utf-8") as file:
        return dict(list(csv.reader(file))[1:])


def photos_of(ledger: Path) -> Iterator[str]:
    """The names of the photos in a ledger; none where there is no file."""
    if ledger.is_file():
        for _, entry in entries_of(ledger):
            yield entry["name"]


def remove_run(out: Path, *, keep: Collection[Path] = ()) -> None:
    """Remove what an earlier run wrote: masks of other photos would be taken for this run's."""
    ledger = out / ".parts" / LEDGER
    ours = "model" in (read_header(ledger) or {})
    for name in (TABLE, FAILED, LABELS) if ours else ():
        (out / name).unlink(missing_ok=True)
    remove_earlier(out, keep=keep)
    if ours:
        ledger.unlink(missing_ok=True)
