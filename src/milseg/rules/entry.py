"""A row of the table of rules: the function, and what a training loop must know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from milseg.errors import UserError
from milseg.named import Value, check_settings
from milseg.rules.choosing import Choice, Rule, choosing_rule


@dataclass(frozen=True, kw_only=True)
class RuleEntry:
    """A rule with what it learns from and what it needs.

    Attributes:
        rule: the function. Of a learned rule, one that says to `build` it first.
        supervision: "tags", or "masks" for rules that are given masks; every result repeats it.
        about: one line for listings.
        choose: the choice that `rule` lifts, for rules that choose detached weights on the loss map.
        learned: for rules with parameters of their own, classes -> module; None for all others.
        needs_segments: the rule is given `segments`, int [B, h, w] on the score map.
        needs_background: class 0 is the background for this rule; it makes no sense without one.
        raw_scores: the rule works on scores, not on their softmax: it has no weights on the loss map.
        sees_batch: a bag's loss depends on the other bags of the batch too.
        term: the rule is made to be added to another one, `max+hard-negatives`.
        limits: option -> the lowest and the highest value that makes sense.
    """

    rule: Rule
    supervision: str = "tags"
    about: str = ""
    choose: Choice | None = None
    learned: Callable[..., nn.Module] | None = None
    needs_segments: bool = False
    needs_background: bool = False
    raw_scores: bool = False
    sees_batch: bool = False
    term: bool = False
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Value]:
        """The options with their defaults."""
        return known_options(self.learned or self.choose or self.rule)

    def build(self, classes: int) -> Rule:
        """The rule to call: `rule` itself, or a fresh `nn.Module` for a learned one.

        A module's parameters must go into the optimiser, its state into checkpoints, and it to the device.
        """
        return self.learned(classes) if self.learned is not None else self.rule

    def with_options(self, name: str, settings: Mapping[str, Value]) -> RuleEntry:
        """The same row with some options set.

        Raises:
            UserError: an option that the rule does not have, or a value that makes no sense.
        """
        checked: dict[str, Any] = dict(
            check_settings("rule", name, settings, self.learned or self.choose or self.rule)
        )
        for option, value in checked.items():
            low, high = self.limits.get(option, (float("-inf"), float("inf")))
            if not low <= value <= high:
                wanted = f"{low:g} to {high:g}" if high < float("inf") else f"{low:g} or more"
                raise UserError(f"rule {name}: {option} is {value:g}; expected {wanted}")
        if self.learned is not None:
            return replace(self, learned=partial(self.learned, **checked))
        if self.choose is not None:
            return chosen(partial(self.choose, **checked), like=self)
        return replace(self, rule=partial(self.rule, **checked))


def known_options(function: Callable[..., Any]) -> dict[str, Value]:
    """Keyword-only parameters whose default is a number, true or false, as `check_settings` sees them."""
    import inspect

    return {
        p.name: p.default
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY and isinstance(p.default, bool | int | float)
    }


def chosen(choose: Choice, *, like: RuleEntry | None = None, **about: Any) -> RuleEntry:
    """The row of a choice, lifted into a rule."""
    if like is None:
        return RuleEntry(rule=choosing_rule(choose), choose=choose, **about)
    return replace(like, rule=choosing_rule(choose), choose=choose)
