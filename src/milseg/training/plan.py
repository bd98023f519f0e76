"""What a training run will do: every setting settled before it starts, and the record that a resume is held against."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from milseg.config import EARLIER, ROUNDING_ONLY, TrainConfig, TrainOptions, overridden, seconds_of
from milseg.data.bags import BagSet
from milseg.data.transforms import added
from milseg.distributed.collectives import is_main, slowest
from milseg.errors import UserError
from milseg.inference.model_folder import ModelSpec
from milseg.rules import find_rule
from milseg.training.recipes import SCALE, Recipe, find_recipe
from milseg.training.time_estimate import duration, estimate_training, pseudo_label_steps
from milseg.utils.yaml import parse_yaml

log = logging.getLogger("milseg")

BUDGET_SHARE = 0.85  # the rest is for selections, calibration and what is not timed
FEW = 5  # with fewer of its steps than a fifth a recipe does little
SELECTIONS = 6  # how often in a run the held-out bags are scored
LONGEST_SIDE = {"cpu": 320, "cuda": 512, "mps": 320}
# With fewer steps than this rounds on one's own masks take from the rule more than they give.
FEWEST_FOR_BEST = 500
EPOCHS = 8  # as many times the recipe `best` saw its photos where it was tried


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do, settled before it starts and written to train.yaml.

    Attributes:
        spec: the network. recipe_name, recipe: its training, stage by stage; see `Recipe`.
        held_out: how many bags are kept for model selection.
        every: steps between selections.
    """

    spec: ModelSpec
    recipe_name: str
    recipe: Recipe
    held_out: int
    every: int


def make_plan(
    options: TrainOptions,
    bags: BagSet,
    held_out: int,
    device: torch.device,
    *,
    budgeted: tuple[str, int] | None = None,
) -> Plan:
    """Settle every setting: what the user gave, else the recipe, else what suits the machine.

    Args:
        budgeted: recipe and steps of the run to resume, which a time budget had set.
    """
    backbone = options.backbone
    if backbone == "auto":
        backbone = "resnet50" if device.type == "cuda" else "mobilenet_v2"
    for name in ("max_steps", "select_every"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected 1 or more")
    name = options.recipe or ("best" if "background" in bags.classes else "paper")
    recipe = _with_options(find_recipe(name, backbone), options, device)
    stride = options.output_stride or recipe.output_stride
    steps = options.max_steps
    if options.time_budget is not None:
        name, steps = budgeted or _within_budget(options, name, recipe, stride, bags, device, backbone)
        recipe = _with_options(find_recipe(name, backbone), options, device)
    if steps is not None:
        recipe = recipe.with_steps(steps)
    if find_rule(recipe.stages[0].rule).needs_background and "background" not in bags.classes:
        raise UserError(
            f"rule {recipe.stages[0].rule}: needs a background, and these tags name everything in the photo; choose "
            "another --rule, such as max"
        )
    spec = ModelSpec(
        backbone=backbone,
        classes=bags.classes,
        output_stride=stride,
        vgg_padding=options.vgg_padding,
        supervision=f"image tags ({bags.tags_from})",
        tags_from=bags.tags_from,
        longest_side=recipe.stages[0].longest_side,
        value_ranges=dict(bags.value_ranges or {}),
    )
    every = options.select_every or max(1, math.ceil(recipe.steps / SELECTIONS))
    return Plan(spec=spec, recipe_name=name, recipe=recipe, held_out=held_out, every=every)


def _with_options(recipe: Recipe, options: TrainOptions, device: torch.device) -> Recipe:
    """The recipe with what the user gave in place of its own settings."""
    given = {
        field.name: getattr(options, field.name)
        for field in fields(TrainConfig)
        if hasattr(options, field.name) and field.name != "max_steps"
    }
    if not (options.optimizer or "sgd").startswith("sgd"):
        given["standardize_features"] = (
            False  # the steps of other optimizers do not depend on a feature's size
        )
    if options.weights == "none" and options.frozen_stride is None:
        given["frozen_stride"] = 0  # a random start has nothing to keep
    if options.rounds is not None:
        recipe = _with_rounds(recipe, options.rounds)
    stages = [overridden(stage, **given) for stage in recipe.stages]
    stages = [
        stage if stage.longest_side is not None else replace(stage, longest_side=LONGEST_SIDE[device.type])
        for stage in stages
    ]
    inference = overridden(recipe.inference, refine=options.refine, random_walk=options.random_walk)
    scale = recipe.score_scale if options.score_scale is None else options.score_scale
    return replace(recipe, stages=tuple(stages), score_scale=scale, inference=inference)


def _with_rounds(recipe: Recipe, rounds: int) -> Recipe:
    if not 0 <= rounds <= 20:
        raise UserError(f"--rounds {rounds}: expected 0 to 20")
    first = recipe.stages[0]
    model = find_recipe("best", "mobilenet_v2").stages[1]
    later = recipe.stages[1:] or (
        replace(
            first,
            max_steps=max(1, first.max_steps // 2),
            mask_weight=model.mask_weight,
            rule_weight=model.rule_weight,
            augment=added(first.augment, SCALE),
        ),
    )
    return replace(recipe, stages=(first, *(later[min(i, len(later) - 1)] for i in range(rounds))))


def _within_budget(
    options: TrainOptions,
    name: str,
    recipe: Recipe,
    stride: int,
    bags: BagSet,
    device: torch.device,
    backbone: str,
) -> tuple[str, int]:
    """The recipe that a time budget is enough for, and how many steps of it: one at least."""
    timed = estimate_training(bags, recipe=recipe, backbone=backbone, output_stride=stride, device=device)
    # All processes must count the same steps.
    seconds = BUDGET_SHARE * seconds_of(str(options.time_budget)) - slowest(timed.trial_seconds)
    steps = _steps_in(seconds, options, recipe, len(bags), timed.seconds_per_step)
    if options.recipe is None and name == "best" and steps < FEWEST_FOR_BEST:
        name, recipe = "fast", _with_options(find_recipe("fast", backbone), options, device)
        steps = _steps_in(seconds, options, recipe, len(bags), timed.seconds_per_step)
    steps = max(1, steps)
    if is_main():
        text = (
            f"--time-budget {options.time_budget}: recipe {name}, {steps:,} step{'s' * (steps != 1)} of "
            f"{timed.seconds_per_step:.2g} s, as {timed.trial_seconds:.0f} s of trial steps say"
        )
        if timed.busy is not None:
            text += f". {timed.busy}; with less beside it, more steps would fit"
        if steps < recipe.steps // FEW:
            text += (
                f". Its usual {recipe.steps:,} steps take about {duration(recipe.steps * timed.seconds_per_step)}; "
                "expect masks little better than those of the start"
            )
        log.warning(text)
    return name, steps


def _steps_in(
    seconds: float, options: TrainOptions, recipe: Recipe, photos: int, seconds_per_step: float
) -> int:
    """How many steps fit into the time, and no more than are known to be of use."""
    steps = max(0, int(seconds / seconds_per_step - pseudo_label_steps(recipe, photos)))
    if recipe.inference.refine != "none":  # the recipes for masks say how much is enough
        steps = min(steps, max(recipe.steps, EPOCHS * photos // recipe.stages[0].batch_size))
    return min(steps, options.max_steps) if options.max_steps else steps


def plan_record(plan: Plan) -> dict[str, Any]:
    """The plan in plain values, as train.yaml holds it."""
    record: dict[str, Any] = json.loads(json.dumps(asdict(plan)))
    return record


def source_record(options: TrainOptions, bags: BagSet) -> dict[str, Any]:
    """What the run learns from, names only: a model folder travels, and one's folders are nobody's business."""
    return {
        "source": options.source.name or os.path.basename(options.source.absolute()),
        "tags": options.tags.name if options.tags else None,
        "split": options.split,
        "tags_are": options.tags_are,
        "tags_from": bags.tags_from,
        "photos": len(bags),
        "digest": hashlib.sha256(repr([(bag.name, bag.tags) for bag in bags.bags]).encode()).hexdigest(),
        "notes": list(bags.notes),
    }


def start_record(options: TrainOptions) -> dict[str, Any]:
    known = options.weights in ("imagenet", "none")
    return {
        "weights": options.weights if known else Path(options.weights).name,
        "mapping": options.mapping.name if options.mapping else None,
    }


def stored_record(path: Path) -> dict[str, Any] | None:
    """What train.yaml says of the run to resume; None where there is none."""
    if not path.is_file():
        return None
    try:
        stored: dict[str, Any] = parse_yaml(path.read_text(encoding="utf-8"))
        _settings(stored)
        stored_steps(stored)
        return stored
    except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: cannot be read ({error}); start anew with --overwrite") from None


def stored_steps(record: Mapping[str, Any]) -> tuple[str, int]:
    """Recipe and steps in all of a stored run."""
    plan = record["plan"]
    return str(plan["recipe_name"]), sum(int(stage["max_steps"]) for stage in plan["recipe"]["stages"])


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for a run to go on, by name."""
    plan, start = dict(record["plan"]), dict(record["start"])
    spec, recipe = dict(plan.pop("spec")), dict(plan.pop("recipe"))
    spec.pop("milseg_version", None)
    spec.setdefault("value_ranges", {})
    recipe.pop("note", None)
    recipe.pop("output_stride")  # the spec has the one that is used
    stages = [
        EARLIER | {name: stage[name] for name in stage if name not in ROUNDING_ONLY}
        for stage in recipe.pop("stages")
    ]
    later = {
        f"{name} of round {number}": value
        for number, stage in enumerate(stages[1:], 1)
        for name, value in stage.items()
    }
    inference = {f"{name} of inference": value for name, value in recipe.pop("inference").items()}
    pseudo_labels = {
        f"{name} of pseudo-labels": value for name, value in recipe.pop("pseudo_label_inference").items()
    }
    rounds = {"rounds": len(stages) - 1}
    digest = {"photos and tags": record["source"]["digest"]}
    return {
        **plan,
        **spec,
        **recipe,
        **stages[0],
        **rounds,
        **later,
        **inference,
        **pseudo_labels,
        **start,
        **digest,
    }


def refuse_changes(path: Path, stored: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """A run goes on with the settings it began with, or not at all."""
    before, now = _settings(stored), _settings(record)
    changed = [
        f"{name} was {before.get(name)!r}, is {value!r}" if name != "photos and tags" else f"other {name}"
        for name, value in now.items()
        if before.get(name) != value
    ]
    if changed:
        raise UserError(
            f"{path}: the run to resume had other settings ({', '.join(changed)}); give the same ones, or choose "
            "another --out"
        )
