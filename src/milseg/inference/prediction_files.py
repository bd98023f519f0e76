"""What a prediction run writes beside the annotation formats: its record, the table to review, photos left out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from milseg.annotations.cleanup import read_header, remove_earlier
from milseg.annotations.writer import entries_of
from milseg.utils.files import atomic_path, write_text

COLUMNS = ("photo", "mask", "confidence", "tags", "tag_confidence", "areas", "tags_given")
LEDGER = "predictions.jsonl"
TABLE, FAILED, LABELS = "predictions.csv", "failed.csv", "labels.json"


def write_table(out: Path) -> None:
    """`predictions.csv` from the record, the least certain photos first: what to review first.

    Rows are read from the record in the table's order: of each photo only three numbers are held.
    """
    ledger = out / ".parts" / LEDGER
    offsets, confidences = _places(ledger)
    with (
        ledger.open("rb") as file,
        atomic_path(out / TABLE) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as text,
    ):
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        order = np.argsort(confidences, kind="stable")
        for equal in np.split(order, np.flatnonzero(np.diff(confidences[order])) + 1) if len(order) else ():
            rows = []
            for number in equal:
                file.seek(int(offsets[number]))
                rows.append(json.loads(file.readline())["data"])
            writer.writerows(sorted(rows, key=lambda row: row["photo"]))


def _places(ledger: Path) -> tuple[Any, Any]:
    """Where each entry begins, int64 [N], and its confidence, float64 [N]."""
    offsets, confidences = [], []
    for at, entry in entries_of(ledger):
        offsets.append(at)
        confidences.append(entry["data"]["confidence"])
    return np.array(offsets, dtype=np.int64), np.array(confidences, dtype=np.float64)


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
