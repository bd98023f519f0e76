"""Bags: photos with their tag sets.

A bag is a photo with what is known of its classes; its instances are the places of the score map. Class 0 is
the background wherever there is one, and it is present in every photo (paper, "Multi-class MIL loss").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path

import numpy as np

from milseg.data.image import PackedPhoto, UInt8, open_mask, open_photo
from milseg.data.sampler import next_window
from milseg.data.value_range import ValueRanges
from milseg.errors import UserError

BACKGROUND = 0
VOID = 255
PRESENT, ABSENT, UNKNOWN = 1, 0, -1


@dataclass(frozen=True, kw_only=True)
class Bag:
    """One photo and what is known of it.

    Attributes:
        name: unique in its set; the photo's path below the source's root, without its extension.
        photo: a file (its name as a text becomes a Path), a photo inside a shard, or the pixels, uint8 [H, W, 3].
        tags: one of PRESENT, ABSENT, UNKNOWN for each class of the set, background first.
        mask: a file or pixels, uint8 [H, W], where there is one. Training from tags never opens it.
        ranges: of the set, for photos of more than 8 bits (see `milseg.data.value_range`).
    """

    name: str
    photo: Path | PackedPhoto | UInt8
    tags: tuple[int, ...]
    mask: Path | UInt8 | None = None
    ranges: ValueRanges | None = None

    def __post_init__(self) -> None:
        for name in ("photo", "mask"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, Path(getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class BagSet:
    """Bags that share a class list, with where their tags came from.

    Attributes:
        name: what the set is, for results ("digits train", "VOC2011 val-736").
        classes: class names, "background" first where there is one.
        tags_from: "tag file", "XML annotations", "masks", "generator" or "none" (all
            unknown); results repeat it.
        mask_values: uint8 [256], mask file value to class number or VOID; None keeps the values.
        mask_names: what the mask file values mean; a value without a name, but for 255, is an error. None takes
            any, where there is a table of `mask_values`.
        notes: what was left out or is odd, one sentence each, with counts.
    """

    name: str
    classes: tuple[str, ...]
    bags: tuple[Bag, ...]
    tags_from: str
    mask_values: UInt8 | None = None
    mask_names: Mapping[int, str] | None = None
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.bags)

    def tag_counts(self) -> dict[str, int]:
        """How many bags carry each class as present (every bag carries the background)."""
        return {c: sum(bag.tags[i] == PRESENT for bag in self.bags) for i, c in enumerate(self.classes)}

    @cached_property
    def groups(self) -> tuple[int, ...] | None:
        """How many bags lie in each shard, one after the other; None where bags are not kept shard by shard."""
        if not all(isinstance(bag.photo, PackedPhoto) for bag in self.bags):
            return None
        runs = [
            (shard, sum(1 for _ in bags))
            for shard, bags in groupby(self.bags, key=lambda bag: getattr(bag.photo, "group", ""))
        ]
        # In another order than the shards' own there is nothing to be read in sequence.
        return tuple(length for _, length in runs) if len(dict(runs)) == len(runs) else None

    def fetch_ahead(self, *, seed: int, position: int) -> None:
        """Begin to fetch the shards, where they are elsewhere, that training reads after those it is at.

        Args:
            seed, position: of the run, and how many bags into it, as `epoch_order` takes them.
        """
        if self.groups is not None:
            starts = [0, *accumulate(self.groups)]
            for group in next_window(self.groups, seed=seed, position=position):
                photo = self.bags[starts[group]].photo
                assert isinstance(photo, PackedPhoto)
                photo.soon()

    @property
    def value_ranges(self) -> ValueRanges | None:
        """The ranges that its photos of more than 8 bits are read by; none where each goes by its own."""
        return self.bags[0].ranges if self.bags else None

    def with_ranges(self, ranges: ValueRanges | None) -> BagSet:
        """The same set, its photos of more than 8 bits read by these ranges."""
        if not ranges and not self.value_ranges:
            return self
        return replace(self, bags=tuple(replace(bag, ranges=ranges) for bag in self.bags))

    def take(self, indices: Iterable[int]) -> BagSet:
        """The same set with some of its bags, in the given order."""
        return replace(self, bags=tuple(self.bags[i] for i in indices))


def make_tags(
    present: Iterable[str], classes: Sequence[str], *, unknown: Iterable[str] = ()
) -> tuple[int, ...]:
    """Tags of one bag from class names; the background, where `classes` has one, is always present.

    >>> make_tags(["dog"], ["background", "cat", "dog"], unknown=["cat"])
    (1, -1, 1)
    """
    here, maybe = set(present), set(unknown)
    return tuple(
        PRESENT if name in here or name == "background" else UNKNOWN if name in maybe else ABSENT
        for name in classes
    )


def mask_values_for(classes: Sequence[str], stored: Mapping[int, str]) -> UInt8:
    """The table from stored mask values to class numbers: names not in `classes`, and unused values, become
    VOID.

    Args:
        classes: the set's classes, background first.
        stored: mask file value to class name, as the data set numbers them.

    Returns:
        uint8 [256].
    """
    table = np.full(256, VOID, dtype=np.uint8)
    number = {name: i for i, name in enumerate(classes)}
    for value, name in stored.items():
        table[value] = number.get(name, VOID)
    return table


def load_photo(bag: Bag) -> UInt8:
    """The bag's photo, uint8 [H, W, 3]."""
    if isinstance(bag.photo, Path | PackedPhoto):
        return open_photo(bag.photo, ranges=bag.ranges)
    return bag.photo


def load_mask(bag: Bag, bag_set: BagSet, *, size: tuple[int, int] | None = None) -> UInt8:
    """The bag's mask in the set's class numbers, uint8 [H, W]; the only way from a bag to its mask.

    Args:
        size: the photo's (height, width), checked where given.

    Raises:
        UserError: no mask, a mask of another size than the photo, or a value that is no class and not void.
    """
    if bag.mask is None:
        raise UserError(f"{bag.name}: has no mask; scoring and supervised training need one for each photo")
    mask = open_mask(bag.mask) if isinstance(bag.mask, Path) else bag.mask
    where = bag.mask if isinstance(bag.mask, Path) else bag.name
    if size is not None and mask.shape != tuple(size):
        raise UserError(
            f"{where}: mask of {mask.shape[1]} x {mask.shape[0]} pixels for a photo of {size[1]} x "
            f"{size[0]}; export the mask again at the photo's own size"
        )
    names = named_values(bag_set)
    wrong = [] if names is None else np.setdiff1d(np.unique(mask), [*names, VOID]).tolist()
    if wrong:
        raise UserError(f"{where}: holds the value {wrong[0]}; expected {value_words(names or {})}")
    return mask if bag_set.mask_values is None else bag_set.mask_values[mask]


def named_values(bag_set: BagSet) -> Mapping[int, str] | None:
    """What the values of the set's mask files mean; None where any value may come."""
    if bag_set.mask_names is None and bag_set.mask_values is None:
        return dict(enumerate(bag_set.classes))
    return bag_set.mask_names


def value_words(names: Mapping[int, str]) -> str:
    """The values that masks may hold, for a message.

    >>> value_words({0: "background", 1: "cat"}), value_words({0: "background", 255: "cat"})
    ('class numbers 0 to 1, or 255 (void)', '0 (background) or 255 (cat)')
    """
    if sorted(names) == list(range(len(names))):
        return f"class numbers 0 to {len(names) - 1}, or 255 (void)"
    words = [f"{value} ({name})" for value, name in sorted({VOID: "void", **names}.items())]
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
