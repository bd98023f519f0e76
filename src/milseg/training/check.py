"""Look at everything before training on it: tags, photos, what a classifier brings, how long it takes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from milseg.data.bags import ABSENT, PRESENT, UNKNOWN, BagSet
from milseg.data.image import MAX_PIXELS
from milseg.data.photo_statistics import (
    outside_range,
    read_photos,
    reading_notes,
    same_bytes,
    size_ranges,
)
from milseg.data.tag_statistics import (
    NEARLY_ALL,
    inseparable_tags,
    names_without_background,
    near_universal_tags,
    tag_matrix,
    untrainable_reasons,
)
from milseg.data.value_range import decide_ranges
from milseg.errors import UserError
from milseg.models.transfer import mapping_for
from milseg.models.weights import imagenet_categories
from milseg.training.recipes import Recipe
from milseg.training.time_estimate import Estimate, estimate_training

SHOWN = 10  # lines of a list in the text


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What `check_source` found.

    Attributes:
        name, classes, tags_from, notes: the set's own.
        bags: how many bags there are; `photos` of them could be read.
        tag_counts: bags that carry each class, the background left out.
        inseparable_tags: groups of tags that are on the same photos only: tags alone cannot tell them apart.
        near_universal_tags: tags on `NEARLY_ALL` of the photos or more, with their share.
        untagged: bags with no tag that is present and none unknown. all_unknown: bags with every tag unknown.
        unknown_tags: unknown tags in all, those of such bags too.
        unreadable, odd: photos by name, with the reason.
        duplicates: groups of photos with the same bytes; differing: those of them whose tags differ.
        sizes: least, median and largest height, width and megapixels.
        value_ranges: what is black and white in photos of more than 8 bits, by kind of values. values: the same for
            people, and what of files is left out.
        transfer: for each class the rows of an ImageNet classifier that it would start from.
        training: see `Estimate`; None if it was not asked for, or training would teach nothing.
        untrainable_reasons: why training would teach nothing; empty where it may.
        seconds, photos_per_second: of reading the photos.
    """

    name: str
    classes: tuple[str, ...]
    tags_from: str
    notes: tuple[str, ...]
    bags: int
    photos: int
    tag_counts: dict[str, int]
    inseparable_tags: tuple[tuple[str, ...], ...]
    near_universal_tags: dict[str, float]
    untagged: int
    all_unknown: int
    unknown_tags: int
    unreadable: dict[str, str]
    odd: dict[str, str]
    duplicates: tuple[tuple[str, ...], ...]
    differing: tuple[tuple[str, ...], ...]
    sizes: dict[str, tuple[float, float, float]]
    value_ranges: dict[str, tuple[float, float]]
    values: tuple[str, ...]
    transfer: dict[str, tuple[str, ...]]
    training: Estimate | None
    untrainable_reasons: tuple[str, ...]
    seconds: float
    photos_per_second: float

    def to_json(self) -> dict[str, Any]:
        """Everything, as values that `json.dumps` takes."""
        value: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return value

    def text(self) -> str:
        """The report for people."""
        return report_text(self)


def check_source(
    bag_set: BagSet,
    *,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
    recipe: Recipe | None = None,
    backbone: str = "mobilenet_v2",
    device: torch.device | None = None,
    mapping: Path | None = None,
) -> CheckReport:
    """Read every photo once and look at the tags.

    Args:
        bag_set: the bags, as `open_source` gives them.
        workers: photos read at once; None: one a core.
        max_pixels: larger photos are named as unreadable, not decoded.
        recipe: the training whose time is estimated, by a few of its steps; None estimates none.
        backbone, device: its network and where it runs.
        mapping: the user's own rows for classes (`models.transfer.mapping_for`).

    Raises:
        UserError: unknown backbone or stride, or a mapping file that cannot be read. Photos never raise.
    """
    began = time.perf_counter()
    facts = read_photos(bag_set.bags, workers=workers, max_pixels=max_pixels, progress=progress)
    seconds = time.perf_counter() - began
    bags = bag_set.bags
    tags = tag_matrix(bag_set)
    names = names_without_background(bag_set)
    readable = [i for i, fact in enumerate(facts) if fact.size is not None]
    groups = same_bytes(facts)
    reasons = untrainable_reasons(tags, names, readable)
    ranges = decide_ranges(fact.span for fact in facts)
    odd = [(*fact.odd, outside_range(fact, ranges)) for fact in facts]
    training = None
    if recipe is not None and not reasons:
        training = estimate_training(
            bag_set.take(readable),
            recipe=recipe,
            backbone=backbone,
            output_stride=recipe.output_stride,
            device=device,
        )
    return CheckReport(
        name=bag_set.name,
        classes=bag_set.classes,
        tags_from=bag_set.tags_from,
        notes=bag_set.notes,
        bags=len(bags),
        photos=len(readable),
        tag_counts=dict(zip(names, (tags == PRESENT).sum(0).tolist(), strict=True)),
        inseparable_tags=inseparable_tags(tags, names),
        near_universal_tags=near_universal_tags(tags, names),
        untagged=int((tags == ABSENT).all(1).sum()),
        all_unknown=int((tags == UNKNOWN).all(1).sum()) if names else 0,
        unknown_tags=int((tags == UNKNOWN).sum()),
        unreadable={
            bag.name: fact.reason for bag, fact in zip(bags, facts, strict=True) if fact.size is None
        },
        odd={
            bag.name: ", ".join(filter(None, some)) for bag, some in zip(bags, odd, strict=True) if any(some)
        },
        duplicates=tuple(tuple(bags[i].name for i in group) for group in groups),
        differing=tuple(
            tuple(bags[i].name for i in group) for group in groups if len({bags[i].tags for i in group}) > 1
        ),
        sizes=size_ranges(facts),
        value_ranges=ranges,
        values=tuple(reading_notes(facts, ranges)),
        transfer=transfer_rows_of(names, mapping),
        training=training,
        untrainable_reasons=reasons,
        seconds=seconds,
        photos_per_second=len(bags) / max(seconds, 1e-9),
    )


def transfer_rows_of(names: Sequence[str], mapping: Path | None = None) -> dict[str, tuple[str, ...]]:
    """The ImageNet categories whose rows each class would start from; a name that is unclear says so.

    Raises:
        UserError: the mapping file cannot be read.
    """
    categories = imagenet_categories()
    mapping_for((), categories, mapping)  # mistakes in the file are the user's
    found = {}
    for name in names:
        try:
            rows = mapping_for([name], categories, mapping)[name]
            found[name] = tuple(categories[row] for row in rows)
        except UserError as error:
            found[name] = (f"unclear: {error}",)
    return found


def report_text(report: CheckReport) -> str:
    """The report for people: what is wrong first in each part, long lists cut."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: CheckReport) -> Iterator[str]:
    yield f"{report.name}: {report.bags:,} bags, {report.photos:,} readable photos"
    yield f"  - tags from {report.tags_from}"
    for note in report.notes:
        yield f"  - {note}"
    if report.sizes:
        (w0, w1, w2), (h0, h1, h2) = report.sizes["width"], report.sizes["height"]
        yield f"Sizes: width {w0:g} to {w2:g} (median {w1:g}), height {h0:g} to {h2:g} (median {h1:g}) pixels"
    for line in report.values:
        yield f"Values: {line}"
    yield ""
    width = max((len(name) for name in report.tag_counts), default=0)
    yield f"{'Tag':<{width}}  {'bags':>7}  starts from (ImageNet classifier)"
    for name, count in report.tag_counts.items():
        rows = report.transfer.get(name, ())
        start = ", ".join(rows[:3]) + f", ... ({len(rows)} rows)" * (len(rows) > 3)
        yield f"{name:<{width}}  {count:>7,}  {start or 'nothing: starts small'}"
    yield ""
    yield (
        f"Untagged: {report.untagged:,} bags. All unknown: {report.all_unknown:,} bags. Unknown tags: "
        f"{report.unknown_tags:,}"
    )
    yield from _list(
        "Tags that never occur apart, which tags alone cannot tell apart",
        (" = ".join(group) for group in report.inseparable_tags),
    )
    yield from _list(
        f"Tags on {NEARLY_ALL:.0%} of the photos or more, hardly told from the background",
        (f"{name} ({share:.1%})" for name, share in report.near_universal_tags.items()),
    )
    yield from _list("Photos that cannot be read", _pairs(report.unreadable))
    yield from _list("Odd photos", _pairs(report.odd))
    yield from _list("Same photo several times", (" = ".join(group) for group in report.duplicates))
    yield from _list(
        "Same photo several times, with other tags", (" = ".join(group) for group in report.differing)
    )
    yield f"Read in {report.seconds:.1f} s, {report.photos_per_second:,.0f} photos/s"
    if report.training is not None:
        yield report.training.text()
    for reason in report.untrainable_reasons:
        yield f"Training would teach nothing: {reason}"


def _pairs(table: Mapping[str, str]) -> Iterator[str]:
    return (f"{name}: {what}" for name, what in table.items())


def _list(title: str, items: Iterable[str]) -> Iterator[str]:
    lines = list(items)
    if lines:
        yield f"{title}: {len(lines):,}"
        yield from (f"  {line}" for line in lines[:SHOWN])
        if len(lines) > SHOWN:
            yield f"  ... and {len(lines) - SHOWN:,} more (all of them in --json)"
