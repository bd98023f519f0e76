"""The table of rules, and how a name on the command line becomes one."""

from __future__ import annotations

import importlib
import re
from math import inf

from milseg.errors import UserError, unknown_name
from milseg.rules.attention import Attention, unbuilt
from milseg.rules.choosing import (
    Choice,
    Rule,
    binary_max,
    choose_all,
    choose_masks,
    choose_max,
    choose_top_k,
    choosing_rule,
    mil_loss,
)
from milseg.rules.consistency import consistency
from milseg.rules.entry import RuleEntry, added, chosen
from milseg.rules.hard_negatives import hard_negatives
from milseg.rules.log_sum_exp import log_sum_exp_probs, log_sum_exp_scores
from milseg.rules.loss_map import log_probs, loss_map, shown_weights, weighted_loss
from milseg.rules.margin import max_margin
from milseg.rules.noisy_or import noisy_or
from milseg.rules.pooling import average_scores, weighted_pooling, wildcat
from milseg.rules.ranking import rank_pooling
from milseg.rules.segments import over_segments
from milseg.rules.targets import choose_ccnn, choose_em_adapt, choose_em_fixed
from milseg.utils.call_syntax import parse_call

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


RULES: dict[str, RuleEntry] = {
    "max": chosen(choose_max, about="one most probable place of each present class (the paper)"),
    "top-k": chosen(
        choose_top_k,
        about="the k most probable places of each present class; k below 1 is a share",
        limits={"k": (1e-6, inf)},
    ),
    "average": chosen(choose_all, about="every place for every present class"),
    "binary-max": RuleEntry(
        rule=binary_max,
        about="one binary MIL a class on its top-scoring place, no competition",
        raw_scores=True,
    ),
    "log-sum-exp-scores": RuleEntry(
        rule=log_sum_exp_scores,
        about="soft maximum of the scores, then a softmax over the classes",
        raw_scores=True,
        limits={"r": (1e-3, 1e4)},
    ),
    "log-sum-exp-probs": RuleEntry(
        rule=log_sum_exp_probs,
        about="soft maximum of the probabilities",
        limits={"r": (1e-3, 1e4), "absent": (0, inf)},
    ),
    "average-scores": RuleEntry(
        rule=average_scores,
        about="average of the scores, then a softmax over the classes (CAM)",
    ),
    "wildcat": RuleEntry(
        rule=wildcat,
        about="the k highest and the k lowest scores, one logistic loss a class",
        raw_scores=True,
        limits={"k": (1e-6, inf)},
    ),
    "weighted-pooling": RuleEntry(
        rule=weighted_pooling,
        about="scores weighted by the probabilities, with a penalty on small areas (1-stage)",
        needs_background=True,
        limits={"power": (1, 100), "floor": (1e-6, 1)},
    ),
    "noisy-or": RuleEntry(
        rule=noisy_or,
        about="the probability that some place shows the class",
        limits={"start": (0, 0.999), "absent": (0, inf)},
    ),
    "rank-pooling": RuleEntry(
        rule=rank_pooling,
        about="probabilities weighted by their rank, absent classes down (SEC)",
        needs_background=True,
        limits={
            "foreground": (1e-6, 1),
            "background": (1e-6, 1),
            "absent": (0, inf),
            "reference": (0, inf),
        },
    ),
    "max-margin": RuleEntry(
        rule=max_margin,
        about="one hinge a class on its top-scoring place (MI-SVM)",
        raw_scores=True,
        limits={"margin": (1e-6, inf)},
    ),
    "attention": RuleEntry(
        rule=unbuilt,
        learned=Attention,
        about="learned weights on the places, gated or not (ABMIL)",
        limits={"hidden": (1, 10_000), "seed": (0, 2**31)},
    ),
    "hard-negatives": RuleEntry(
        rule=hard_negatives,
        about="added to a rule: absent classes down where they score highest",
        term=True,
        limits={"k": (1e-6, inf), "weight": (0, inf)},
    ),
    "consistency": RuleEntry(
        rule=consistency,
        about="added to a rule: the bags of a batch that share a tag agree on it",
        needs_background=True,
        sees_batch=True,
        term=True,
        limits={"weight": (0, inf)},
    ),
    "em-fixed": chosen(
        choose_em_fixed,
        about="present classes get a fixed bonus, the top class is the target",
        needs_background=True,
    ),
    "em-adapt": chosen(
        choose_em_adapt,
        about="targets in which each present class wins its share of the places",
        needs_background=True,
        limits={"foreground": (0, 1), "background": (0, 1), "rounds": (1, 1000)},
    ),
    "ccnn": chosen(
        choose_ccnn,
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
    "oracle": chosen(choose_masks, supervision="masks", about="every pixel, from masks; for comparison"),
}


for _name in ("max", "top-k", "average", "em-adapt", "ccnn"):
    # Whole segments in place of points, for each rule that chooses.
    _row = RULES[_name]
    assert _row.choose is not None
    RULES[f"segment-{_name}"] = chosen(
        _row.choose,
        lift=over_segments,
        about=f"{_name} among superpixels",
        needs_segments=True,
        needs_background=_row.needs_background,
        limits=_row.limits,
    )


def find_rule(name: str) -> RuleEntry:
    """The rule of that name, or one's own as `package.module:function` (importable, with a rule's signature).

    Options go in parentheses: `top-k(k=5)`, `rank-pooling(foreground=0.99, absent=0.5)`. Rules are added with
    a plus: `top-k+hard-negatives(k=3)`; a term alone is added to the paper's rule.

    Raises:
        UserError: no such rule, option, module or function; a value that makes no sense.

    >>> find_rule("top-k(k=5)").options
    {'k': 5.0}
    """
    parts = re.split(r"\+(?![^()]*\))", name)
    if len(parts) > 1:
        return added([_part(part) for part in parts])
    entry = _part(name)
    return added([RULES["max"], entry]) if entry.term else entry


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
    return RuleEntry(rule=function, about=f"{module_name}:{function_name}")


def _named_rule(text: str) -> RuleEntry:
    name, settings = parse_call(text)
    if name not in RULES:
        raise unknown_name("rule", name, RULES)
    return RULES[name].with_options(name, settings) if settings else RULES[name]
