"""True masks of a set of photos, looked at together before any of them scores or teaches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from milseg.data.bags import PRESENT, VOID, Bag, BagSet, named_values
from milseg.data.image import MAX_PIXELS, PackedPhoto, UInt8
from milseg.data.mask_checks import Reading, check_truth
from milseg.data.mask_survey import Header, MaskSurvey, read_mask
from milseg.data.sources.mask_names import ValueNames
from milseg.errors import UserError
from milseg.utils.parallel import prefetch_map, processors

# Masks that are looked at; of more, so many spread over the set.
MOST = 2000
# Photos with one tag and a mask of one class: so many say something, and in this share the two must agree.
FEWEST, AGREEING = 5, 0.5
# Share of tagged photos with an empty mask from which on it is told.
EMPTY = 0.2


@dataclass(kw_only=True)
class _Look:
    """What was found while the masks were read."""

    survey: MaskSurvey = field(default_factory=MaskSurvey)
    damaged: dict[str, str] = field(default_factory=dict)
    other_size: list[str] = field(default_factory=list)
    # (the only tag, the only class of the mask) -> photos
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)
    tagged: int = 0
    empty: int = 0


def checked_truth(bags: BagSet, reading: Reading) -> BagSet:
    """The bags whose masks can be read, with notes on what is odd; every mask is opened, or `MOST` of them.

    Args:
        bags: each with a mask.
        reading: how the masks are read; `classes` are those of the bags.

    Raises:
        UserError: as `check_truth`; masks that are not of their photos' sizes; masks and tags that disagree.
    """
    chosen = [bags.bags[i] for i in np.linspace(0, len(bags) - 1, min(MOST, len(bags))).astype(int).tolist()]
    look = _look_at(chosen, bags)
    if look.damaged and len(look.damaged) * 2 > len(chosen):
        raise UserError(
            f"{len(look.damaged)} of {len(chosen)} true masks cannot be read: {next(iter(look.damaged.values()))}"
        )
    if look.other_size:
        raise UserError(
            f"{look.other_size[0]}. {len(look.other_size):,} of {len(chosen):,} masks have another size than their "
            "photos; export the masks again at the photos' own size"
        )
    notes = check_truth(look.survey, reading)
    notes += _tag_notes(look, reading)
    if look.damaged:
        notes.append(
            f"{len(look.damaged):,} photos whose true mask cannot be read left out: {next(iter(look.damaged.values()))}"
        )
    kept = tuple(bag for bag in bags.bags if bag.name not in look.damaged)
    return replace(bags, bags=kept, notes=(*bags.notes, *notes))


def _look_at(chosen: Sequence[Bag], bags: BagSet) -> _Look:
    look = _Look()

    def read(bag: Bag) -> tuple[str, UInt8, Header | None, tuple[int, int] | None] | UserError:
        assert bag.mask is not None
        try:
            return *read_mask((bag.name, bag.mask)), photo_size(bag.photo)
        except UserError as error:
            return error

    for bag, found in prefetch_map(read, chosen, workers=min(4, processors())):
        if isinstance(found, UserError):
            look.damaged[bag.name] = str(found)
            continue
        where, mask, header, size = found
        look.survey.add(where, mask, header)
        if size is not None and mask.shape not in (size, size[::-1]):
            look.other_size.append(
                f"{where}: mask of {mask.shape[1]} x {mask.shape[0]} pixels for a photo of {size[1]} x {size[0]}"
            )
        _compare_with_tags(look, bag, mask, bags)
    return look


def _compare_with_tags(look: _Look, bag: Bag, mask: UInt8, bags: BagSet) -> None:
    """Count what the mask shows of the bag's tags."""
    pairs = zip(bags.classes, bag.tags, strict=True)
    tags = [name for name, tag in pairs if tag == PRESENT and name != "background"]
    numbers = np.unique(mask)
    if bags.mask_values is not None:
        numbers = np.unique(bags.mask_values[numbers])
    shown = [bags.classes[n] for n in numbers.tolist() if n < len(bags.classes)]
    shown = [name for name in shown if name != "background"]
    if not tags:
        return
    look.tagged += 1
    look.empty += not shown and bool((numbers != VOID).any())
    if len(tags) == len(shown) == 1:
        look.pairs[tags[0], shown[0]] += 1


def _tag_notes(look: _Look, reading: Reading) -> list[str]:
    """What masks and tags say of one another.

    Raises:
        UserError: the masks show other classes than the tags name, and nobody said what the values mean.
    """
    notes = []
    total = sum(look.pairs.values())
    agreeing = sum(count for (tag, shown), count in look.pairs.items() if tag == shown)
    if total >= FEWEST and agreeing < AGREEING * total:
        (tag, shown), count = max(
            ((pair, count) for pair, count in look.pairs.items() if pair[0] != pair[1]),
            key=lambda item: item[1],
        )
        said = (
            f"of {total:,} photos with one tag and one class in their mask {agreeing:,} agree; {count:,} photos tagged "
            f"{tag} show {shown}"
        )
        if not reading.named:
            raise UserError(
                f"{reading.where}: the masks do not show what the tags say: {said}. The masks are numbered otherwise: "
                f"say how with {reading.labels} or {reading.values}"
            )
        notes.append(f"The masks do not show what the tags say: {said}.")
    if look.empty > EMPTY * look.tagged:
        notes.append(
            f"{look.empty:,} of {look.tagged:,} photos with a tag have a true mask that shows nothing."
        )
    return notes


def photo_size(photo: Path | PackedPhoto | UInt8) -> tuple[int, int] | None:
    """Height and width by a photo's header, which may lie on its side; None where only reading it tells."""
    if isinstance(photo, np.ndarray):
        return photo.shape[0], photo.shape[1]
    if isinstance(photo, PackedPhoto):
        return None
    try:
        with Image.open(photo) as image:
            # A photo over the limit is left out where it is read, whatever its mask's size.
            return (image.height, image.width) if image.height * image.width <= MAX_PIXELS else None
    except Exception:  # whatever is wrong with the photo is told where it is read
        return None


def reading_of(bags: BagSet, where: str | Path, *, given: ValueNames = None) -> Reading:
    """How the masks of a set are read, as the set says it; `given` is what the user said of their values."""
    names = named_values(bags)
    if names is None:
        assert bags.mask_values is not None
        numbers = enumerate(bags.mask_values.tolist())
        names = {value: bags.classes[n] for value, n in numbers if n < len(bags.classes)}
    return Reading(
        where=where,
        names=names,
        classes=bags.classes,
        given=isinstance(given, Mapping),
        named=given is not None,
    )
