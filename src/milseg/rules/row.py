"""A row of the table of rules: where its function is, and what training must know of it; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from milseg.utils.registry import load_object

if TYPE_CHECKING:
    from milseg.rules.entry import RuleEntry

POINTS = "milseg.rules.choosing:choosing_rule"
SEGMENTS = "milseg.rules.segments:over_segments"


@dataclass(frozen=True, kw_only=True)
class RuleTraits:
    """What a rule learns from and what it needs.

    Attributes:
        supervision: "tags", or "masks" for rules that are given masks; every result repeats it.
        about: one line for listings.
        needs_segments: the rule is given `segments`, int [B, h, w] on the score map.
        needs_background: class 0 is the background for this rule; it makes no sense without one.
        raw_scores: the rule works on scores, not on their softmax: it has no weights on the loss map.
        sees_batch: a bag's loss depends on the other bags of the batch too.
        term: the rule is made to be added to another one, `max+hard-negatives`.
        limits: option -> its lowest and its highest value.
    """

    supervision: str = "tags"
    about: str = ""
    needs_segments: bool = False
    needs_background: bool = False
    raw_scores: bool = False
    sees_batch: bool = False
    term: bool = False
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RuleRow(RuleTraits):
    """A rule that is loaded when it is used.

    Attributes:
        where: "module:name" of the rule; of its choice, if `lift` is given; of its module class, if it is learned.
        lift: "module:function" that makes a rule of a choice: `POINTS` or `SEGMENTS`; empty for other rules.
        learned: whether the rule has parameters of its own.
    """

    where: str
    lift: str = ""
    learned: bool = False

    def load(self) -> RuleEntry:
        """Return the rule with its function."""
        entry: RuleEntry = load_object("milseg.rules.entry:loaded")(self)
        return entry
