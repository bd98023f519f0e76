"""Photos of any source with their true masks, in the classes of the model that is to be scored on them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from milseg.config import EvaluateOptions
from milseg.config.compare import CompareOptions
from milseg.config.source import ShardReading
from milseg.data.bags import VOID, BagSet, mask_values_for
from milseg.data.sources.build import make_bag_set
from milseg.data.sources.ground_truth import attach_masks
from milseg.data.sources.labelled import Labelled, Labels
from milseg.data.sources.mask_names import ValueNames, given_names
from milseg.data.sources.open import find_source, open_source
from milseg.data.sources.photo_files import PhotoFiles
from milseg.data.sources.voc import VOC_CLASSES, read_voc
from milseg.data.sources.voc_layout import home_folder, mask_files, year_folders
from milseg.data.sources.voc_sets import SETS
from milseg.data.truth_checks import checked_truth, reading_of
from milseg.errors import UserError


def evaluation_bags(options: EvaluateOptions, classes: Sequence[str]) -> BagSet:
    """The photos of a source that have a true mask. Tags only say which photos there are; no photo is decoded.

    A tree of PASCAL VOC itself is read by `read_voc`, with its named sets, where the classes are VOC's; anything else
    by `open_source`. With a folder of true masks the photos need no tags.

    Args:
        options: source, tags, split, kind, shards, year, sbd, truth and what its values mean. No split: "val" of
            PASCAL VOC, else every photo.
        classes: the model's, background included.

    Returns:
        A set with exactly these classes, each of its bags with a mask; notes say what is odd about them.

    Raises:
        UserError: as these functions and `checked_truth`; no masks; masks of none of the classes.
    """
    source = _source_of(options)
    names = [name for name in classes if name != "background"]
    if _is_pascal_voc(options, classes):
        bags = read_voc(source, options.split or "val", year=options.year, classes=names, sbd=options.sbd)
        if options.tags is not None:
            bags = replace(
                bags, notes=(*bags.notes, f"the photos are VOC's list, not those of {options.tags}")
            )
    elif options.year is not None or options.sbd is not None:
        raise UserError(
            f"{source}: --year and --sbd are for PASCAL VOC with VOC's classes alone; leave them out, or give VOC's "
            "own folder"
        )
    else:
        bags = _photos(options, classes)
    if bags.classes != tuple(classes):
        raise UserError(
            f"the model's classes are {', '.join(classes)}; expected 'background', where there is one, to come first "
            "and to be spelt so, and each class once"
        )
    return with_truth(bags, options)


def with_truth(bags: BagSet, options: EvaluateOptions | CompareOptions) -> BagSet:
    """Those of the bags that have a true mask, with it: of the folder `--truth`, else the source's own.

    Raises:
        UserError: as `attach_masks` and `checked_truth`; no masks, or masks of none of the classes.
    """
    source = _source_of(options)
    names = truth_names(options)
    if options.truth is not None:
        bags = attach_masks(bags, options.truth, names=names)
    else:
        bags = _with_own_masks(_with_masks_of_tree(bags, source), source)
    return checked_truth(bags, reading_of(bags, options.truth or bags.name, given=names))


def truth_names(options: EvaluateOptions | CompareOptions) -> ValueNames:
    """What the options say of the true masks' values.

    Raises:
        UserError: two options say it, one of them cannot be read, or there is no folder of true masks.
    """
    names = given_names(options.truth_labels, options.truth_values, "--truth-labels", "--truth-values")
    if names is not None and options.truth is None:
        option = "--truth-labels" if options.truth_labels is not None else "--truth-values"
        raise UserError(f"{option} goes with --truth alone; leave it out, or give the folder of true masks")
    return names


def _source_of(options: EvaluateOptions | CompareOptions) -> Path:
    assert options.source is not None
    return options.source


def _photos(options: EvaluateOptions, classes: Sequence[str]) -> BagSet:
    """The photos that the source's tags tell of; or, with a folder of true masks, those that lie there."""
    source = _source_of(options)
    try:
        return open_source(
            source,
            tags=options.tags,
            split=options.split,
            classes=[name for name in classes if name != "background"],
            background="background" in classes,
            ignore_unknown=True,
            kind=options.kind,
            keep_all=True,
            shards=ShardReading.of(options),
        )
    except UserError as error:
        asked = options.tags is not None or options.kind is not None
        if options.truth is None or asked or not source.is_dir():
            raise
        photos = PhotoFiles(source)
        if not photos.names:
            raise
        notes = _tags_that_were_not_read(options, error)
    bags = make_bag_set(
        Labels(
            file=source,
            photos=photos,
            rows=[Labelled(image=name, where=name, seen=False) for name in photos.names],
            tags_from="none",
        ),
        name=source.absolute().name,
        split=options.split,
        classes=[name for name in classes if name != "background"],
        background="background" in classes,
        keep_all=True,
    )
    return replace(bags, notes=notes)  # that nothing is known of the photos needs no telling


def _tags_that_were_not_read(options: EvaluateOptions, error: UserError) -> tuple[str, ...]:
    """A sentence where there are tags that cannot be read; none where there are none."""
    try:
        find_source(_source_of(options), split=options.split)
    except UserError:
        return ()
    return (f"every photo is taken, as the tags cannot be read ({error})",)


def _is_pascal_voc(options: EvaluateOptions, classes: Sequence[str]) -> bool:
    """Whether VOC's own lists say which photos there are; beside a tag file only where they have that split."""
    if (
        options.kind not in (None, "voc")
        or "background" not in classes
        or not set(classes) <= set(VOC_CLASSES)
    ):
        return False
    try:
        homes = year_folders(_source_of(options)).values()
    except UserError:
        return False
    folders = [home / "ImageSets" / "Segmentation" for home in homes]
    if options.tags is None:
        return any(folder.is_dir() for folder in folders)
    name = options.split or "val"
    return name in SETS and any((folder / f"{name}.txt").is_file() for folder in folders)


def _with_masks_of_tree(bags: BagSet, source: Path) -> BagSet:
    """Photos without masks with those of the VOC tree in which they lie; the same where they lie elsewhere."""
    names = set(bags.classes) - {"background"}
    if any(bag.mask is not None for bag in bags.bags) or not names <= set(VOC_CLASSES):
        return bags
    try:
        home = home_folder(source if source.is_dir() else source.parent)
    except UserError:
        return bags
    folder, masks = os.path.realpath(home / "JPEGImages"), mask_files(home)
    found = []
    for bag in bags.bags:
        if isinstance(bag.photo, Path) and os.path.realpath(bag.photo.parent) == folder:
            bag = replace(bag, mask=masks.get(bag.photo.stem))
        found.append(bag)
    # Values have a meaning only where the classes are VOC's own.
    stored = dict(enumerate(VOC_CLASSES))
    return replace(
        bags, bags=tuple(found), mask_values=mask_values_for(bags.classes, stored), mask_names=stored
    )


def _with_own_masks(bags: BagSet, source: Path) -> BagSet:
    kept = tuple(bag for bag in bags.bags if bag.mask is not None)
    if not kept:
        raise UserError(
            f"{source}: {len(bags):,} photos and no true masks; give a folder of PNG masks with --truth (a VOC tree "
            "brings its own, in SegmentationClass, where its classes are VOC's)"
        )
    values = range(len(bags.classes)) if bags.mask_values is None else bags.mask_values.tolist()
    if not {bags.classes[value] for value in values if value != VOID} - {"background"}:
        raise UserError(
            f"{source}: its masks show VOC's classes, and the model has none of these ({', '.join(bags.classes)})"
        )
    left = len(bags) - len(kept)
    notes = (f"{left:,} photos without a true mask left out",) if left else ()
    return replace(bags, bags=kept, notes=(*bags.notes, *notes))
