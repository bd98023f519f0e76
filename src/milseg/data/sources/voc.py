"""PASCAL VOC as it comes, with SBD's masks where they are at hand.

    VOCdevkit/VOC2012/JPEGImages/ID.jpg            photos
                      SegmentationClass/ID.png     palette masks: 0..20, 255 = void
                      Annotations/ID.xml           objects with their class names
                      ImageSets/Segmentation/train.txt, val.txt, trainval.txt, test.txt

Everingham, Van Gool, Williams, Winn, Zisserman: "The PASCAL Visual Object Classes Challenge", IJCV 2010.
Reading a set lists folders and reads its tags; photos and masks stay closed until they are used, but for tags
taken from the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from milseg.data.bags import BACKGROUND, VOID, Bag, BagSet, make_tags, mask_values_for
from milseg.data.image import open_mask
from milseg.data.sources.sbd import require_sbd
from milseg.data.sources.voc_layout import annotation_files, files_by_id, mask_files, read_objects
from milseg.data.sources.voc_sets import SetRule, set_ids, set_rule, year_folder
from milseg.data.sources.voc_tags import tags_for
from milseg.errors import UserError, unknown_name
from milseg.utils.files import PathLike, as_path

# In the order of VOC's mask values, 0 to 20.
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus"),
    *("car", "cat", "chair", "cow", "diningtable", "dog", "horse"),
    *("motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

# Where tags come from, as `BagSet.tags_from` says it.
FILE, XML, MASKS, NONE = "tag file", "XML annotations", "masks", "none"
FOLDERS = {XML: "Annotations", MASKS: "SegmentationClass"}
SINGULAR = {XML: "XML annotation", MASKS: "mask"}


def read_voc(
    root: PathLike,
    split: str,
    *,
    year: int | None = None,
    classes: Sequence[str] | None = None,
    tags_file: PathLike | None = None,
    tags_from: str | None = None,
    sbd: PathLike | None = None,
    drop_untagged: bool | None = None,
    ignore_unknown: bool = False,
) -> BagSet:
    """Read a set of PASCAL VOC by name.

    Masks are VOC's own where the year has one for the photo, else SBD's. A bag's name is the photo's id.

    Args:
        root: see `year_folders`.
        split: a name in `SETS`.
        year: 2011 or 2012 where `root` holds several; None takes the set's own year, else the latest.
        classes: VOC classes to learn, without the background, in this order; None takes all 20. Mask pixels
            of the others are void and their tags are dropped (counted in the notes).
        tags_file: tags by photo, in any form that `open_source` reads, with its marks for unknown and absent
            tags; photos without a row are left out, and the lists on disk, not the file's split column, say what
            is in the set. Both are counted in the notes.
        tags_from: without `tags_file`: "XML annotations" (all objects, difficult ones too) or "masks" (each
            class that has a pixel, as the paper's authors did); None takes the annotations where the set has
            them. Only "masks" opens a mask.
        sbd: SBD's folder; None looks below `root`.
        drop_untagged: what to do with photos that have none of `classes`. None: leave out of a training set
            those whose tags are all of other classes, as they would teach as background what the masks call
            void; keep all photos of other sets, and those tagged as empty. True leaves out every photo
            without a tag, False none.
        ignore_unknown: skip tags of the tag file that are no VOC class, counted in the notes, instead of an
            error.

    Returns:
        A BagSet, photos and masks as paths. A set without any tags ("test") has them all unknown, `tags_from`
        "none".

    Raises:
        UserError: a set, class or tag of an unknown name; a folder, list, photo, annotation or SBD that is
            missing.
    """
    root, sbd = as_path(root), None if sbd is None else as_path(sbd)
    tags_file = None if tags_file is None else as_path(tags_file)
    rule = set_rule(split, year)
    home = year_folder(root, split, year or rule.year)
    names = _class_names(classes)
    extra = require_sbd(root, sbd, split) if rule.needs_sbd else None
    ids = set_ids(rule, home, extra)
    photos = _photos(ids, home, extra if rule.sbd else None)
    every_mask = mask_files(home, extra if rule.sbd else None)
    masks = {i: every_mask[i] for i in ids if i in every_mask}
    notes = _set_notes(rule, ids, masks, extra)

    source = _tag_source(ids, rule, home, masks, tags_file, tags_from)
    unsure: dict[str, tuple[str, ...]] = {}
    if tags_file is not None:
        read, more = tags_for(
            {i: photos[i] for i in ids},
            tags_file,
            VOC_CLASSES,
            splits=(split, *rule.splits),
            ignore_unknown=ignore_unknown,
        )
        notes += more
        tags = {i: row.present for i, row in read.items()}
        unsure = {i: row.unknown if row.seen else VOC_CLASSES for i, row in read.items()}
    elif source == XML:
        annotations = annotation_files(home)
        tags = {i: read_annotation(annotations[i]) for i in ids}
    elif source == MASKS:
        tags = {i: mask_classes(masks[i]) for i in ids}
    else:
        tags = {}
    if source == NONE:
        rows = {i: make_tags((), names, unknown=names) for i in ids}
        notes.append("no tags: all unknown")
    else:
        chosen, more = _choose(tags, names, rule.training, drop_untagged, unsure)
        rows = {i: make_tags(present, names, unknown=unsure.get(i, ())) for i, present in chosen.items()}
        notes += more
    if not rows:
        raise UserError(f"{home}: no photo is left in the set {split!r}: {'; '.join(notes)}")
    return BagSet(
        name=f"{home.absolute().name} {split}",
        classes=names,
        bags=tuple(Bag(name=i, photo=photos[i], tags=row, mask=masks.get(i)) for i, row in rows.items()),
        tags_from=source,
        mask_values=None if names == VOC_CLASSES else mask_values_for(names, dict(enumerate(VOC_CLASSES))),
        # A value that is no class of VOC is an error, not void.
        mask_names=dict(enumerate(VOC_CLASSES)),
        notes=tuple(notes),
    )


def read_annotation(path: Path) -> tuple[str, ...]:
    """The classes of the objects in one of VOC's XML files, each once, difficult ones too.

    Raises:
        UserError: as `read_objects`, or a class that is not VOC's.
    """
    names = read_objects(path)
    for name in names:
        if name not in VOC_CLASSES[1:]:
            raise UserError(f"{path}: {unknown_name('object', name, VOC_CLASSES[1:])}")
    return names


def mask_classes(path: Path) -> tuple[str, ...]:
    """The classes that have at least one pixel in a mask file, void and background skipped.

    Raises:
        UserError: as `open_mask`, or a value that is no class of VOC and not void.
    """
    values = np.flatnonzero(np.bincount(open_mask(path).ravel(), minlength=256)).tolist()
    wrong = [value for value in values if len(VOC_CLASSES) <= value != VOID]
    if wrong:
        raise UserError(
            f"{path}: holds the value {wrong[0]}; expected VOC's class numbers 0 to "
            f"{len(VOC_CLASSES) - 1}, or 255 (void)"
        )
    return tuple(VOC_CLASSES[value] for value in values if value not in (BACKGROUND, VOID))


def _class_names(classes: Sequence[str] | None) -> tuple[str, ...]:
    """Background first, then the classes in the order given."""
    if classes is None:
        return VOC_CLASSES
    names = [name for name in classes if name != "background"]
    for name in names:
        if name not in VOC_CLASSES:
            raise unknown_name("VOC class", name, VOC_CLASSES[1:])
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice or not names:
        found = f"{twice[0]!r} is given twice" if twice else "no class is given"
        raise UserError(f"classes: {found}; expected one or more of {', '.join(VOC_CLASSES[1:])}, each once")
    return ("background", *names)


def _photos(ids: Sequence[str], home: Path, sbd: Path | None) -> dict[str, Path]:
    photos = files_by_id(home / "JPEGImages", ".jpg", ".jpeg")
    if sbd is not None:
        photos = files_by_id(sbd / "img", ".jpg") | photos
    missing = [i for i in ids if i not in photos]
    if missing:
        places = f"{home / 'JPEGImages'}" + (f" and {sbd / 'img'}" if sbd is not None else "")
        raise UserError(
            f"{places}: no photo {missing[0]}.jpg, and {len(missing)} of the {len(ids)} photos of "
            f"the set are "
            "missing; unpack the whole archive there, or correct the list in ImageSets/Segmentation"
        )
    return photos


def _set_notes(rule: SetRule, ids: Sequence[str], masks: dict[str, Path], sbd: Path | None) -> list[str]:
    notes = []
    if rule.photos not in (None, len(ids)):
        notes.append(f"{len(ids):,} photos listed on disk; the set is known to have {rule.photos:,}")
    if rule.sbd and sbd is not None:
        from_sbd = sum(path.suffix == ".mat" for path in masks.values())
        notes.append(f"masks: {len(masks) - from_sbd:,} of VOC, {from_sbd:,} of SBD")
    if len(masks) < len(ids):
        notes.append(f"{len(ids) - len(masks):,} of {len(ids):,} photos have no mask")
    return notes


def _tag_source(
    ids: Sequence[str],
    rule: SetRule,
    home: Path,
    masks: dict[str, Path],
    tags_file: Path | None,
    tags_from: str | None,
) -> str:
    """Where the tags come from, decided by what lies on disk; opens nothing."""
    if tags_from not in (None, XML, MASKS):
        raise unknown_name("source of tags", str(tags_from), (XML, MASKS))
    if tags_file is not None:
        if tags_from is not None:
            raise UserError(
                f"{tags_file}: tags from a tag file and from {tags_from} both asked for; choose one"
            )
        return FILE
    annotations = annotation_files(home)
    without = {
        XML: [i for i in ids if i not in annotations],
        MASKS: [i for i in ids if i not in masks],
    }
    if tags_from is None:
        tags_from = next((kind for kind in (XML, MASKS) if len(without[kind]) < len(ids)), NONE)
        if tags_from == NONE and not rule.training:
            return NONE
    if tags_from == NONE or without[tags_from]:
        # Tags of two kinds in one set would make its results unclear.
        kind = XML if tags_from == NONE else tags_from
        raise UserError(
            f"{home}: {len(without[kind])} of the {len(ids)} photos have no {SINGULAR[kind]}, such as "
            f"{without[kind][0]}; complete {FOLDERS[kind]}, or give a tag file (columns image, tags), or "
            f"take all tags from {MASKS if kind == XML else XML}"
        )
    return tags_from


def _choose(
    tags: dict[str, tuple[str, ...]],
    names: Sequence[str],
    training: bool,
    drop_untagged: bool | None,
    unsure: dict[str, tuple[str, ...]],
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """The photos to keep with those of their tags that are in `names`; see `read_voc`, `drop_untagged`.

    Photos whose tags of `names` may be there, as far as is known, are neither empty nor of other classes.
    """
    maybe = {i for i, here in unsure.items() if not set(here).isdisjoint(names)}
    full = {i: tuple(tag for tag in here if tag != "background") for i, here in tags.items()}
    kept = {i: tuple(tag for tag in here if tag in names) for i, here in full.items()}
    dropped = sum(len(full[i]) - len(kept[i]) for i in full)
    empty = [i for i in full if not full[i] and i not in maybe]
    others = [i for i in full if full[i] and not kept[i] and i not in maybe]
    leave_others = training if drop_untagged is None else drop_untagged
    leave_empty = drop_untagged is True
    notes = []
    if dropped:
        notes.append(f"{dropped:,} tags of classes that are not learned dropped")
    for photos, leave, what in (
        (others, leave_others, "photos with tags of other classes only"),
        (empty, leave_empty, "photos without any tag"),
    ):
        if photos:
            how = "left out" if leave else "kept as background-only bags"
            notes.append(f"{len(photos):,} {what} {how}, such as {photos[0]}")
    gone = {*(others if leave_others else ()), *(empty if leave_empty else ())}
    return {i: here for i, here in kept.items() if i not in gone}, notes
