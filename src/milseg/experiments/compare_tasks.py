"""What `milseg compare` trains and scores on: photos of one's own, or scenes of digits."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from milseg.config import (
    CompareOptions,
    DigitsOptions,
    EvaluateOptions,
    InferenceConfig,
    TrainConfig,
    shared_settings,
)
from milseg.data.bags import Bag, BagSet
from milseg.data.photo_statistics import read_photos, readable_bags
from milseg.data.sources.digits import read_digits
from milseg.data.sources.evaluation_set import evaluation_bags, with_truth
from milseg.data.sources.open import open_source_of
from milseg.data.split import hold_out
from milseg.data.transforms import left_out
from milseg.data.value_range import ValueRanges
from milseg.errors import UserError
from milseg.experiments.digits import DIGIT_MASKS, OUTPUT_STRIDE, pretrain, starts
from milseg.inference.model_folder import ModelSpec
from milseg.models.fcn import FCN
from milseg.models.transfer import build_model
from milseg.rules import find_rule
from milseg.training.recipes import Recipe, best_training

CAM = "cam"  # class activation maps with a threshold: what people use today
CAM_RULE = "average-scores(sigmoid=true)"  # that a network with such maps learns by


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every rule is trained and scored on.

    Attributes:
        name: for titles.
        train, held: learned from; scored by tags alone.
        val: with true masks, for scoring; None where there are none.
        start: the network before training, of a seed.
        spec, config: its settings; `config.rule`, `learning_rate` and `seed` are each run's own.
        rounds: as `config`, for rounds on one's own masks; the last one's is every later one's too.
        refine: the refiner, and the size at which it sees a photo.
        min_confidence: see `milseg.training.pseudo_labels`.
    """

    name: str
    train: BagSet
    held: BagSet
    val: BagSet | None
    start: Callable[[int], FCN]
    spec: ModelSpec
    config: TrainConfig
    rounds: tuple[TrainConfig, ...]
    refine: InferenceConfig
    min_confidence: float

    @property
    def notes(self) -> tuple[str, ...]:
        """What is odd about the sets, each once."""
        notes = [*self.train.notes, *(() if self.val is None else self.val.notes)]
        if not len(self.held):
            notes.append("No photo was held out: there is no tag AP, and no prior")
        return tuple(dict.fromkeys(notes))

    def round(self, number: int) -> TrainConfig:
        """Of round `number`, from 1."""
        return self.rounds[min(number, len(self.rounds)) - 1]


def source_task(options: CompareOptions, seed: int, device: torch.device, progress: bool) -> Task:
    """Photos of the user's own: trained on `--split`, scored on `--val-split` or on what `--truth` has masks of."""
    bags = _readable(open_source_of(options), progress)
    val = None
    if options.truth is not None or options.val_split is not None:
        val = evaluation_bags(
            shared_settings(EvaluateOptions, options, split=options.val_split), bags.classes
        )
        _refuse_shared_photos(bags, val)
        val = _readable(val, progress, ranges=bags.value_ranges)
    if any(find_rule(rule).supervision == "masks" for rule in options.rules if rule != CAM):
        bags = with_truth(bags, options)
    train, held = hold_out(bags, options.hold_out, seed)
    recipe = best_training(options.backbone)
    frozen = 0 if options.weights == "none" else recipe.stages[0].frozen_stride
    config, *later = (
        replace(stage, longest_side=options.longest_side, frozen_stride=frozen)
        for stage in _stages(recipe.stages, options)
    )
    return Task(
        name=bags.name,
        train=train,
        held=held,
        val=val,
        start=partial(_started, options, bags.classes, recipe),
        spec=ModelSpec(
            backbone=options.backbone,
            classes=bags.classes,
            output_stride=recipe.output_stride,
            longest_side=options.longest_side,
            value_ranges=dict(bags.value_ranges or {}),
        ),
        config=config,
        rounds=tuple(later),
        refine=recipe.pseudo_label_inference,
        min_confidence=recipe.min_confidence,
    )


def _readable(bags: BagSet, progress: bool, *, ranges: ValueRanges | None = None) -> BagSet:
    """The bags whose photos can be read; the others are named.

    Args:
        ranges: of the photos that are learned from, for those to score.
    """
    facts = read_photos(bags.bags, progress=progress)
    kept, _, bad = readable_bags(bags, facts, ranges=ranges)
    for line in bad:
        print(f"milseg: left out: {line}", file=sys.stderr)
    if not len(kept):
        first = bad[0].partition(":")[0] if bad else ""
        raise UserError(f"{bags.name}: none of its {len(bags):,} photos can be read, such as {first}")
    return kept


def _refuse_shared_photos(bags: BagSet, val: BagSet) -> None:
    learned_from = {_photo(bag) for bag in bags.bags}
    both = [bag.name for bag in val.bags if _photo(bag) in learned_from]
    if both:
        raise UserError(
            f"{val.name}: {len(both)} photos to score are learned from too, such as {both[0]}; keep the splits "
            "apart with --split and --val-split"
        )


def _started(options: CompareOptions, classes: tuple[str, ...], recipe: Recipe, seed: int) -> FCN:
    """The network before training."""
    transfer: Literal[True, "random"] = "random" if options.weights == "none" else True
    model, _ = build_model(
        options.backbone,
        classes,
        weights=None if options.weights == "none" else options.weights,
        transfer=transfer,
        output_stride=recipe.output_stride,
        seed=seed,
    )
    model.scale_rows(recipe.score_scale)
    return model


def _stages(stages: Sequence[TrainConfig], options: CompareOptions) -> list[TrainConfig]:
    """The recipe's first training and its rounds, shortened alike."""
    return [
        replace(
            stage,
            max_steps=max(1, options.max_steps * stage.max_steps // stages[0].max_steps),
            batch_size=options.batch_size,
        )
        for stage in stages
    ]


def _photo(bag: Bag) -> str:
    """What two readings of one source have in common: they may name its photos differently."""
    return os.path.realpath(bag.photo) if isinstance(bag.photo, Path) else bag.name


def digits_task(options: CompareOptions, seed: int, device: torch.device, progress: bool) -> Task:
    """Scenes of handwritten digits, as in `milseg reproduce digits`, each seed with its own scenes and classifier."""
    settings = DigitsOptions(seed=seed, scenes=options.scenes)
    train, val = (
        read_digits(split, count, seed=seed)
        for split, count in (("train", options.scenes), ("val", max(1, options.scenes // 4)))
    )
    train, held = hold_out(train, options.hold_out, seed)
    classifier = pretrain(settings, device=device, progress=progress)
    start = starts(classifier, train.classes, seed)
    recipe = best_training("tiny")
    config, *later = (
        replace(stage, frozen_stride=0, augment=left_out(stage.augment, "flip"))
        for stage in _stages(recipe.stages, options)
    )
    return Task(
        name="digits",
        train=train,
        held=held,
        val=val,
        start=lambda _: start("classifier").train(),
        spec=ModelSpec(backbone="tiny", classes=train.classes, output_stride=OUTPUT_STRIDE),
        config=config,
        rounds=tuple(later),
        refine=DIGIT_MASKS,
        min_confidence=recipe.min_confidence,
    )
