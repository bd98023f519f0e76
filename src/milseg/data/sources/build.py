"""From what a reader found to a set of bags, in one way for all kinds of sources.

The photos are found on disk, splits and classes chosen, what is not said turned into absent or unknown, and
what is odd counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import replace

from milseg.data.bags import VOID, Bag, BagSet, make_tags, mask_values_for
from milseg.data.sources.cells import clean_tag
from milseg.data.sources.labelled import Labelled, Labels, split_name
from milseg.data.sources.matching import (
    Rows,
    clean_tags,
    match_rows,
    missing_note,
    none_found,
    with_clean_tags,
)
from milseg.data.sources.names import is_plain_text, without_suffix
from milseg.errors import UserError, unknown_name

TAGS_ARE = ("complete", "partial")
UNTAGGED = ("background", "unknown", "leave out")
# What tag files call the background; labelme and VOC tools write the second.
BACKGROUND_NAMES = ("background", "_background_", "__background__")
# Tags of surroundings. Where every photo has one, the tags name everything in it.
SURROUNDINGS = frozenset(
    (
        *("sky", "cloud", "clouds", "grass", "road", "street", "sidewalk", "pavement", "path", "water"),
        *("ocean", "sea", "river", "lake", "beach", "sand", "snow", "ground", "earth", "soil", "terrain"),
        *("mountain", "mountains", "hill", "rock", "vegetation", "tree", "trees", "forest", "building"),
        *("field", "buildings", "wall", "floor", "ceiling"),
    )
)


def make_bag_set(
    labels: Labels,
    *,
    name: str,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    tags_are: str = "complete",
    background: bool | None = None,
    ignore_unknown: bool = False,
    untagged: str = "background",
    keep_all: bool = False,
) -> BagSet:
    """The bags of what a reader found; `open_source` says what the arguments mean.

    Raises:
        UserError: see `open_source`.
    """
    for option, value, known in (("tags_are", tags_are, TAGS_ARE), ("untagged", untagged, UNTAGGED)):
        if value not in known:
            raise unknown_name(f"value of {option}", value, known)
    notes = list(labels.notes)
    # Every row is looked at, whatever its split, so that two splits of one file agree on the classes.
    found, more = _on_disk(labels)
    notes += more
    found, more = _without_background_tag(found)
    notes += more
    names = _class_names(labels, found, classes)
    found, more = _in_split(labels, found, split)
    notes += more
    found, more = _known_only(found, names, ignore_unknown, keep_all)
    notes += more
    if background is None:
        background, more = _needs_background(found.values())
        notes += more
    every = ("background", *names) if background else names
    if len(every) > VOID:
        raise UserError(
            f"{labels.file}: {len(names):,} different tags; at most {VOID - 1} can be told apart in a mask. "
            "Is this the right column, and are its tags separated by one of , ; | or by blanks?"
        )
    found, more = _policy(found, tags_are, background, untagged, keep_all)
    notes += more
    if not found:
        raise UserError(f"{labels.file}: no photo is left: {'; '.join(notes)}")
    has_masks = any(row.image in labels.masks for row in found.values())
    bags = tuple(
        Bag(
            name=without_suffix(photo),
            photo=labels.packed.get(photo) or labels.photos.path(photo),
            tags=_tags(row, every, tags_are),
            mask=labels.masks.get(row.image),
        )
        for photo, row in found.items()
    )
    _note_classes(notes, bags, every)
    return BagSet(
        name=name,
        classes=every,
        bags=bags,
        tags_from=labels.tags_from,
        mask_values=mask_values_for(every, labels.stored) if has_masks else None,
        mask_names=dict(labels.stored) if has_masks else None,
        notes=tuple(notes),
    )


def _on_disk(labels: Labels) -> tuple[Rows, list[str]]:
    """The rows whose photo there is; each photo has one row and its own name."""
    found, missing, notes = match_rows(labels)
    if not found:
        raise none_found(labels, missing)
    stems: dict[str, str] = {}
    for photo in found:
        other = stems.setdefault(without_suffix(photo), photo)
        if other != photo:
            raise UserError(
                f"{labels.photos.root}: {other} and {photo} differ in their extension only, and their "
                "masks would have the same name; rename one of them"
            )
    if missing:
        notes.insert(0, missing_note(labels, missing))
    rest = len(labels.photos.names) - len(found)
    if rest and labels.count_rest:
        example = next(photo for photo in labels.photos.names if photo not in found)
        notes.append(f"{rest:,} photos without a row left out, such as {example}")
    if labels.photos.outputs:
        names = labels.photos.outputs
        notes.append(f"milseg's own outputs are no photos and were left out: {', '.join(names[:5])}")
    if labels.photos.unreadable:
        names = labels.photos.unreadable
        notes.append(f"{len(names):,} photos whose names are no plain text left out, such as {names[0]}")
    return {photo: with_clean_tags(row) for photo, row in found.items()}, notes


def _without_background_tag(rows: Rows) -> tuple[Rows, list[str]]:
    """Tags called "background" mean the background itself, which is in every photo and needs none."""
    kept, count = {}, 0
    for photo, row in rows.items():
        said = [
            tag for tag in (*row.present, *row.absent, *row.unknown) if tag.casefold() in BACKGROUND_NAMES
        ]
        count += bool(said)
        kept[photo] = _less(row, set(said)) if said else row
    return kept, [f"the tag 'background' of {count:,} photos skipped: the background needs none"] * bool(
        count
    )


def _less(row: Labelled, dropped: Set[str]) -> Labelled:
    """The row without some of its tags."""
    return replace(
        row,
        present=tuple(tag for tag in row.present if tag not in dropped),
        absent=tuple(tag for tag in row.absent if tag not in dropped),
        unknown=tuple(tag for tag in row.unknown if tag not in dropped),
    )


def _class_names(labels: Labels, rows: Rows, classes: Sequence[str] | None) -> tuple[str, ...]:
    """The classes without the background: those given, else all there are, sorted."""
    if classes is not None:
        names = tuple(clean_tag(name) for name in classes if name.casefold() not in BACKGROUND_NAMES)
        twice = [name for i, name in enumerate(names) if name in names[:i]]
        if twice or not names:
            found = f"{twice[0]!r} is given twice" if twice else "none is given"
            raise UserError(f"classes: {found}; expected one or more tags, each once")
        return names
    first: dict[str, str] = dict.fromkeys(clean_tags(labels.classes), str(labels.file))
    for row in rows.values():
        for tag in (*row.present, *row.absent, *row.unknown):
            first.setdefault(tag, row.where)
    for tag, where in first.items():
        if not tag.strip() or not is_plain_text(tag):
            raise UserError(f"{where}: {tag[:80]!a} is no tag; expected a word of plain text")
    return tuple(sorted(tag for tag in first if tag.casefold() not in BACKGROUND_NAMES))


def _in_split(labels: Labels, rows: Rows, split: str | None) -> tuple[Rows, list[str]]:
    """The rows of one split, by what they say or else by the folders their photos are in."""
    said = Counter(split_name(row.split) for row in rows.values())
    parts = ", ".join(f"{name or 'none'} ({count:,})" for name, count in sorted(said.items()))
    if split is None:
        return rows, [f"all splits taken together: {parts}"] * (len(said) > 1)
    wanted = split_name(split)
    if set(said) == {""}:
        chosen = {
            photo: row
            for photo, row in rows.items()
            if wanted in (split_name(part) for part in photo.split("/")[:-1])
        }
        parts = f"no split is written there, and no folder is called {split!r}"
    else:
        chosen = {photo: row for photo, row in rows.items() if split_name(row.split) == wanted}
        parts = f"there is {parts}"
    if not chosen:
        raise UserError(f"{labels.file}: no photo is in the split {split!r}; {parts}")
    return chosen, []


def _known_only(
    rows: Rows, names: Sequence[str], ignore_unknown: bool, keep_all: bool
) -> tuple[Rows, list[str]]:
    """The rows with tags among `names` only; without those whose every tag is ignored, unless all are kept."""
    known = set(names)
    kept: Rows = {}
    ignored: Counter[str] = Counter()
    others = []
    for photo, row in rows.items():
        strange = [tag for tag in (*row.present, *row.absent, *row.unknown) if tag not in known]
        if not strange:
            kept[photo] = row
            continue
        if not ignore_unknown:
            raise UserError(
                f"{row.where}: {unknown_name('tag', strange[0], names)}. --ignore-unknown-tags leaves "
                "the others out"
            )
        ignored.update(tag for tag in row.present if tag not in known)
        short = _less(row, set(strange))
        if row.present and not short.present and not keep_all:
            # It shows something, and that is not the background.
            others.append(photo)
        else:
            kept[photo] = short
    notes = []
    if ignored:
        most = ", ".join(f"{tag} ({count:,})" for tag, count in ignored.most_common(3))
        notes.append(f"{sum(ignored.values()):,} unknown tags ignored: {most}{', ...' * (len(ignored) > 3)}")
    if others:
        notes.append(f"{len(others):,} photos with ignored tags only left out, such as {others[0]}")
    return kept, notes


def _needs_background(rows: Iterable[Labelled]) -> tuple[bool, list[str]]:
    """Whether there is a class for what no tag names: unless the tags name everything in every photo."""
    found = list(rows)
    if not names_everything(found):
        return True, []
    empty = [row for row in found if row.seen and not (row.present or row.unknown)]
    if empty:
        return True, [
            f"{len(empty):,} photos without any tag show something that no tag names, so there is a background class; "
            "--background no leaves them out"
        ]
    return False, [
        "every photo has a tag of its surroundings (sky, grass, road ...): no background class; --background yes if "
        "there is more in the photos"
    ]


def names_everything(rows: Iterable[Labelled]) -> bool:
    """Whether the tags seem to name all that is in a photo: each has one of at least two `SURROUNDINGS`."""
    met: set[str] = set()
    for row in rows:
        here = {tag.casefold() for tag in row.present} & SURROUNDINGS
        if row.present and not here:
            return False
        met |= here
    return len(met) >= 2


def _policy(
    rows: Rows, tags_are: str, background: bool, untagged: str, keep_all: bool
) -> tuple[Rows, list[str]]:
    """What becomes of photos without a tag; without a background class they have nothing to teach."""
    kept: Rows = {}
    empty, unseen = [], []
    for photo, row in rows.items():
        nothing = not row.seen or (tags_are == "partial" and not (row.present or row.absent))
        if nothing:
            unseen.append(photo)
            row = replace(row, seen=False)
        elif not (row.present or row.unknown):
            empty.append(photo)
            row = replace(row, seen=untagged != "unknown")
        else:
            kept[photo] = row
            continue
        if keep_all or (background and not (untagged == "leave out" and not nothing)):
            kept[photo] = row
    notes = []
    bag = "background-only" if untagged == "background" else "unknown"
    for photos, what, taken in (
        (empty, "without any tag", f"kept as {bag} bags"),
        (unseen, "of which nothing is known", "kept, all their tags unknown"),
    ):
        if photos:
            how = taken if photos[0] in kept else "left out"
            notes.append(f"{len(photos):,} photos {what} {how}, such as {photos[0]}")
    return kept, notes


def _tags(row: Labelled, classes: Sequence[str], tags_are: str) -> tuple[int, ...]:
    if not row.seen:
        return make_tags((), classes, unknown=classes)
    if tags_are == "partial":
        return make_tags(row.present, classes, unknown=set(classes).difference(row.absent))
    return make_tags(row.present, classes, unknown=row.unknown)


def _note_classes(notes: list[str], bags: Sequence[Bag], classes: Sequence[str]) -> None:
    """Classes that no bag carries keep their place; names that differ in case only are likely one class."""
    counts = [0] * len(classes)
    for bag in bags:
        for i, tag in enumerate(bag.tags):
            counts[i] += tag == 1
    unused = [name for name, count in zip(classes, counts, strict=True) if not count and name != "background"]
    if unused:
        shown = ", ".join(unused[:5]) + ", ..." * (len(unused) > 5)
        notes.append(f"{len(unused):,} classes without a photo, which keep their place: {shown}")
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(name.casefold().replace("_", " ").replace("-", " "), []).append(name)
    for same in alike.values():
        if len(same) > 1:
            notes.append(f"classes whose names are nearly the same: {', '.join(same)}; one class, perhaps?")
