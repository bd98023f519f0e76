"""A rule with its function: a row of the table, loaded, or a user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from milseg.rules.attention import unbuilt
from milseg.rules.choosing import Choice, Rule, choosing_rule
from milseg.rules.row import RuleRow, RuleTraits
from milseg.utils.call_syntax import Value, check_settings, known_options
from milseg.utils.registry import load_object


@dataclass(frozen=True, kw_only=True)
class RuleEntry(RuleTraits):
    """A rule with what it learns from and what it needs.

    Attributes:
        rule: the function. Of a learned rule, one that says to `build` it first.
        choose: the choice that `rule` lifts, for rules that choose detached weights on the loss map.
        lift: makes a rule of the choice.
        learned: for rules with parameters of their own, classes -> module; None for all others.
    """

    rule: Rule
    choose: Choice | None = None
    lift: Callable[[Choice], Rule] = choosing_rule
    learned: Callable[..., nn.Module] | None = None

    @property
    def options(self) -> dict[str, Value]:
        """Return the options with their defaults."""
        return known_options(self.learned or self.choose or self.rule)

    def build(self, classes: int) -> Rule:
        """Return the rule to call: `rule` itself, or a fresh `nn.Module` for a learned one.

        A module's parameters must go into the optimiser, its state into checkpoints, and it to the device.
        """
        return self.learned(classes) if self.learned is not None else self.rule

    def with_options(self, name: str, settings: Mapping[str, Value]) -> RuleEntry:
        """Return the same rule with some options set.

        Raises:
            UserError: an option that the rule does not have, or a value that makes no sense.
        """
        checked: dict[str, Any] = dict(
            check_settings("rule", name, settings, self.learned or self.choose or self.rule, self.limits)
        )
        if self.learned is not None:
            return replace(self, learned=partial(self.learned, **checked))
        if self.choose is not None:
            choose = partial(self.choose, **checked)
            return replace(self, choose=choose, rule=self.lift(choose))
        return replace(self, rule=partial(self.rule, **checked))


def loaded(row: RuleRow) -> RuleEntry:
    """Return a row of the table with its function."""
    traits = {field.name: getattr(row, field.name) for field in fields(RuleTraits)}
    found = load_object(row.where)
    if row.learned:
        return RuleEntry(rule=unbuilt, learned=found, **traits)
    if row.lift:
        lift = load_object(row.lift)
        return RuleEntry(rule=lift(found), choose=found, lift=lift, **traits)
    return RuleEntry(rule=found, **traits)


class SumOfRules(nn.Module):
    """The sum of the losses of some rules; it holds the parameters of the learned ones."""

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
    """Return the sum of some rules as one rule."""

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
