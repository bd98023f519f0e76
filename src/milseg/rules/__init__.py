"""The table of rules, and how a name on the command line becomes one."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from milseg.errors import UserError, unknown_name
from milseg.rules.choosing import (
    Choice,
    Rule,
    binary_max,
    choose_all,
    choose_masks,
    choose_max,
    choosing_rule,
    mil_loss,
)
from milseg.rules.loss_map import log_probs, loss_map, shown_weights, weighted_loss

__all__ = [
    "RULES",
    "Choice",
    "Rule",
    "RuleEntry",
    "choose_all",
    "choose_masks",
    "choose_max",
    "choosing_rule",
    "find_rule",
    "log_probs",
    "loss_map",
    "mil_loss",
    "shown_weights",
    "weighted_loss",
]


@dataclass(frozen=True, kw_only=True)
class RuleEntry:
    """A rule with what it learns from.

    Attributes:
        rule: the function.
        supervision: "tags", or "masks" for rules that are given masks; every result repeats it.
        about: one line for listings.
    """

    rule: Rule
    supervision: str = "tags"
    about: str = ""


RULES: dict[str, RuleEntry] = {
    "max": RuleEntry(
        rule=choosing_rule(choose_max), about="one most probable place a present class (the paper)"
    ),
    "average": RuleEntry(rule=choosing_rule(choose_all), about="every place for every present class"),
    "binary-max": RuleEntry(
        rule=binary_max, about="one binary MIL a class on its top-scoring place, no competition"
    ),
    "oracle": RuleEntry(
        rule=choosing_rule(choose_masks), supervision="masks", about="every pixel, from masks"
    ),
}


def find_rule(name: str) -> RuleEntry:
    """The rule of that name, or one's own as `package.module:function` (importable, with a rule's signature).

    Raises:
        UserError: no such rule, module or function.
    """
    if ":" not in name:
        if name not in RULES:
            raise unknown_name("rule", name, RULES)
        return RULES[name]
    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), function_name)):
        raise UserError(f"rule {name!r}: expected package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"rule {name!r}: no module {error.name!r}; expected package.module:function, importable from the "
            "folder you are in or from an installed package"
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(f"rule {name!r}: module {module_name!r} has no function {function_name!r}")
    return RuleEntry(rule=function, about=f"{module_name}:{function_name}")
