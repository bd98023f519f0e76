"""`milseg compare`: rules side by side, each trained alike from tags and scored step by step on the same photos."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from milseg.config import CompareOptions, InferenceConfig, TrainConfig
from milseg.data.bags import BagSet, load_mask, load_photo
from milseg.errors import UserError
from milseg.evaluation.confusion import Evaluation
from milseg.evaluation.evaluate import evaluate_model
from milseg.evaluation.tag_precision import score_tags
from milseg.experiments.cam import cam_scores
from milseg.experiments.compare_table import COLUMNS, write_table
from milseg.experiments.compare_tasks import CAM, CAM_RULE, Task, digits_task, source_task
from milseg.inference.model_folder import save_model
from milseg.inference.segmenter import Segmenter
from milseg.models.fcn import FCN
from milseg.rules import find_rule
from milseg.training.calibration import calibrated
from milseg.training.pseudo_labels import write_pseudo_labels
from milseg.training.trainer import fit
from milseg.utils.call_syntax import split_calls
from milseg.utils.devices import pick_device
from milseg.utils.files import claim_folder, write_json


def compare(options: CompareOptions, *, progress: bool = True) -> list[dict[str, Any]]:
    """Train every rule with every seed and score it; writes compare.json, compare.md and compare.png.

    Finished runs are kept as files of their own, so `--resume` goes on with what is missing. Each row's network, but
    cam's, is a model folder, `runs/RULE-SEED/model` or `.../round-N/model`.

    Raises:
        UserError: an unknown rule, a rule that learns from masks where there are none, or anything at fault with the
            source or the folder.
    """
    rules = split_calls(",".join(options.rules))
    if not rules:
        raise UserError("--rules: expected one or more names, such as max,weighted-pooling")
    options = replace(options, rules=tuple(rules))  # commas inside parentheses are put together again
    for rule in rules:
        find_rule(CAM_RULE if rule == CAM else rule)
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
    make = digits_task if options.source == Path("digits") else source_task
    rows, tasks = [], dict[int, Task]()
    for rule in rules:
        for seed in options.seeds:
            folder = options.out / "runs" / f"{_file_name(rule)}-{seed}"
            kept = _finished(folder, options)
            if kept is None:
                if seed not in tasks:
                    tasks[seed] = make(options, seed, device, progress)
                    _require_choice(tasks[seed], options)
                run = _Run(
                    task=tasks[seed],
                    rule=rule,
                    seed=seed,
                    folder=folder,
                    options=options,
                    device=device,
                    progress=progress,
                )
                kept = {"rows": _rows(run), "settings": _settings(options)}
                write_json(folder / "row.json", kept)
            rows += kept["rows"]
    write_table(rows, options)
    return rows


def _require_choice(task: Task, options: CompareOptions) -> None:
    """Stop before training where nothing could choose among the learning rates."""
    if len(options.learning_rates) > 1 and not len(task.held):
        raise UserError(
            f"--learning-rates {','.join(f'{rate:g}' for rate in options.learning_rates)}: the best is chosen by "
            f"held-out photos, and --hold-out {options.hold_out:g} of {len(task.train):,} photos holds none out; give "
            "one learning rate, or hold more out"
        )


def _file_name(rule: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-._" else "_" for letter in rule)


def _settings(options: CompareOptions) -> dict[str, Any]:
    """What a finished run depends on, besides its rule and seed."""
    left_out = ("rules", "seeds", "out", "device", "resume", "overwrite", "cache", "cache_size")
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


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One rule with one seed, and what it is trained on.

    Attributes:
        folder: for its checkpoints, models and row.
    """

    task: Task
    rule: str
    seed: int
    folder: Path
    options: CompareOptions
    device: torch.device
    progress: bool

    @property
    def trained(self) -> str:
        """The rule that the network learns by."""
        return CAM_RULE if self.rule == CAM else self.rule

    @property
    def by_masks(self) -> bool:
        return find_rule(self.trained).supervision == "masks"


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """A trained network, its learning rate, and its tag average precision on the held-out photos; nan without any."""

    model: FCN
    rate: float
    seconds: float
    precision: float


def _rows(run: _Run) -> list[dict[str, Any]]:
    """The rule's row, and one more for each round on pseudo-labels."""
    run.folder.mkdir(parents=True, exist_ok=True)
    best = _best_of_rates(run)
    row: dict[str, Any] = {
        "rule": run.rule,
        "round": 0,
        "seed": run.seed,
        "learning_rate": best.rate,
        "tag_average_precision": _or_none(best.precision),
        "seconds": round(best.seconds, 1),
        "supervision": "pixel masks" if run.by_masks else f"image tags ({run.task.train.tags_from})",
        "notes": list(run.task.notes),
    }
    if run.rule == CAM:
        assert run.task.val is not None
        side = run.task.spec.longest_side
        found = cam_scores(best.model, run.task.val, longest_side=side, progress=run.progress)
        row |= {**found, **{key: dict.fromkeys(COLUMNS) | found[key] for key in ("mean_iu", "by_photo")}}
        row["supervision"] += "; threshold tuned on the masks that score it"
        return [row]
    _keep(run.task, best.model, run.folder / "model", str(row["supervision"]))
    rows = [{**row, **_scores(run.task, best.model, run.progress)}]
    seconds = best.seconds
    for number in range(1, run.options.rounds + 1 if not run.by_masks else 1):
        began = time.monotonic()
        tags = _round(run, best, number, str(row["supervision"]))
        seconds += time.monotonic() - began
        rows.append(
            {
                **row,
                "round": number,
                "seconds": round(seconds, 1),
                "tag_average_precision": _or_none(tags),
                **_scores(run.task, best.model, run.progress),
            }
        )
    return rows


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _best_of_rates(run: _Run) -> _Trained:
    """Trained with each learning rate; the best by the tags of held-out photos, or by their masks for a rule that
    learns from masks.
    """
    tried = [_train(run, rate) for rate in run.options.learning_rates]
    values = []
    for one in tried:
        value = one.precision
        if run.by_masks and len(tried) > 1:
            side = run.task.spec.longest_side
            found = evaluate_model(one.model, run.task.held, longest_side=side, progress=False)
            value = found["scores"].mean_iu
        values.append(-1.0 if math.isnan(value) else value)
    return tried[values.index(max(values))]


def _train(run: _Run, rate: float) -> _Trained:
    """Trained from the start.

    A rule that learns from masks has no use for rounds. It gets their augmentations and their steps: as many updates,
    with the same variety, as the others in all.
    """
    task = run.task
    model = task.start(run.seed)
    config = replace(task.config, rule=run.trained, learning_rate=rate, seed=run.seed)
    if run.by_masks:
        rounds = [task.round(number) for number in range(1, run.options.rounds + 1)]
        steps = config.max_steps + sum(stage.max_steps for stage in rounds)
        config = replace(config, augment=task.round(1).augment, max_steps=steps)
    history = _fit(run, model, task.train, config, run.folder / f"rate-{rate:g}")
    return _Trained(
        model=model,
        rate=rate,
        seconds=history[-1]["seconds"] if history else 0.0,
        precision=_tag_precision(task, model),
    )


def _round(run: _Run, best: _Trained, number: int, supervision: str) -> float:
    """Train the network on pseudo-labels of its own, keep it, and score its tags on the held-out photos."""
    task, model = run.task, best.model
    bags = write_pseudo_labels(
        Segmenter(model, task.spec, inference=task.refine),
        task.train,
        run.folder / f"pseudo-labels-{number}",
        min_confidence=task.min_confidence,
        progress=run.progress,
    )
    config = replace(task.round(number), rule=run.trained, learning_rate=best.rate, seed=run.seed)
    _fit(run, model, bags, config, run.folder / f"round-{number}")
    _keep(task, model, run.folder / f"round-{number}" / "model", supervision)
    return _tag_precision(task, model)


def _fit(run: _Run, model: FCN, bags: BagSet, config: TrainConfig, out: Path) -> list[dict[str, Any]]:
    return fit(
        model, bags, config, out=out, device=run.device, resume=run.options.resume, progress=run.progress
    )


def _tag_precision(task: Task, model: FCN) -> float:
    """Tag average precision on the held-out photos; nan where none are held out."""
    if not len(task.held):
        return math.nan
    return score_tags(model, task.held, longest_side=task.spec.longest_side).mean_average_precision


def _keep(task: Task, model: FCN, folder: Path, supervision: str) -> None:
    """The model folder of a row, whose masks are those of the column "refined"."""
    spec = replace(task.spec, inference=task.refine, supervision=supervision, tags_from=task.train.tags_from)
    save_model(folder, model, spec)


def _scores(task: Task, model: FCN, progress: bool) -> dict[str, Any]:
    """Mean IU and counts of photos of each of `COLUMNS`, and IU by class of the refined masks; void excluded."""
    if task.val is None:
        return {"mean_iu": dict.fromkeys(COLUMNS)}
    tta = replace(task.refine, random_walk=0, refine="none")
    spec = calibrated(model, task.spec, replace(tta, prior=1.0), task.held)
    settings = {
        "plain": InferenceConfig(),
        "tta": tta,
        "random_walk": replace(task.refine, refine="none"),
        "refined": task.refine,
        "prior": replace(task.refine, prior=1.0 if spec.prior is not None else 0.0),
    }
    segmenter = Segmenter(model, spec, inference=task.refine)
    evaluations = {name: Evaluation(task.val.classes) for name in COLUMNS}
    for bag in tqdm(task.val.bags, desc="score", unit="photo", disable=not progress):
        photo = load_photo(bag)
        truth = load_mask(bag, task.val, size=(photo.shape[0], photo.shape[1]))
        for name, mask in segmenter.masks(photo, settings).items():
            evaluations[name].update(mask, truth)
    scores = {name: evaluation.compute().to_json() for name, evaluation in evaluations.items()}
    if spec.prior is None:  # nothing was held out to calibrate it on
        scores["prior"] |= {"mean_iu": None, "by_photo": None}
    return {
        "mean_iu": {name: scores[name]["mean_iu"] for name in COLUMNS},
        "by_photo": {name: scores[name]["by_photo"] for name in COLUMNS},
        "per_class_iu": scores["refined"]["per_class_iu"],
        "photos": len(task.val),
    }
