"""A row of the table of rules: the function, and what a training loop must know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from milseg.errors import UserError
from milseg.rules.choosing import Choice, Rule, choosing_rule
from milseg.utils.call_syntax import Value, check_settings, known_options


@dataclass(frozen=True, kw_only=True)
class RuleEntry:
    """A rule with what it learns from and what it needs.

    Attributes:
        rule: the function. Of a learned rule, one that says to `build` it first.
        supervision: "tags", or "masks" for rules that are given masks; every result repeats it.
        about: one line for listings.
        choose: the choice that `rule` lifts, for rules that choose detached weights on the loss map.
        lift: what makes a rule of the choice.
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
    lift: Callable[[Choice], Rule] = choosing_rule
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
            choose = partial(self.choose, **checked)
            return replace(self, choose=choose, rule=self.lift(choose))
        return replace(self, rule=partial(self.rule, **checked))


def chosen(choose: Choice, *, lift: Callable[[Choice], Rule] = choosing_rule, **about: Any) -> RuleEntry:
    """The row of a choice, lifted into a rule."""
    return RuleEntry(rule=lift(choose), choose=choose, lift=lift, **about)


class SumOfRules(nn.Module):
    """The sum of the losses of some rules, whose parameters, if they have any, it holds."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        super().__init__()
        self.rules = list(rules)
        self.learned = nn.ModuleList([rule for rule in rules if isinstance(rule, nn.Module)])

    def forward(
        self,
        scores: torch.Tensor,
        tags: torch.Tensor,
        valid: torch.Tensor,
        *,
        segments: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        losses = [rule(scores, tags, valid, segments=segments, masks=masks) for rule in self.rules]
        return torch.stack(losses).sum(dim=0)


def added(entries: Sequence[RuleEntry]) -> RuleEntry:
    """The row of a sum of rules."""

    def needs(name: str) -> bool:
        return any(getattr(entry, name) for entry in entries)

    def build(classes: int) -> nn.Module:
        return SumOfRules([entry.build(classes) for entry in entries])

    def rule(
        scores: torch.Tensor,
        tags: torch.Tensor,
        valid: torch.Tensor,
        *,
        segments: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        losses = [e.rule(scores, tags, valid, segments=segments, masks=masks) for e in entries]
        return torch.stack(losses).sum(dim=0)

    return RuleEntry(
        rule=rule,
        supervision="masks" if any(entry.supervision == "masks" for entry in entries) else "tags",
        about=" + ".join(entry.about for entry in entries),
        learned=build if needs("learned") else None,
        needs_segments=needs("needs_segments"),
        needs_background=needs("needs_background"),
        raw_scores=needs("raw_scores"),
        sees_batch=needs("sees_batch"),
    )
