"""`milseg compare`: rules side by side, each trained alike from tags and scored step by step on the same photos."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from milseg.config import CompareOptions, InferenceConfig
from milseg.data.bags import load_mask, load_photo
from milseg.errors import UserError
from milseg.evaluation.confusion import Evaluation
from milseg.evaluation.evaluate import evaluate_model
from milseg.evaluation.tag_precision import score_tags
from milseg.experiments.cam import cam_scores
from milseg.experiments.compare_table import write_table
from milseg.experiments.compare_tasks import CAM, Task, digits_task, source_task
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

STEPS = ("plain", "tta", "random_walk", "refined", "prior")  # each with what came before


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
    make = digits_task if options.source == Path("digits") else source_task
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
    masks = find_rule(trained).supervision == "masks"
    tried = [
        _train(task, trained, rate, seed, folder / f"rate-{rate:g}", options, device, progress)
        for rate in options.learning_rates
    ]
    values = [_held_out_value(task, found[0], found[3], masks and len(tried) > 1) for found in tried]
    model, rate, seconds, precision = tried[values.index(max(values))]
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
        found = cam_scores(model, task.val, longest_side=task.spec.longest_side, progress=progress)
        row |= {**found, "mean_iu": dict.fromkeys(STEPS) | found["mean_iu"]}
        row["supervision"] += "; threshold tuned on the masks that score it"
        return {"rows": [row]}
    _keep(task, model, folder / "model", str(row["supervision"]))
    rows = [{**row, **_scores(task, model, progress)}]
    for number in range(1, options.rounds + 1 if not masks else 1):
        began = time.monotonic()
        maker = Segmenter(model, task.spec, inference=task.refine)
        bags = write_pseudo_labels(
            maker,
            task.train,
            folder / f"pseudo-labels-{number}",
            min_confidence=task.min_confidence,
            progress=progress,
        )
        config = replace(task.round(number), rule=trained, learning_rate=rate, seed=seed)
        fit(
            model,
            bags,
            config,
            out=folder / f"round-{number}",
            device=device,
            resume=options.resume,
            progress=progress,
        )
        _keep(task, model, folder / f"round-{number}" / "model", str(row["supervision"]))
        tags = score_tags(model, task.held, longest_side=task.spec.longest_side).mean_average_precision
        seconds += time.monotonic() - began
        rows.append(
            {
                **row,
                "round": number,
                "seconds": round(seconds, 1),
                "tag_average_precision": None if math.isnan(tags) else tags,
                **_scores(task, model, progress),
            }
        )
    return {"rows": rows}


def _keep(task: Task, model: FCN, folder: Path, supervision: str) -> None:
    """The model folder of a row, whose masks are those of the column "refined"."""
    spec = replace(task.spec, inference=task.refine, supervision=supervision, tags_from=task.train.tags_from)
    save_model(folder, model, spec)


def _held_out_value(task: Task, model: FCN, precision: float, by_masks: bool) -> float:
    """What a learning rate is chosen by: the tags of held-out photos, or their masks where a rule learns from masks."""
    value = precision
    if by_masks:
        found = evaluate_model(model, task.held, longest_side=task.spec.longest_side, progress=False)
        value = found["scores"].mean_iu
    return -1.0 if math.isnan(value) else value


def _train(
    task: Task,
    rule: str,
    rate: float,
    seed: int,
    folder: Path,
    options: CompareOptions,
    device: torch.device,
    progress: bool,
) -> tuple[FCN, float, float, float]:
    """The trained network, its learning rate, seconds, and tag average precision on the held-out photos.

    A rule that learns from masks gets the zoom and the steps of the rounds as well, which it has no use for otherwise:
    as many updates, with the same variety, as the others in all.
    """
    model = task.start(seed)
    config = replace(task.config, rule=rule, learning_rate=rate, seed=seed)
    if find_rule(rule).supervision == "masks":
        rounds = [task.round(number) for number in range(1, options.rounds + 1)]
        steps = config.max_steps + sum(stage.max_steps for stage in rounds)
        config = replace(config, zoom=task.round(1).zoom, max_steps=steps)
    history = fit(
        model, task.train, config, out=folder, device=device, resume=options.resume, progress=progress
    )
    found = score_tags(model, task.held, longest_side=task.spec.longest_side)
    return model, rate, history[-1]["seconds"] if history else 0.0, found.mean_average_precision


def _scores(task: Task, model: FCN, progress: bool) -> dict[str, Any]:
    """Mean IU of each of `STEPS`, and the last one's by class; void excluded, one confusion matrix over the set."""
    if task.val is None:
        return {"mean_iu": dict.fromkeys(STEPS)}
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
    evaluations = {name: Evaluation(task.val.classes) for name in STEPS}
    for bag in tqdm(task.val.bags, desc="score", unit="photo", disable=not progress):
        photo = load_photo(bag)
        truth = load_mask(bag, task.val, size=(photo.shape[0], photo.shape[1]))
        for name, mask in segmenter.masks(photo, settings).items():
            evaluations[name].update(mask, truth)
    scores = {name: evaluation.compute().to_json() for name, evaluation in evaluations.items()}
    return {
        "mean_iu": {name: scores[name]["mean_iu"] for name in STEPS},
        "per_class_iu": scores["refined"]["per_class_iu"],
        "photos": len(task.val),
    }
