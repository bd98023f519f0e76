"""`milseg train`: one's own photos and tags in, a model folder out.

Model selection uses tags alone: a held-out part of the bags is scored by tag average precision, and the best model is
the one that is kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml

from milseg.bags import PRESENT, BagSet, load_photo
from milseg.checkpoint import ModelSpec, load_model, save_model
from milseg.devices import pick_device
from milseg.errors import UserError
from milseg.figures import curves, figure1
from milseg.files import claim_folder, remove_leftovers, write_json, write_text
from milseg.model_card import model_card
from milseg.models.backbones import backbone_row
from milseg.models.fcn import FCN
from milseg.models.transfer import TransferReport, build_model
from milseg.options import CheckOptions, TrainConfig, TrainOptions, overridden, seconds_of
from milseg.photo_facts import PhotoFacts, read_photos, typical_size
from milseg.predict import segment
from milseg.recipes import RECIPES, Recipe, recipe_for
from milseg.rules import find_rule
from milseg.sources.open import open_source
from milseg.tag_facts import meaningless, names_without_background, tag_matrix
from milseg.tag_scores import TagScores, collapse, score_tags
from milseg.train import fit
from milseg.training_time import estimate_training

SAMPLES = 6
SELECTIONS = 6  # how often in a run the held-out bags are scored
LONGEST_SIDE = {"cpu": 320, "cuda": 512, "mps": 320}
MOST_UNREADABLE = 0.1  # share of the photos that may be left out before something must be wrong with them all
# What an earlier run left; nothing else in the folder is touched.
OLD_FILES = (
    "model.safetensors",
    "checkpoint.safetensors",
    "selection.json",
    "curves.png",
    "samples/step-*.png",
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do, settled before it starts and written to train.yaml.

    Attributes:
        spec: the network. config: its training. score_scale: see `VocOptions`.
        held_out: how many bags are kept for model selection.
        every: steps between selections.
    """

    spec: ModelSpec
    config: TrainConfig
    score_scale: float
    held_out: int
    every: int


def hold_out(bags: BagSet, share: float, seed: int) -> tuple[BagSet, BagSet]:
    """Split bags into those to learn from and those to select by; a tag's last bag is kept to learn from.

    Raises:
        UserError: a share outside 0 to 0.5.
    """
    if not 0 <= share <= 0.5:
        raise UserError(f"--hold-out {share}: expected a share from 0 to 0.5")
    count = min(500, max(1, round(share * len(bags)))) if share and len(bags) > 1 else 0
    left = bags.tag_counts()
    held: set[int] = set()
    for i in np.random.RandomState(seed).permutation(len(bags)).tolist():
        pairs = zip(bags.classes, bags.bags[i].tags, strict=True)
        tags = [name for name, tag in pairs if tag == PRESENT]
        if len(held) < count and all(left[name] > 1 for name in tags):
            held.add(i)
            left.update({name: left[name] - 1 for name in tags})
    return bags.take(i for i in range(len(bags)) if i not in held), bags.take(sorted(held))


def source_of(options: TrainOptions | CheckOptions) -> BagSet:
    """The bags that the options name; no photo is opened."""
    return open_source(
        options.source,
        tags=options.tags,
        split=options.split,
        classes=options.classes,
        tags_are=options.tags_are,
        background=False if options.no_background else None,
        ignore_unknown=options.ignore_unknown_tags,
        kind=options.kind,
    )


def make_plan(
    options: TrainOptions,
    bags: BagSet,
    held_out: int,
    device: torch.device,
    *,
    size: tuple[int, int],
    steps: int | None = None,
) -> Plan:
    """Settle every setting: what the user gave, else the backbone's recipe, else what suits the machine.

    Args:
        size: (height, width) of a typical photo. steps: those of the run to resume, which a time budget had set.
    """
    backbone = options.backbone
    if backbone == "auto":
        backbone = "resnet50" if device.type == "cuda" else "mobilenet_v2"
    backbone_row(backbone)
    recipe = recipe_for(backbone) if backbone in RECIPES else _general(recipe_for(backbone))
    config = overridden(
        recipe.mil,
        **{
            field.name: getattr(options, field.name)
            for field in fields(TrainConfig)
            if hasattr(options, field.name)
        },
    )
    if config.longest_side is None:
        config = replace(config, longest_side=LONGEST_SIDE[device.type])
    stride = options.output_stride or recipe.output_stride
    if options.time_budget is not None:
        steps = steps or _steps_in(options, config, backbone, stride, len(bags.classes), size, device)
        config = replace(config, max_steps=steps)
    for name, value in (("max_steps", config.max_steps), ("select_every", options.select_every)):
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected 1 or more")
    spec = ModelSpec(
        backbone=backbone,
        classes=bags.classes,
        output_stride=stride,
        vgg_padding=options.vgg_padding,
        supervision=f"image tags ({bags.tags_from})",
        tags_from=bags.tags_from,
        longest_side=config.longest_side,
    )
    scale = recipe.score_scale if options.score_scale is None else options.score_scale
    every = options.select_every or max(1, math.ceil(config.max_steps / SELECTIONS))
    return Plan(spec=spec, config=config, score_scale=scale, held_out=held_out, every=every)


def _general(recipe: Recipe) -> Recipe:
    """A backbone without a recipe of its own: MobileNetV2's rates, which suit networks with batch norm."""
    return replace(RECIPES["mobilenet_v2"], output_stride=recipe.output_stride)


def _steps_in(
    options: TrainOptions,
    config: TrainConfig,
    backbone: str,
    stride: int,
    classes: int,
    size: tuple[int, int],
    device: torch.device,
) -> int:
    budget = seconds_of(str(options.time_budget))
    timed = estimate_training(
        classes,
        size,
        config=config,
        backbone=backbone,
        output_stride=stride,
        device=device,
    )
    steps = int(0.85 * budget / timed.seconds_per_step)
    if steps < 10:
        raise UserError(
            f"--time-budget {options.time_budget}: enough for {steps} steps of {timed.seconds_per_step:.2g} s; give "
            "more time, a smaller --longest-side or --batch-size, or a smaller --backbone"
        )
    return min(steps, options.max_steps) if options.max_steps else steps


def train_run(options: TrainOptions, *, progress: bool = True) -> Path:
    """Train on a source and write the model folder `options.out`; returns it.

    Raises:
        UserError: anything at fault with the source, the settings or the folder, before training starts.
    """
    device = pick_device(options.device)
    out = options.out
    stored = _stored_record(out / "train.yaml") if options.resume else None
    _check_folder(out, options, resumed=stored is not None)
    if options.time_budget is not None:
        seconds_of(options.time_budget)  # a mistake in it is told before the photos are read
    bags = source_of(options)
    if find_rule(options.rule or "max").supervision != "tags":
        raise UserError(
            f"--rule {options.rule}: learns from masks; milseg train learns from tags. Choose another rule"
        )
    bags, facts = _readable(bags, progress=progress)
    train, held = hold_out(bags, options.hold_out, options.seed)
    steps = int(stored["plan"]["config"]["max_steps"]) if stored else None
    plan = make_plan(options, bags, len(held), device, size=typical_size(facts), steps=steps)
    record = {
        "plan": _plan_record(plan),
        "start": _start_record(options),
        "source": _source_record(options, bags),
    }
    if stored is not None:
        _refuse_changes(out / "train.yaml", stored, record)
    model, report = _start(options, plan)
    if stored is None:
        for pattern in OLD_FILES:
            for stale in out.glob(pattern):
                stale.unlink()
        write_text(out / "train.yaml", yaml.safe_dump(record, sort_keys=False, allow_unicode=True))
    _say(plan, bags, train, held, report, device)
    _train(model, plan, train, held, out, device, stored is not None, progress)
    _finish(plan, report, bags, train, held, out)
    return out


def _check_folder(out: Path, options: TrainOptions, *, resumed: bool) -> None:
    """Refuse a folder in use, or one without a run to resume; make it, and try to write into it."""
    if options.resume and not resumed and not options.overwrite and out.is_dir() and any(out.iterdir()):
        raise UserError(
            f"{out}: holds files, but no run to resume (train.yaml is missing); --overwrite starts anew"
        )
    claim_folder(out, resume=options.resume, overwrite=options.overwrite)
    for name in ("train.yaml", "selection.json", "curves.png", "README.md"):
        remove_leftovers(out / name)


def _readable(bags: BagSet, *, progress: bool) -> tuple[BagSet, list[PhotoFacts]]:
    """The bags whose photos can be read, the others named; each photo is decoded once, before hours depend on it.

    Raises:
        UserError: training would be meaningless, or too many photos cannot be read.
    """
    facts = read_photos(bags.bags, progress=progress)
    good = [i for i, fact in enumerate(facts) if fact.size is not None]
    why = meaningless(tag_matrix(bags), names_without_background(bags), good)
    if why:
        raise UserError(f"{bags.name}: training would be meaningless: {'; '.join(why)}")
    bad = [
        f"{bag.name}: {fact.reason}" for bag, fact in zip(bags.bags, facts, strict=True) if fact.size is None
    ]
    for line in bad:
        print(f"milseg: left out: {line}", file=sys.stderr)
    if len(bad) > max(1, MOST_UNREADABLE * len(bags)):
        raise UserError(
            f"{bags.name}: {len(bad)} of {len(bags)} photos cannot be read, such as {bad[0]}; mend them or take them "
            "out (milseg check names them all)"
        )
    if bad:
        note = f"{len(bad)} photos that cannot be read left out, such as {bad[0].partition(':')[0]}"
        bags = replace(bags, notes=(*bags.notes, note))
    return bags.take(good), [facts[i] for i in good]


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
        seed=plan.config.seed,
    )
    with torch.no_grad():
        for parameter in model.score_layer.parameters():
            parameter.mul_(plan.score_scale)
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
) -> None:
    """Fit, and every so often score the held-out tags, keep the best model, draw samples and curves."""
    selection = out / "selection.json"
    scored: list[dict[str, Any]] = _read_json(selection) if resume else []
    (out / "samples").mkdir(exist_ok=True)
    shown = held if len(held) >= SAMPLES else train
    shown = shown.take(range(min(SAMPLES, len(shown))))

    def look(step: int, loss: float) -> None:
        last = step + 1 == plan.config.max_steps
        if not last and (step + 1) % plan.every:
            return
        # A run that was stopped after a selection comes by here a second time.
        scored[:] = [row for row in scored if row["step"] < step + 1]
        with _evaluating(model):
            found = score_tags(model, held if len(held) else shown, longest_side=plan.config.longest_side)
            _draw_samples(model, shown, plan, out / "samples" / f"step-{step + 1:06d}.png")
        warning = collapse(found)
        row = _selection_row(step + 1, found, warning, held=len(held))
        row["kept"] = _better(row, scored)
        scored.append(row)
        if row["kept"]:
            save_model(out, model, plan.spec)
        if warning:
            print(f"\nmilseg: after {step + 1} steps: {warning}", file=sys.stderr)
        write_json(selection, scored)
        curves(_metrics(out), out / "curves.png", title="training from tags")

    fit(model, train, plan.config, out=out, device=device, resume=resume, progress=progress, on_step=look)


@contextmanager
def _evaluating(model: FCN) -> Iterator[None]:
    """Evaluation mode for a while; then each layer's own mode again, dropout that was switched off included."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _better(row: Mapping[str, Any], earlier: list[dict[str, Any]]) -> bool:
    """Whether a selection is as good as the best before it; with nothing to select by, the last is kept."""
    value = row["tag_average_precision"]
    return value is None or all(value >= (other["tag_average_precision"] or 0.0) for other in earlier)


def _selection_row(step: int, found: TagScores, warning: str | None, *, held: int) -> dict[str, Any]:
    def plain(value: float) -> float | None:
        return None if math.isnan(value) else round(value, 4)

    return {
        "step": step,
        "tag_average_precision": plain(found.mean_average_precision) if held else None,
        "per_class": {name: plain(value) for name, value in found.per_class.items()},
        "predicted_share": {name: plain(value) for name, value in found.predicted_share.items()},
        "warning": warning,
        "kept": False,
    }


def _draw_samples(model: FCN, shown: BagSet, plan: Plan, path: Path) -> None:
    """Photos with their masks so far; no true mask is read."""
    rows = []
    for bag in shown.bags:
        photo = load_photo(bag)
        rows.append([photo, segment(model, photo, longest_side=plan.config.longest_side)])
    figure1(rows, plan.spec.classes, path, titles=("photo", "mask so far"))


def _finish(
    plan: Plan,
    report: TransferReport,
    bags: BagSet,
    train: BagSet,
    held: BagSet,
    out: Path,
) -> None:
    """The model card, of the weights that are in the folder."""
    scored = _read_json(out / "selection.json")
    kept = next((row for row in reversed(scored) if row["kept"]), None)
    _, spec = load_model(out)
    metrics = _metrics(out)
    write_text(
        out / "README.md",
        model_card(
            spec,
            plan.config,
            bags=bags,
            learned_from=len(train),
            held_out=len(held),
            transfer=str(report),
            kept=kept,
            seconds=metrics[-1]["seconds"] if metrics else 0.0,
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
    print(
        f"{plan.spec.backbone} on {device}, {plan.config.max_steps} steps of {plan.config.batch_size}, "
        f"rule {plan.config.rule}"
    )
    print(report)


def _metrics(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )


def _read_json(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _plan_record(plan: Plan) -> dict[str, Any]:
    spec = asdict(plan.spec)
    spec["classes"] = list(spec["classes"])
    return {
        "spec": spec,
        "config": asdict(plan.config),
        "score_scale": plan.score_scale,
        "held_out": plan.held_out,
        "every": plan.every,
    }


def _source_record(options: TrainOptions, bags: BagSet) -> dict[str, Any]:
    # Names only: a model folder travels, and folders of one's machine are nobody's business.
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


def _start_record(options: TrainOptions) -> dict[str, Any]:
    known = options.weights in ("imagenet", "none")
    return {
        "weights": options.weights if known else Path(options.weights).name,
        "mapping": options.mapping.name if options.mapping else None,
    }


def _stored_record(path: Path) -> dict[str, Any] | None:
    """What train.yaml says of the run to resume; None where there is none."""
    if not path.is_file():
        return None
    try:
        stored: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        _settings(stored)
        int(stored["plan"]["config"]["max_steps"])
        return stored
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); start anew with --overwrite") from None


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same for a run to go on, by name."""
    plan, start = dict(record["plan"]), dict(record["start"])
    spec, config = dict(plan.pop("spec")), dict(plan.pop("config"))
    spec.pop("milseg_version", None)
    return {**plan, **spec, **config, **start, "photos and tags": record["source"]["digest"]}


def _refuse_changes(path: Path, stored: Mapping[str, Any], record: Mapping[str, Any]) -> None:
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
