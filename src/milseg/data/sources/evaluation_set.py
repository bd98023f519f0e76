"""Photos of any source with their true masks, in the classes of the model that is to be scored on them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from milseg.config.source import PLAIN_READING, ShardReading
from milseg.data.bags import VOID, BagSet, mask_values_for
from milseg.data.sources.ground_truth import TruthClasses, attach_masks
from milseg.data.sources.open import open_source
from milseg.data.sources.voc import VOC_CLASSES, read_voc
from milseg.data.sources.voc_sets import year_folders
from milseg.data.sources.voc_tree import home_folder
from milseg.errors import UserError


def evaluation_bags(
    source: Path,
    classes: Sequence[str],
    *,
    truth: Path | None = None,
    truth_classes: TruthClasses = None,
    tags: Path | None = None,
    split: str | None = None,
    kind: str | None = None,
    year: int | None = None,
    sbd: Path | None = None,
    shards: ShardReading = PLAIN_READING,
) -> BagSet:
    """The photos of a source that have a true mask. Tags only say which photos there are; no photo is opened.

    A tree of PASCAL VOC itself is read by `read_voc`, with its named sets, where the classes are VOC's; anything else
    by `open_source`.

    Args:
        classes: the model's, background included.
        truth, truth_classes: a folder of masks, as in `attach_masks`; None takes the tree's own, where it is VOC's.
        split: None: "val" of PASCAL VOC, else every photo.
        tags, kind: as in `open_source`.
        year, sbd: as in `read_voc`; for PASCAL VOC alone.
        shards: how shards are read.

    Returns:
        A set with exactly these classes, each of its bags with a mask.

    Raises:
        UserError: as these functions; no masks; masks of none of the classes.
    """
    names = [name for name in classes if name != "background"]
    if tags is None and kind in (None, "voc") and _is_pascal_voc(source, classes):
        bags = read_voc(source, split or "val", year=year, classes=names, sbd=sbd)
    elif year is not None or sbd is not None:
        raise UserError(
            f"{source}: --year and --sbd are for PASCAL VOC with VOC's classes alone; leave them out, or give VOC's "
            "own folder"
        )
    else:
        bags = open_source(
            source,
            tags=tags,
            split=split,
            classes=names,
            background="background" in classes,
            ignore_unknown=True,
            kind=kind,
            keep_all=True,
            shards=shards,
        )
        if truth is None:
            if tags is not None and set(names) <= set(VOC_CLASSES):
                bags = _with_masks_of_tree(bags, source)
            bags = _with_own_masks(bags, source)
    if bags.classes != tuple(classes):
        raise UserError(
            f"the model's classes are {', '.join(classes)}; expected 'background', where there is one, to come first "
            "and to be spelt so, and each class once"
        )
    return bags if truth is None else attach_masks(bags, truth, truth_classes=truth_classes)


def _is_pascal_voc(source: Path, classes: Sequence[str]) -> bool:
    if "background" not in classes or not set(classes) <= set(VOC_CLASSES):
        return False
    try:
        homes = year_folders(source).values()
    except UserError:
        return False
    return any((home / "ImageSets" / "Segmentation").is_dir() for home in homes)


def _with_masks_of_tree(bags: BagSet, source: Path) -> BagSet:
    """Photos of a tag file with the masks of the VOC tree in which they lie; the same where they lie elsewhere."""
    try:
        home = home_folder(source)
    except UserError:
        return bags
    folder = os.path.realpath(home / "JPEGImages")
    found = []
    for bag in bags.bags:
        if isinstance(bag.photo, Path) and os.path.realpath(bag.photo.parent) == folder:
            mask = home / "SegmentationClass" / f"{bag.photo.stem}.png"
            bag = replace(bag, mask=mask if mask.is_file() else None)
        found.append(bag)
    # Values have a meaning only where the classes are VOC's own.
    values = mask_values_for(bags.classes, dict(enumerate(VOC_CLASSES)))
    return replace(bags, bags=tuple(found), mask_values=values)


def _with_own_masks(bags: BagSet, source: Path) -> BagSet:
    kept = tuple(bag for bag in bags.bags if bag.mask is not None)
    if not kept or bags.mask_values is None:
        raise UserError(
            f"{source}: {len(bags):,} photos and no true masks; give a folder of PNG masks with --truth (a VOC tree "
            "brings its own, in SegmentationClass, where its classes are VOC's)"
        )
    shown = {bags.classes[value] for value in bags.mask_values.tolist() if value != VOID} - {"background"}
    if not shown:
        raise UserError(
            f"{source}: its masks show VOC's classes, and the model has none of these ({', '.join(bags.classes)})"
        )
    left = len(bags) - len(kept)
    notes = (f"{left:,} photos without a true mask left out",) if left else ()
    return replace(bags, bags=kept, notes=(*bags.notes, *notes))
