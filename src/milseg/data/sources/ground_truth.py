"""True masks that lie beside the photos: a folder of PNG files, matched to the bags of any source.

truth/pets/a.png                 the mask of photo pets/a.jpg; palette or grey, values are class numbers, 255 void
truth/labels.json                {"classes": ["background", "cat", ...]}, in the order of the values
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from milseg.data.bags import BagSet, mask_values_for
from milseg.data.sources.mask_names import ValueNames, class_notes, names_of_values, require_common
from milseg.data.sources.names import PHOTO_SUFFIXES, composed
from milseg.data.sources.outputs import is_leftover
from milseg.errors import UserError

CLASS_MASKS = "SegmentationClass"


def attach_masks(bags: BagSet, folder: Path, *, names: ValueNames = None) -> BagSet:
    """The photos of a set that have a true mask below `folder`, with these masks; none is opened.

    A mask is a photo's when their paths below the two folders agree but for the extension. Where no photo finds its
    mask so, the file name decides: among several masks of that name the one whose path ends as the photo's does, or
    the reverse. Classes belong together by name: a true class that the set does not have is void, with a note.

    Args:
        bags: photos of any source; masks they have already are replaced.
        folder: PNG files in any depth.
        names: of the masks' values: "voc", a JSON file, names in order, or the name of each value; None reads
            `labels.json` in `folder` where there is one, and else takes the set's own classes.

    Returns:
        The set with masks and their values; photos without a mask are left out and counted in its notes.

    Raises:
        UserError: no masks, none that is a photo's, two that could be; no class name in common besides background.
    """
    masks = masks_below(folder)
    stored = names_of_values(names, folder, bags.classes)
    require_common(bags.classes, stored.values(), "the classes of the set")
    matched = match_masks([bag.name for bag in bags.bags], masks, folder)
    kept = tuple(replace(bag, mask=matched[bag.name]) for bag in bags.bags if bag.name in matched)
    notes = [*bags.notes]
    if len(kept) < len(bags):
        first = next(bag.name for bag in bags.bags if bag.name not in matched)
        notes.append(f"{len(bags) - len(kept):,} photos without a true mask left out, such as {first}")
    return replace(
        bags,
        bags=kept,
        mask_values=mask_values_for(bags.classes, stored),
        mask_names=stored,
        notes=(*notes, *class_notes(bags.classes, stored.values())),
    )


def match_masks(photos: Sequence[str], masks: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Mask file by photo, for the photos that have one; both are named by path without extension.

    Raises:
        UserError: no photo has one, or it is not clear which.
    """
    same = {name: masks[composed(name)] for name in photos if composed(name) in masks}
    if same:
        return same
    by_stem: dict[str, list[str]] = {}
    for name in masks:
        by_stem.setdefault(_stem(name), []).append(name)
    found: dict[str, Path] = {}
    taken: dict[str, str] = {}
    for photo in photos:
        names = by_stem.get(_stem(photo), [])
        names = [name for name in names if _ends_alike(name, photo)] or names
        if len(names) > 1:
            raise UserError(
                f"{folder}: {names[0]}.png and {names[1]}.png may both be the mask of photo {photo!r}; lay the masks "
                "in the same folders as the photos"
            )
        for name in names:
            other = taken.setdefault(name, photo)
            if other != photo:
                raise UserError(
                    f"{masks[name]}: may be the mask of photo {other!r} or {photo!r}; lay the masks in the same "
                    "folders as the photos"
                )
            found[photo] = masks[name]
    if not found:
        such = f", photos such as {photos[0]!r}" if photos else ", and there are no photos"
        raise UserError(
            f"{folder}: none of its {len(masks):,} masks is one of the {len(photos):,} photos'; masks such as "
            f"{min(masks)!r}{such}; expected the photo's path, or at least its file name, with the extension .png"
        )
    return found


def _stem(name: str) -> str:
    return composed(name).rpartition("/")[2]


def _ends_alike(one: str, other: str) -> bool:
    one, other = composed(one), composed(other)
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")


def masks_below(folder: Path) -> dict[str, Path]:
    """The PNG files below a folder by relative path without extension, sorted; leftovers and hidden files are left out.

    The paths are in composed Unicode. Of an export of CVAT's or a VOC tree, the masks of classes alone are taken.

    Raises:
        UserError: no such folder, no PNG in it, or two of one name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one with PNG masks")
    if (folder / CLASS_MASKS).is_dir():
        folder = folder / CLASS_MASKS
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() != ".png" or any(map(is_leftover, relative.parts)):
            continue
        name = composed(relative.with_suffix("").as_posix())
        if name in found:
            raise UserError(f"{path}: two masks named {name}; keep one")
        found[name] = path
    if not found:
        raise UserError(f"{folder}: holds no PNG masks{_other_pictures(folder)}")
    return found


def _other_pictures(folder: Path) -> str:
    """What there is in place of PNG files, with the way out."""
    kinds = Counter(
        path.suffix.lower() for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES
    )
    if not kinds:
        return ""
    kind, count = kinds.most_common(1)[0]
    lossy = (
        ", which changes class numbers"
        if kind in (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif")
        else ""
    )
    return f", but {count:,} {kind} files{lossy}; export the masks as PNG, from where they were drawn"
