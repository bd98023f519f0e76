"""`milseg train`: one's own photos and tags in, a model folder out.

Model selection uses tags alone: a held-out part of the bags is scored by tag average precision, and the best model is
the one that is kept.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from milseg.config import InferenceConfig, TrainConfig, TrainOptions, seconds_of
from milseg.data.bags import BagSet, load_mask, load_photo
from milseg.data.photo_statistics import read_photos, readable_bags
from milseg.data.sources.open import open_source_of
from milseg.data.split import hold_out
from milseg.data.tag_statistics import names_without_background, tag_matrix, untrainable_reasons
from milseg.data.transforms import find_transforms
from milseg.distributed import preemption
from milseg.distributed.collectives import (
    errors_on_all_ranks,
    gathered,
    is_main,
    main_first,
    process_group,
    rank_slice,
    same_everywhere,
    seen_by_all,
    size,
    total,
)
from milseg.errors import UserError
from milseg.evaluation.tag_precision import TagScores, collapse, remedies, score_tags
from milseg.figures import curves, figure1
from milseg.inference.model_folder import load_model, save_model
from milseg.inference.segmenter import Segmenter
from milseg.models.fcn import FCN, evaluating
from milseg.models.transfer import TransferReport, build_model
from milseg.refine import find_refiner
from milseg.rules import find_rule
from milseg.training.calibration import LEAST_RECALL, calibrated, drop_harmful_refinement, tag_recall
from milseg.training.callbacks import Callback
from milseg.training.model_card import model_card, training_words
from milseg.training.optimizer import find_optimizer, find_schedule
from milseg.training.plan import (
    Plan,
    make_plan,
    plan_record,
    refuse_changes,
    source_record,
    start_record,
    stored_record,
    stored_steps,
)
from milseg.training.pseudo_labels import write_pseudo_labels
from milseg.training.trainer import fit
from milseg.utils.files import (
    claim_folder,
    holds_files,
    remove_halves,
    remove_leftovers,
    write_json,
    write_text,
)

SAMPLES = 6
TRIED = 50  # photos whose tags say whether their masks bear the refiner
MOST_UNREADABLE = 0.1  # share of the photos that may be left out before something must be wrong with them all
# What an earlier run left; nothing else in the folder is touched.
OLD_FILES = (
    "model.safetensors",
    "checkpoint.safetensors",
    "selection.json",
    "curves.png",
    "samples/step-*.png",
    "rounds/*/checkpoint.safetensors",
    "rounds/*/metrics.jsonl",
    "pseudo-labels/**/*.png",
)


def train_run(options: TrainOptions, *, progress: bool = True) -> Path:
    """Train on a source and write the model folder `options.out`; returns it.

    In several processes (`milseg.distributed.collectives`) the first writes every file but the masks of a round,
    which all share.

    Raises:
        UserError: anything at fault with the source, the settings or the folder, before training starts.
        Stopped: SIGTERM or SIGUSR1 asked for it; --resume goes on.
    """
    with process_group(options.device) as device, preemption.heeding():
        return _train_run(options, device, progress=progress and is_main())


def _train_run(options: TrainOptions, device: torch.device, *, progress: bool) -> Path:
    out = options.out
    if options.refine not in (None, "none"):
        find_refiner(str(options.refine))  # a mistake in it is told before the photos are read
    with errors_on_all_ranks():
        stored = stored_record(out / "train.yaml") if options.resume else None
    with errors_on_all_ranks():
        if is_main():
            _check_folder(out, options, resumed=stored is not None)
        if options.time_budget is not None:
            seconds_of(options.time_budget)  # a mistake in it is told before the photos are read
        find_optimizer(options.optimizer or "sgd")
        find_schedule(options.schedule or "constant")
        find_transforms(options.augment or "none")
        if options.refine not in (None, "none"):
            find_refiner(options.refine)
        bags = open_source_of(options)
        if find_rule(options.rule or "max").supervision != "tags":
            raise UserError(
                f"--rule {options.rule}: learns from masks; milseg train learns from tags. Choose another rule"
            )
    bags = _readable(bags, progress=progress)
    budgeted = stored_steps(stored) if stored else None
    with errors_on_all_ranks():
        train, held = hold_out(bags, options.hold_out, options.seed)
        plan = make_plan(options, bags, len(held), device, budgeted=budgeted)
        record = {
            "plan": plan_record(plan),
            "start": start_record(options),
            "source": source_record(options, bags),
        }
        if stored is not None:
            refuse_changes(out / "train.yaml", stored, record)
    same_everywhere(record["source"]["digest"], "photos or tags")
    with errors_on_all_ranks(), main_first():
        model, report = _start(options, plan)
    if is_main():
        if stored is None:
            for pattern in OLD_FILES:
                for stale in out.glob(pattern):
                    stale.unlink()
            write_text(out / "train.yaml", yaml.safe_dump(record, sort_keys=False, allow_unicode=True))
        _say(plan, bags, train, held, report, device)
    seen_by_all(out / "train.yaml")
    asked = options.rounds is not None
    advice = remedies(
        learning_rate=plan.recipe.stages[0].learning_rate,
        pretrained=options.weights != "none",
        mapped=options.mapping is not None,
        without_rows=report.without_rows,
    )
    stages, notes = _train(
        model, plan, train, held, out, device, stored is not None, progress, asked=asked, advice=advice
    )
    with errors_on_all_ranks():
        if is_main():
            plan = replace(plan, recipe=replace(plan.recipe, stages=stages))
            given = options.refine is not None or options.random_walk is not None
            _finish(plan, report, bags, train, held, out, device, notes=notes, as_given=given)
    return out


def _check_folder(out: Path, options: TrainOptions, *, resumed: bool) -> None:
    """Refuse a folder in use, or one without a run to resume; make it, and try to write into it."""
    if options.resume and not resumed and not options.overwrite and holds_files(out):
        raise UserError(
            f"{out}: holds files, but no run to resume (train.yaml is missing); --overwrite starts anew"
        )
    claim_folder(out, resume=options.resume, overwrite=options.overwrite)
    for name in ("train.yaml", "selection.json", "curves.png", "README.md"):
        remove_leftovers(out / name)
    for pictures in ("samples", "pseudo-labels"):
        remove_halves(out / pictures)


def _readable(bags: BagSet, *, progress: bool) -> BagSet:
    """The bags whose photos can be read, the others named; each photo is decoded once, before hours depend on it.

    Photos of more than 8 bits get one range of values for the whole set.

    Raises:
        UserError: training would teach nothing, or too many photos cannot be read.
    """
    shared = gathered(read_photos(bags.bags[rank_slice(len(bags))], progress=progress))
    facts = [fact for some in shared for fact in some]
    good = [i for i, fact in enumerate(facts) if fact.size is not None]
    why = untrainable_reasons(tag_matrix(bags), names_without_background(bags), good)
    if why:
        raise UserError(f"{bags.name}: training would teach nothing: {'; '.join(why)}")
    kept, _, bad = readable_bags(bags, facts)
    for line in bad if is_main() else ():
        print(f"milseg: left out: {line}", file=sys.stderr)
    if len(bad) > max(1, MOST_UNREADABLE * len(bags)):
        raise UserError(
            f"{bags.name}: {len(bad)} of {len(bags)} photos cannot be read, such as {bad[0]}; mend them or take them "
            "out (milseg check names them all)"
        )
    return kept


def _start(options: TrainOptions, plan: Plan) -> tuple[FCN, TransferReport]:
    start: Literal[True, "random"] = True if options.weights != "none" else "random"
    model, report = build_model(
        plan.spec.backbone,
        plan.spec.classes,
        weights=None if options.weights == "none" else options.weights,
        transfer=start,
        mapping=options.mapping,
        output_stride=plan.spec.output_stride,
        vgg_padding=plan.spec.vgg_padding,
        seed=plan.recipe.stages[0].seed,
    )
    model.scale_rows(plan.recipe.score_scale)
    return model, report


def _train(
    model: FCN,
    plan: Plan,
    train: BagSet,
    held: BagSet,
    out: Path,
    device: torch.device,
    resume: bool,
    progress: bool,
    *,
    asked: bool,
    advice: str,
) -> tuple[tuple[TrainConfig, ...], list[str]]:
    """The rule first, then each round on the masks that the model made before it.

    Masks without the things that the tags name would teach that they are background: a recipe's rounds are left out
    then, rounds that were asked for are not. Returns the stages that were trained, and what there is to say of the
    others.
    """
    selector = ModelSelector(plan, held if len(held) else train, bool(len(held)), model, out, resume=resume)
    selector.advice = advice
    before = 0
    for number, config in enumerate(plan.recipe.stages):
        bags = train
        if number:
            if is_main():
                print(f"round {number}: masks of {len(train)} photos, from their tags", file=sys.stderr)
            maker = Segmenter(model, plan.spec, inference=plan.recipe.pseudo_label_inference)
            bags = write_pseudo_labels(
                maker,
                train,
                out / "pseudo-labels" / f"round-{number}",
                min_confidence=plan.recipe.min_confidence,
                progress=progress,
            )
            shown = 1.0
            with errors_on_all_ranks():
                if not asked and is_main():
                    shown = tag_recall((load_mask(bag, bags) for bag in bags.bags), bags)
            shown = total(shown if is_main() else 0.0)  # the first one's, in all
            if shown < LEAST_RECALL:
                note = (
                    f"round {number} and later ones are left out: of the tags of {len(train)} photos the pseudo-labels "
                    f"show {100 * shown:.0f} %, and would teach that the rest is background"
                )
                if is_main():
                    print(
                        f"milseg: {note}; --rounds {len(plan.recipe.stages) - 1} learns from them nevertheless",
                        file=sys.stderr,
                    )
                return plan.recipe.stages[:number], [note]
        fit(
            model,
            bags,
            config,
            out=_stage_folder(out, number),
            device=device,
            resume=resume,
            progress=progress,
            callbacks=[selector],
            validate=partial(selector.validate, number, before, config),
        )
        before += config.max_steps
    return plan.recipe.stages, []


def _stage_folder(out: Path, number: int) -> Path:
    return out / "rounds" / str(number) if number else out


class ModelSelector(Callback):
    """Scores the held-out tags every so often, keeps the best model, draws samples and curves."""

    def __init__(
        self, plan: Plan, shown: BagSet, held_out: bool, model: FCN, out: Path, *, resume: bool
    ) -> None:
        self.plan, self.scored_on, self.held_out, self.model, self.out = plan, shown, held_out, model, out
        self.advice = ""
        self.shown = shown.take(range(min(SAMPLES, len(shown))))
        self.rows: list[dict[str, Any]] = _read_json(out / "selection.json") if resume else []
        if is_main():
            (out / "samples").mkdir(exist_ok=True)

    def validate(self, stage: int, before: int, config: TrainConfig, done: int) -> dict[str, Any] | None:
        """The scores after `done` steps of a stage that began after `before` steps; None if none are due."""
        now = before + done
        if done != config.max_steps and now % self.plan.every:
            return None
        # A run that was stopped after a selection comes by here a second time.
        self.rows[:] = [row for row in self.rows if row["step"] < now]
        with evaluating(self.model):
            scored = self.scored_on if self.held_out else self.shown
            found = score_tags(self.model, scored, longest_side=config.longest_side)
            _draw_samples(self.model, self.shown, self.plan, self.out / "samples" / f"step-{now:06d}.png")
        row = _selection_row(now, found, collapse(found, self.advice), stage=stage, held=self.held_out)
        row["kept"] = _better(row, self.rows)
        return row

    def on_validation(self, step: int, scores: Mapping[str, Any]) -> None:
        """Keep the model if it is the best so far, and write down how it was scored."""
        row = dict(scores)
        self.rows.append(row)
        if row["kept"]:
            save_model(self.out, self.model, self.plan.spec)
        if row["warning"]:
            print(f"\nmilseg: after {row['step']} steps: {row['warning']}", file=sys.stderr)
        write_json(self.out / "selection.json", self.rows)
        curves(_metrics(self.out, self.plan), self.out / "curves.png", title="training from tags")


def _better(row: Mapping[str, Any], earlier: list[dict[str, Any]]) -> bool:
    """Whether a selection's weights are kept; with nothing to select by, the last are.

    Within a stage the best by tags; a later stage takes over from the one before, whose masks it learned from, unless
    it collapsed where the other had not.
    """
    kept = next((other for other in reversed(earlier) if other["kept"]), None)
    if kept is not None and kept["stage"] != row["stage"]:
        return row["warning"] is None or kept["warning"] is not None
    value = row["tag_average_precision"]
    stage = [other for other in earlier if other["stage"] == row["stage"]]
    return value is None or all(value >= (other["tag_average_precision"] or 0.0) for other in stage)


def _selection_row(
    step: int, found: TagScores, warning: str | None, *, stage: int, held: bool
) -> dict[str, Any]:
    def plain(value: float) -> float | None:
        return None if math.isnan(value) else round(value, 4)

    return {
        "step": step,
        "stage": stage,
        "tag_average_precision": plain(found.mean_average_precision) if held else None,
        "per_class": {name: plain(value) for name, value in found.per_class.items()},
        "predicted_share": {name: plain(value) for name, value in found.predicted_share.items()},
        "warning": warning,
        "kept": False,
    }


def _draw_samples(model: FCN, shown: BagSet, plan: Plan, path: Path) -> None:
    """Photos with their masks so far; no true mask is read."""
    segmenter = Segmenter(model, plan.spec, inference=InferenceConfig())
    photos = [load_photo(bag) for bag in shown.bags]
    rows = [[photo, segmenter.segment(photo).mask] for photo in photos]
    figure1(rows, plan.spec.classes, path, titles=("photo", "mask so far"))


def _finish(
    plan: Plan,
    report: TransferReport,
    bags: BagSet,
    train: BagSet,
    held: BagSet,
    out: Path,
    device: torch.device,
    *,
    notes: list[str],
    as_given: bool,
) -> None:
    """Calibrate the prior of the weights that are in the folder, and write their model card.

    Args:
        notes: what the card says of the training.
        as_given: masks are made as the user asked, whatever the tags say.
    """
    scored = _read_json(out / "selection.json")
    kept = next((row for row in reversed(scored) if row["kept"]), None)
    model, spec = load_model(out)
    model, inference = model.to(device), plan.recipe.inference
    if not as_given:
        shown = held if len(held) else train
        inference, left_out = drop_harmful_refinement(
            model, spec, inference, shown.take(range(min(TRIED, len(shown))))
        )
        for note in left_out:
            print(f"milseg: {note}", file=sys.stderr)
        notes = [*notes, *left_out]
    spec = calibrated(model, spec, inference, held)
    save_model(out, model, spec)
    metrics = _metrics(out, plan)
    write_text(
        out / "README.md",
        model_card(
            spec,
            plan.recipe,
            bags=bags,
            learned_from=len(train),
            held_out=len(held),
            transfer=str(report),
            kept=kept,
            seconds=sum(records[-1]["seconds"] for records in metrics.values() if records),
            notes=notes,
        ),
    )


def _say(
    plan: Plan, bags: BagSet, train: BagSet, held: BagSet, report: TransferReport, device: torch.device
) -> None:
    counts = ", ".join(f"{name} {n}" for name, n in bags.tag_counts().items() if name != "background")
    print(
        f"{bags.name}: {len(bags)} photos ({len(train)} to learn from, {len(held)} held out); tags: {counts}"
    )
    for note in bags.notes:
        print(f"  {note}")
    processes = f"{size()} processes on {device.type}" if size() > 1 else str(device)
    print(f"{plan.spec.backbone} on {processes}, {training_words(plan.recipe)}")
    print(report)


def _metrics(out: Path, plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Each stage's records, by its name; a stage that has not begun has none."""
    found = {}
    for number in range(len(plan.recipe.stages)):
        path = _stage_folder(out, number) / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found[f"round {number}" if number else "rule"] = [json.loads(line) for line in lines]
    return {name: records for name, records in found.items() if records}


def _read_json(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
