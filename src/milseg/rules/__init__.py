"""The table of rules, and how a name on the command line becomes one; loads no rule before it is used."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

from milseg.errors import UserError, unknown_name
from milseg.rules.row import POINTS, SEGMENTS, RuleRow
from milseg.utils.call_syntax import parse_call
from milseg.utils.registry import load_object

if TYPE_CHECKING:
    from milseg.rules.entry import RuleEntry

RULES: dict[str, RuleRow] = {
    "max": RuleRow(
        where="milseg.rules.choosing:choose_max",
        lift=POINTS,
        about="one most probable cell of each present class (the paper)",
    ),
    "top-k": RuleRow(
        where="milseg.rules.choosing:choose_top_k",
        lift=POINTS,
        about="the k most probable cells of each present class; k below 1 is a share",
        limits={"k": (1e-6, inf)},
    ),
    "average": RuleRow(
        where="milseg.rules.choosing:choose_all", lift=POINTS, about="every cell for every present class"
    ),
    "binary-max": RuleRow(
        where="milseg.rules.choosing:binary_max",
        about="one binary MIL a class on its top-scoring cell, no competition",
        raw_scores=True,
    ),
    "log-sum-exp-scores": RuleRow(
        where="milseg.rules.log_sum_exp:log_sum_exp_scores",
        about="soft maximum of the scores, then a softmax over the classes",
        raw_scores=True,
        limits={"r": (1e-3, 1e4)},
    ),
    "log-sum-exp-probs": RuleRow(
        where="milseg.rules.log_sum_exp:log_sum_exp_probs",
        about="soft maximum of the probabilities",
        limits={"r": (1e-3, 1e4), "absent": (0, inf)},
    ),
    "average-scores": RuleRow(
        where="milseg.rules.pooling:average_scores",
        about="average of the scores, then a softmax over the classes (CAM)",
    ),
    "wildcat": RuleRow(
        where="milseg.rules.pooling:wildcat",
        about="the k highest and the k lowest scores, one logistic loss a class",
        raw_scores=True,
        limits={"k": (1e-6, inf)},
    ),
    "weighted-pooling": RuleRow(
        where="milseg.rules.pooling:weighted_pooling",
        about="scores weighted by the probabilities, with a penalty on small areas (1-stage)",
        needs_background=True,
        limits={"power": (1, 100), "floor": (1e-6, 1)},
    ),
    "noisy-or": RuleRow(
        where="milseg.rules.noisy_or:noisy_or",
        about="the probability that some cell shows the class",
        limits={"start": (0, 0.999), "absent": (0, inf)},
    ),
    "rank-pooling": RuleRow(
        where="milseg.rules.ranking:rank_pooling",
        about="probabilities weighted by their rank, absent classes down (SEC)",
        needs_background=True,
        limits={
            "foreground": (1e-6, 1),
            "background": (1e-6, 1),
            "absent": (0, inf),
            "reference": (0, inf),
        },
    ),
    "max-margin": RuleRow(
        where="milseg.rules.margin:max_margin",
        about="one hinge a class on its top-scoring cell (MI-SVM)",
        raw_scores=True,
        limits={"margin": (1e-6, inf)},
    ),
    "attention": RuleRow(
        where="milseg.rules.attention:Attention",
        learned=True,
        about="learned weights on the cells, gated or not (ABMIL)",
        limits={"hidden": (1, 10_000), "seed": (0, 2**31)},
    ),
    "hard-negatives": RuleRow(
        where="milseg.rules.hard_negatives:hard_negatives",
        about="added to a rule: absent classes down where they score highest",
        term=True,
        limits={"k": (1e-6, inf), "weight": (0, inf)},
    ),
    "consistency": RuleRow(
        where="milseg.rules.consistency:consistency",
        about="added to a rule: the bags of a batch that share a tag agree on it",
        needs_background=True,
        sees_batch=True,
        term=True,
        limits={"weight": (0, inf)},
    ),
    "em-fixed": RuleRow(
        where="milseg.rules.targets:choose_em_fixed",
        lift=POINTS,
        about="present classes get a fixed bonus, the top class is the target",
        needs_background=True,
    ),
    "em-adapt": RuleRow(
        where="milseg.rules.targets:choose_em_adapt",
        lift=POINTS,
        about="targets in which each present class wins its share of the cells",
        needs_background=True,
        limits={"foreground": (0, 1), "background": (0, 1), "rounds": (1, 1000)},
    ),
    "ccnn": RuleRow(
        where="milseg.rules.targets:choose_ccnn",
        lift=POINTS,
        about="the nearest soft targets whose class areas meet bounds",
        needs_background=True,
        limits={
            "background_low": (0, 1),
            "background_high": (0, 1),
            "foreground_low": (0, 1),
            "slack": (0, 100),
            "rounds": (1, 1000),
        },
    ),
    "oracle": RuleRow(
        where="milseg.rules.choosing:choose_masks",
        lift=POINTS,
        supervision="masks",
        about="every pixel, from masks; for comparison",
    ),
}


for _name in ("max", "top-k", "average", "em-adapt", "ccnn"):
    # Whole segments in place of points, for each rule that chooses.
    RULES[f"segment-{_name}"] = replace(
        RULES[_name], lift=SEGMENTS, about=f"{_name} among superpixels", needs_segments=True
    )


def find_rule(name: str) -> RuleEntry:
    """Return the rule of that name, or the user's own as `package.module:function` (with a rule's signature).

    Options go in parentheses: `top-k(k=5)`, `rank-pooling(foreground=0.99, absent=0.5)`. Rules are added with
    a plus: `top-k+hard-negatives(k=3)`; a term alone is added to the paper's rule.

    Raises:
        UserError: no such rule, option, module or function; a value that makes no sense.

    >>> find_rule("top-k(k=5)").options
    {'k': 5.0}
    """
    parts = re.split(r"\+(?![^()]*\))", name)
    if len(parts) > 1:
        return _added([_part(part) for part in parts])
    entry = _part(name)
    return _added([RULES["max"].load(), entry]) if entry.term else entry


def _added(entries: list[RuleEntry]) -> RuleEntry:
    found: RuleEntry = load_object("milseg.rules.entry:added")(entries)
    return found


def _part(name: str) -> RuleEntry:
    if ":" not in name:
        return _named_rule(name)
    name = name.strip()
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
    return RuleRow(where=name, about=name).load()


def _named_rule(text: str) -> RuleEntry:
    name, settings = parse_call(text)
    if name not in RULES:
        raise unknown_name("rule", name, RULES)
    entry = RULES[name].load()
    return entry.with_options(name, settings) if settings else entry
