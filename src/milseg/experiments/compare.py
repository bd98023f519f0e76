"""`milseg compare`: rules side by side, each trained alike from tags and scored step by step on the same photos."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm

from milseg.bags import Bag, BagSet, load_mask, load_photo
from milseg.calibration import calibrated
from milseg.checkpoint import ModelSpec
from milseg.devices import pick_device
from milseg.errors import UserError
from milseg.evaluate import Evaluation
from milseg.experiments.cam import cam_scores
from milseg.experiments.compare_table import write_table
from milseg.experiments.digits import OUTPUT_STRIDE, pretrain, starts
from milseg.files import claim_folder, write_json
from milseg.models.fcn import FCN
from milseg.models.folded import folded
from milseg.models.transfer import build_model
from milseg.named import split_calls
from milseg.options import CompareOptions, DigitsOptions, InferenceConfig, TrainConfig
from milseg.own_masks import write_own_masks
from milseg.recipes import REFINE, VIEWS, best_training
from milseg.rules import find_rule
from milseg.segmenter import Segmenter
from milseg.sources.digits import read_digits
from milseg.sources.open import open_source
from milseg.sources.to_score import bags_to_score
from milseg.split import hold_out
from milseg.tag_scores import score_tags
from milseg.train import fit

CAM = "cam"  # class activation maps with a threshold: what people use today
STEPS = ("plain", "views", "prior", "refined")  # each with what came before


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every rule is trained and scored on.

    Attributes:
        name: for titles.
        train, held: learned from; scored by tags alone.
        val: with true masks, for scoring; None where there are none.
        start: the network before training, of a seed.
        spec, config: its settings; `config.rule`, `learning_rate` and `seed` are each run's own.
        round: as `config`, for a round on one's own masks.
        refine: the refiner, and the size at which it sees a photo.
        sure: see `milseg.own_masks`.
    """

    name: str
    train: BagSet
    held: BagSet
    val: BagSet | None
    start: Callable[[int], FCN]
    spec: ModelSpec
    config: TrainConfig
    round: TrainConfig
    refine: InferenceConfig
    sure: float


def compare(options: CompareOptions, *, progress: bool = True) -> list[dict[str, Any]]:
    """Train every rule with every seed and score it; writes compare.json, compare.md and compare.png.

    Finished runs are kept as files of their own, so `--resume` goes on with what is missing.

    Raises:
        UserError: an unknown rule, a rule that learns from masks where there are none, or anything at fault with the
            source or the folder.
    """
    rules = split_calls(",".join(options.rules))
    if not rules:
        raise UserError("--rules: expected one or more names, such as max,weighted-pooling")
    options = replace(options, rules=tuple(rules))  # commas inside parentheses are put together again
    for rule in rules:
        find_rule("average-scores(sigmoid=true)" if rule == CAM else rule)
    if (
        CAM in rules
        and options.source != Path("digits")
        and options.truth is None
        and options.val_split is None
    ):
        raise UserError("cam: its threshold is tuned on true masks; give --truth or --val-split")
    device = pick_device(options.device)
    claim_folder(options.out, resume=options.resume, overwrite=options.overwrite)
    if options.overwrite and not options.resume:
        for stale in options.out.glob("runs/**/*"):
            if stale.is_file() and stale.suffix in (".json", ".png", ".safetensors"):
                stale.unlink()
    make = _digits_task if options.source == Path("digits") else _source_task
    rows, tasks = [], dict[int, Task]()
    for rule in rules:
        for seed in options.seeds:
            folder = options.out / "runs" / f"{_file_name(rule)}-{seed}"
            kept = _finished(folder, options)
            if kept is None:
                if seed not in tasks:
                    tasks[seed] = make(options, seed, device, progress)
                kept = _run(tasks[seed], rule, seed, folder, options, device, progress)
                kept["settings"] = _settings(options)
                write_json(folder / "row.json", kept)
            rows += kept["rows"]
    write_table(rows, options)
    return rows


def _file_name(rule: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-._" else "_" for letter in rule)


def _settings(options: CompareOptions) -> dict[str, Any]:
    """What a finished run depends on, besides its rule and seed."""
    left_out = ("rules", "seeds", "out", "device", "resume", "overwrite")
    return {
        key: list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
        for key, value in vars(options).items()
        if key not in left_out
    }


def _finished(folder: Path, options: CompareOptions) -> dict[str, Any] | None:
    path = folder / "row.json"
    if not options.resume or not path.is_file():
        return None
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if kept["settings"] != _settings(options):
        changed = sorted(k for k, v in _settings(options).items() if kept["settings"].get(k) != v)
        raise UserError(
            f"{path}: made with other settings ({', '.join(changed)}); give the same, or choose another --out"
        )
    return kept


def _run(
    task: Task,
    rule: str,
    seed: int,
    folder: Path,
    options: CompareOptions,
    device: torch.device,
    progress: bool,
) -> dict[str, Any]:
    """One rule with one seed: the rule's row, and one more for each round on its own masks."""
    folder.mkdir(parents=True, exist_ok=True)
    trained = "average-scores(sigmoid=true)" if rule == CAM else rule
    tried = [
        _train(task, trained, rate, seed, folder / f"rate-{rate:g}", options.resume, device, progress)
        for rate in options.learning_rates
    ]
    model, rate, seconds, precision = max(tried, key=lambda found: -1.0 if math.isnan(found[3]) else found[3])
    masks = find_rule(trained).supervision == "masks"
    row: dict[str, Any] = {
        "rule": rule,
        "round": 0,
        "seed": seed,
        "learning_rate": rate,
        "tag_average_precision": None if math.isnan(precision) else precision,
        "seconds": round(seconds, 1),
        "supervision": "pixel masks" if masks else f"image tags ({task.train.tags_from})",
    }
    if rule == CAM:
        assert task.val is not None
        row |= cam_scores(model, task.val, longest_side=task.spec.longest_side, progress=progress)
        row["supervision"] += "; threshold tuned on the masks that score it"
        return {"rows": [row]}
    rows = [{**row, **_scores(task, model, progress)}]
    for number in range(1, options.rounds + 1 if not masks else 1):
        began = time.monotonic()
        maker = Segmenter(model, task.spec, inference=task.refine, network=folded(model))
        bags = write_own_masks(
            maker, task.train, folder / f"own-masks-{number}", sure=task.sure, progress=progress
        )
        config = replace(task.round, rule=trained, learning_rate=rate, seed=seed)
        fit(
            model,
            bags,
            config,
            out=folder / f"round-{number}",
            device=device,
            resume=options.resume,
            progress=progress,
        )
        found = score_tags(model, task.held, longest_side=task.spec.longest_side).mean_average_precision
        seconds += time.monotonic() - began
        rows.append(
            {
                **row,
                "round": number,
                "seconds": round(seconds, 1),
                "tag_average_precision": None if math.isnan(found) else found,
                **_scores(task, model, progress),
            }
        )
    return {"rows": rows}


def _train(
    task: Task,
    rule: str,
    rate: float,
    seed: int,
    folder: Path,
    resume: bool,
    device: torch.device,
    progress: bool,
) -> tuple[FCN, float, float, float]:
    """The trained network, its learning rate, seconds, and tag average precision on the held-out photos."""
    model = task.start(seed)
    config = replace(task.config, rule=rule, learning_rate=rate, seed=seed)
    if find_rule(rule).supervision == "masks":
        config = replace(config, zoom=task.round.zoom)
    history = fit(model, task.train, config, out=folder, device=device, resume=resume, progress=progress)
    found = score_tags(model, task.held, longest_side=task.spec.longest_side)
    return model, rate, history[-1]["seconds"] if history else 0.0, found.mean_average_precision


def _scores(task: Task, model: FCN, progress: bool) -> dict[str, Any]:
    """Mean IU of each of `STEPS`, and the last one's by class; void excluded, one confusion matrix over the set."""
    if task.val is None:
        return {"mean_iu": dict.fromkeys(STEPS)}
    views = replace(task.refine, refine="none")
    spec = calibrated(model, task.spec, replace(views, prior=1.0), task.held)
    prior = 1.0 if spec.prior is not None else 0.0
    plain, seen, weighed, refined = (
        Segmenter(model, spec, inference=config, network=folded(model))
        for config in (
            InferenceConfig(),
            views,
            replace(views, prior=prior),
            replace(task.refine, prior=prior),
        )
    )
    evaluations = {name: Evaluation(task.val.classes) for name in STEPS}
    for bag in tqdm(task.val.bags, desc="score", unit="photo", disable=not progress):
        photo = load_photo(bag)
        truth = load_mask(bag, task.val, size=(photo.shape[0], photo.shape[1]))
        found = seen.scores(photo)
        with_prior = weighed.with_prior(found)
        masks = {
            "plain": plain.segment(photo).mask,
            "views": seen.mask_of(photo, found),
            "prior": weighed.mask_of(photo, with_prior),
            "refined": refined.mask_of(photo, with_prior),
        }
        for name, mask in masks.items():
            evaluations[name].update(mask, truth)
    scores = {name: evaluation.compute().to_json() for name, evaluation in evaluations.items()}
    return {
        "mean_iu": {name: scores[name]["mean_iu"] for name in STEPS},
        "per_class_iu": scores["refined"]["per_class_iu"],
        "photos": len(task.val),
    }


def _source_task(options: CompareOptions, seed: int, device: torch.device, progress: bool) -> Task:
    """Photos of the user's own: trained on `--split`, scored on `--val-split` or on what `--truth` has masks of."""
    bags = open_source(
        options.source,
        tags=options.tags,
        split=options.split,
        classes=options.classes,
        ignore_unknown=options.ignore_unknown_tags,
        kind=options.kind,
    )
    val = None
    if options.truth is not None or options.val_split is not None:
        val = bags_to_score(
            options.source,
            bags.classes,
            truth=options.truth,
            truth_classes=options.truth_labels,
            split=options.val_split,
            kind=options.kind,
        )
        seen = {_photo(bag) for bag in bags.bags}
        both = [bag.name for bag in val.bags if _photo(bag) in seen]
        if both:
            raise UserError(
                f"{val.name}: {len(both)} photos to score are learned from too, such as {both[0]}; keep the splits "
                "apart with --split and --val-split"
            )
    if any(find_rule(rule).supervision == "masks" for rule in options.rules if rule != CAM):
        masked = bags_to_score(
            options.source, bags.classes, truth=options.truth, split=options.split, kind=options.kind
        )
        of = {_photo(bag): bag.mask for bag in masked.bags}
        bags = replace(
            bags,
            bags=tuple(replace(bag, mask=of[_photo(bag)]) for bag in bags.bags if _photo(bag) in of),
            mask_values=masked.mask_values,
        )
    train, held = hold_out(bags, options.hold_out, seed)
    recipe = best_training(options.backbone)
    frozen = 0 if options.weights == "none" else recipe.stages[0].frozen_stride
    config, later = (
        replace(stage, longest_side=options.longest_side, frozen_stride=frozen)
        for stage in _stages(recipe.stages, options)
    )
    spec = ModelSpec(
        backbone=options.backbone,
        classes=bags.classes,
        output_stride=recipe.output_stride,
        longest_side=options.longest_side,
    )

    def start(seed: int) -> FCN:
        transfer: Literal[True, "random"] = "random" if options.weights == "none" else True
        weights = None if options.weights == "none" else options.weights
        model, _ = build_model(
            options.backbone,
            bags.classes,
            weights=weights,
            transfer=transfer,
            output_stride=recipe.output_stride,
            seed=seed,
        )
        model.scale_rows(recipe.score_scale)
        return model

    return Task(
        name=bags.name,
        train=train,
        held=held,
        val=val,
        start=start,
        spec=spec,
        config=config,
        round=later,
        refine=recipe.own,
        sure=recipe.sure,
    )


def _stages(stages: Sequence[TrainConfig], options: CompareOptions) -> list[TrainConfig]:
    """The recipe's first training and first round, shortened alike."""
    return [
        replace(
            stage,
            max_steps=max(1, options.max_steps * stage.max_steps // stages[0].max_steps),
            batch_size=options.batch_size,
        )
        for stage in stages[:2]
    ]


def _photo(bag: Bag) -> str:
    """What two readings of one source have in common: they may name its photos differently."""
    return os.path.realpath(bag.photo) if isinstance(bag.photo, Path) else bag.name


def _digits_task(options: CompareOptions, seed: int, device: torch.device, progress: bool) -> Task:
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
    config, later = _stages(recipe.stages, options)
    return Task(
        name="digits",
        train=train,
        held=held,
        val=val,
        start=lambda _: start("classifier").train(),
        spec=ModelSpec(backbone="tiny", classes=train.classes, output_stride=OUTPUT_STRIDE),
        config=replace(config, frozen_stride=0, flip=False),
        round=replace(later, frozen_stride=0, flip=False),
        # A scene is as small as what the CRF sees of a photo, and a mirrored digit is none.
        refine=InferenceConfig(scales=VIEWS, refine=REFINE.replace(",scale=2", ""), refine_side=128),
        sure=recipe.sure,
    )
