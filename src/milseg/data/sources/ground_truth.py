"""True masks that lie beside the photos: a folder of PNG files, matched to the bags of any source.

truth/pets/a.png                 the mask of photo pets/a.jpg; palette or grey, values are class numbers, 255 void
truth/labels.json                {"classes": ["background", "cat", ...]}, in the order of the values
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from milseg.data.bags import VOID, BagSet, mask_values_for
from milseg.data.sources.voc import VOC_CLASSES
from milseg.errors import UserError

TruthClasses = str | Path | Sequence[str] | None


def attach_masks(bags: BagSet, folder: Path, *, truth_classes: TruthClasses = None) -> BagSet:
    """The photos of a set that have a true mask below `folder`, with these masks; none is opened.

    A mask is a photo's when their paths below the two folders agree but for the extension. Where no photo finds its
    mask so, the file name decides: among several masks of that name the one whose path ends as the photo's does, or
    the reverse. Classes belong together by name: a true class that the set does not have is void, with a note.

    Args:
        bags: photos of any source; masks they have already are replaced.
        folder: PNG files in any depth.
        truth_classes: names of the masks' values: "voc", a JSON file, or names; None reads `labels.json` in `folder`
            where there is one, and else takes the set's own classes.

    Returns:
        The set with masks and their values; photos without a mask are left out and counted in its notes.

    Raises:
        UserError: no masks, none that is a photo's, two that could be; no class name in common besides background.
    """
    masks = masks_below(folder)
    stored = truth_labels(truth_classes, folder, bags.classes)
    require_common(bags.classes, stored, "the classes of the set")
    matched = match_masks([bag.name for bag in bags.bags], masks, folder)
    kept = tuple(replace(bag, mask=matched[bag.name]) for bag in bags.bags if bag.name in matched)
    notes = [*bags.notes]
    if len(kept) < len(bags):
        first = next(bag.name for bag in bags.bags if bag.name not in matched)
        notes.append(f"{len(bags) - len(kept):,} photos without a true mask left out, such as {first}")
    return replace(
        bags,
        bags=kept,
        mask_values=mask_values_for(bags.classes, dict(enumerate(stored))),
        mask_count=len(stored),
        notes=(*notes, *class_notes(bags.classes, stored)),
    )


def match_masks(photos: Sequence[str], masks: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """Mask file by photo, for the photos that have one; both are named by path without extension.

    Raises:
        UserError: no photo has one, or it is not clear which.
    """
    same = {name: masks[name] for name in photos if name in masks}
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
    return name.rpartition("/")[2]


def _ends_alike(one: str, other: str) -> bool:
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")


def masks_below(folder: Path) -> dict[str, Path]:
    """The PNG files below a folder by relative path without extension, sorted; hidden files are left out.

    Raises:
        UserError: no such folder, no PNG in it, or two of one name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected one with PNG masks")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() != ".png" or any(part.startswith(".") for part in relative.parts):
            continue
        name = relative.with_suffix("").as_posix()
        if name in found:
            raise UserError(f"{path}: two masks named {name}; keep one")
        found[name] = path
    if not found:
        raise UserError(f"{folder}: holds no PNG masks")
    return found


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names from `{"classes": ["background", "cat", ...]}`, in the order of their numbers.

    Raises:
        UserError: missing, not JSON, or not a list of different names.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f'{path}: no such file; expected class names as in {{"classes": [...]}}') from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file that can be read ({error})") from None
    names = data.get("classes") if isinstance(data, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(
            f'{path}: expected {{"classes": ["background", ...]}}, a list of names in the order of the values'
        )
    if len(set(names)) != len(names) or len(names) > VOID:
        raise UserError(
            f"{path}: {len(names)} classes, {len(set(names))} of them different; expected 1 to 255, each once"
        )
    return tuple(names)


def truth_labels(given: TruthClasses, folder: Path, default: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the true masks' values; see `attach_masks`, `truth_classes`."""
    if given is None:
        own = folder / "labels.json"
        return read_labels(own) if own.is_file() else default
    if given == "voc":
        return VOC_CLASSES
    if isinstance(given, str | Path):
        return read_labels(Path(given))
    return tuple(given)


def require_common(known: Sequence[str], stored: Sequence[str], whose: str) -> None:
    """Stop where the truth can say nothing of the classes.

    Raises:
        UserError: no name in common besides the background.
    """
    if not set(stored) & (set(known) - {"background"}):
        raise UserError(
            f"{whose} ({', '.join(known)}) and the truth's ({', '.join(stored)}) share no name besides background; "
            "name both sets alike, or pass the truth's classes"
        )


def class_notes(known: Iterable[str], stored: Iterable[str]) -> list[str]:
    """What is odd about two lists of classes that are matched by name."""
    here, there = list(known), list(stored)
    notes = []
    unknown = [name for name in there if name not in here]
    if unknown:
        notes.append(f"Scored as void, as the predictions do not know them: {', '.join(unknown)}.")
    absent = [name for name in here if name not in there]
    if absent:
        notes.append(f"Never scored, as the truth does not know them: {', '.join(absent)}.")
    return notes
