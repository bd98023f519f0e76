"""The named sets of PASCAL VOC: which lists on disk each is made of, and which go together.

The paper ("Experiments") trains on VOC 2011 with SBD's additional photos, and scores on what its authors call
seg11valid.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from milseg.data.bags import BagSet
from milseg.data.sources.sbd import find_sbd, sbd_ids
from milseg.data.sources.voc_layout import list_ids, year_folders
from milseg.errors import UserError, unknown_name


@dataclass(frozen=True, kw_only=True)
class SetRule:
    """How a set is made of the lists on disk: the union of `voc` and `sbd`, less `less_voc` and `less_sbd`.

    Attributes:
        year: the VOC year it is defined for; None takes any.
        training: made to train on; see `read_voc` for what follows.
        splits: what the split column of a tag file may call it, beside its own name.
        photos: how many photos it has by definition, where that is known.
    """

    voc: tuple[str, ...]
    sbd: tuple[str, ...] = ()
    less_voc: tuple[str, ...] = ()
    less_sbd: tuple[str, ...] = ()
    year: int | None = None
    training: bool = False
    splits: tuple[str, ...]
    photos: int | None = None

    @property
    def needs_sbd(self) -> bool:
        return bool(self.sbd or self.less_sbd)


_TRAIN, _VAL = ("train", "training"), ("val", "valid", "validation")
SETS: dict[str, SetRule] = {
    "train": SetRule(voc=("train",), training=True, splits=_TRAIN),
    "val": SetRule(voc=("val",), splits=_VAL),
    "trainval": SetRule(voc=("trainval",), training=True, splits=(*_TRAIN, *_VAL)),
    "test": SetRule(voc=("test",), splits=("test",)),
    # The paper, "Experiments": VOC 2011 with SBD's additional annotations; scored on what its authors call
    # seg11valid.
    "paper-train": SetRule(voc=("train",), sbd=("train",), year=2011, training=True, splits=_TRAIN),
    "val-736": SetRule(voc=("val",), less_sbd=("train",), year=2011, splits=_VAL, photos=736),
    # What most later work trains on.
    "train-aug": SetRule(
        voc=("train",),
        sbd=("train", "val"),
        less_voc=("val",),
        year=2012,
        training=True,
        splits=_TRAIN,
        photos=10582,
    ),
}
# Sets that share no photo, best first: a train set and the set to score it on.
PAIRS = (("paper-train", "val-736"), ("train-aug", "val"), ("train", "val"))


def default_pair(root: Path, *, year: int | None = None, sbd: Path | None = None) -> tuple[str, str]:
    """The names of the train set and the set to score it on that fit together, given what is on disk.

    The paper's own where VOC 2011 and SBD are there; train-aug and val with VOC 2012 and SBD; else train and
    val.
    """
    years = year_folders(root)
    has_sbd = find_sbd(root, sbd) is not None
    for train, val in PAIRS:
        rules = (SETS[train], SETS[val])
        wanted = {rule.year for rule in rules if rule.year is not None}
        fits = all(f"VOC{y}" in years and year in (None, y) for y in wanted)
        if fits and (has_sbd or not any(rule.needs_sbd for rule in rules)):
            return train, val
    return PAIRS[-1]


def require_disjoint(train: BagSet, val: BagSet) -> None:
    """Stop where two sets share a photo, by name.

    Raises:
        UserError: naming one such photo and their number.
    """
    shared = sorted({bag.name for bag in train.bags} & {bag.name for bag in val.bags})
    if shared:
        pairs = "; ".join(f"{a} with {b}" for a, b in PAIRS)
        raise UserError(
            f"{train.name} and {val.name} share {len(shared)} photos, such as {shared[0]}: what was "
            f"trained on "
            f"would be scored. Sets that go together: {pairs}"
        )


def set_rule(split: str, year: int | None) -> SetRule:
    """The rule of a set by its name.

    Raises:
        UserError: no such set, or one defined for another year.
    """
    if split not in SETS:
        raise unknown_name("set", split, SETS)
    rule = SETS[split]
    if rule.year is not None and year not in (None, rule.year):
        raise UserError(
            f"the set {split!r} is defined for VOC {rule.year}, not for {year}; leave the year out"
        )
    return rule


def year_folder(root: Path, split: str, year: int | None) -> Path:
    """The folder of a VOC year at `root`; the latest where none is asked for.

    Raises:
        UserError: as `year_folders`, or that year is not there.
    """
    years = year_folders(root)
    if year is None:
        return list(years.values())[-1]
    if f"VOC{year}" not in years:
        raise UserError(
            f"{root}: holds {', '.join(years)}; the set {split!r} of VOC {year} needs the folder "
            f"VOC{year} in it"
        )
    return years[f"VOC{year}"]


def set_ids(rule: SetRule, home: Path, sbd: Path | None) -> tuple[str, ...]:
    """The photos of a set, from the lists in a year's folder and, where `sbd` is one, in SBD's.

    Raises:
        UserError: a list that is missing or cannot be read.
    """

    def lists(voc: Iterable[str], more: Iterable[str]) -> dict[str, None]:
        found = dict.fromkeys(i for name in voc for i in list_ids(home, name)[0])
        if sbd is not None:
            found |= dict.fromkeys(i for name in more for i in sbd_ids(sbd, name))
        return found

    less = lists(rule.less_voc, rule.less_sbd)
    return tuple(i for i in lists(rule.voc, rule.sbd) if i not in less)
