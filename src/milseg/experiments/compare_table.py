"""The result of `milseg compare` as JSON, Markdown and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from milseg._version import __version__
from milseg.config import CompareOptions
from milseg.evaluation.confusion import PhotoCounts
from milseg.figures import score_bars
from milseg.utils.files import write_json, write_text

# Each with what those before it have.
COLUMNS = {
    "plain": "as trained",
    "tta": "+ TTA",
    "random_walk": "+ random walk",
    "refined": "+ refined",
    "prior": "+ prior",
}
# Counts of photos, by their key: what mean IU does not show.
COUNTED = {key: words for key, (words, _, _) in PhotoCounts().rows().items()}


def write_table(rows: Sequence[Mapping[str, Any]], options: CompareOptions) -> None:
    """compare.json with every run, compare.md with means and ranges, compare.png with the best step of each."""
    record = {
        "source": options.source.name,
        "max_steps": options.max_steps,
        "seeds": list(options.seeds),
        "milseg_version": __version__,
        "rows": list(rows),
    }
    write_json(options.out / "compare.json", record)
    write_text(options.out / "compare.md", markdown(rows, options))
    bars = []
    for name, group in grouped(rows).items():
        best = [value for column in COLUMNS if (value := mean_of(group, column)) is not None]
        bars.append((name, max(best, default=math.nan)))
    score_bars(
        bars,
        options.out / "compare.png",
        title=f"mean IU on {options.source.name}, best column, mean of seeds",
    )


def grouped(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by rule and round, in their order."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        name = f"{row['rule']}, round {row['round']}" if row["round"] else row["rule"]
        groups.setdefault(name, []).append(row)
    return groups


def mean_of(group: Sequence[Mapping[str, Any]], column: str) -> float | None:
    values = [row["mean_iu"][column] for row in group]
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _range(group: Sequence[Mapping[str, Any]], column: str) -> str:
    values = [row["mean_iu"][column] for row in group if row["mean_iu"][column] is not None]
    mean = mean_of(group, column)
    if mean is None:
        return "-"
    return f"{mean:.2f}" if len(values) == 1 else f"{mean:.2f} ({min(values):.2f} to {max(values):.2f})"


def markdown(rows: Sequence[Mapping[str, Any]], options: CompareOptions) -> str:
    """The table with the mean over seeds, the range, and every run below it."""
    lines = [
        f"# Rules on {options.source.name}",
        "",
        f"{options.max_steps} steps of {options.batch_size}, seeds {', '.join(map(str, options.seeds))}. Mean IU in "
        "percent, void excluded, one confusion matrix over the set: mean over the seeds, and their range. Each column "
        "has what those before it have.",
        "",
        "| Rule | " + " | ".join(COLUMNS.values()) + " | tag AP, % | seconds | learned from |",
        "|---|" + "---:|" * (len(COLUMNS) + 2) + "---|",
    ]
    for name, group in grouped(rows).items():
        precisions = [row["tag_average_precision"] for row in group]
        known = [value for value in precisions if value is not None]
        precision = f"{sum(known) / len(known):.1f}" if known else "-"
        seconds = sum(row["seconds"] for row in group) / len(group)
        cells = " | ".join(_range(group, column) for column in COLUMNS)
        lines.append(f"| {name} | {cells} | {precision} | {seconds:.0f} | {group[0]['supervision']} |")
    lines += [
        "",
        "| Run | learning rate | " + " | ".join(COLUMNS.values()) + " |",
        "|---|" + "---:|" * (len(COLUMNS) + 1),
    ]
    for name, group in grouped(rows).items():
        for row in group:
            values = [row["mean_iu"][column] for column in COLUMNS]
            cells = " | ".join("-" if value is None else f"{value:.2f}" for value in values)
            lines.append(f"| {name}, seed {row['seed']} | {row['learning_rate']:g} | {cells} |")
    lines += _photo_lines(rows)
    if len(options.learning_rates) > 1:
        tried = ", ".join(f"{rate:g}" for rate in options.learning_rates)
        lines += [
            "",
            f"Learning rates tried for every rule: {tried}; the best by held-out photos is shown, by their "
            "tags, or by their masks where the rule learns from masks.",
        ]
    notes = dict.fromkeys(note for row in rows for note in row.get("notes", ()))
    lines += [""] * bool(notes) + [f"- {note}" for note in notes]
    return "\n".join(lines) + "\n"


def _photo_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of what single photos are told by: of the refined masks, or of those there are; summed over the seeds."""
    lines = []
    for name, group in grouped(rows).items():
        counted = [counts for row in group if (counts := _counts(row)) is not None]
        if counted:
            cells = " | ".join(_sum_of([counts[key] for counts in counted]) for key in COUNTED)
            lines.append(f"| {name} | {cells} |")
    head = ["", "| Rule | " + " | ".join(COUNTED.values()) + " |", "|---|" + "---:|" * len(COUNTED)]
    return [*head, *lines] if lines else []


def _counts(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A row's counts of the refined masks, else of the plain ones."""
    by_photo = row.get("by_photo") or {}
    found: Mapping[str, Any] | None = by_photo.get("refined") or by_photo.get("plain")
    return found


def _sum_of(counts: Sequence[Mapping[str, Any]]) -> str:
    count, total = (sum(int(one[key]) for one in counts) for key in ("count", "of"))
    return f"{count:,} of {total:,} ({100 * count / total:.1f} %)" if total else "-"
