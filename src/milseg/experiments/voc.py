"""`milseg reproduce voc`: the paper's Table 1 and Figure 1 on PASCAL VOC."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from milseg.config import VocOptions, overridden, overridden_by
from milseg.data.bags import BagSet
from milseg.data.photo_statistics import read_photos, readable_bags
from milseg.data.sources.voc import read_voc
from milseg.data.sources.voc_sets import PAIRS, default_pair, require_disjoint
from milseg.data.truth_checks import checked_truth, reading_of
from milseg.errors import UserError
from milseg.experiments.table1 import Experiment, Row, prepare_folder, run_table1
from milseg.inference.model_folder import ModelSpec
from milseg.models.fcn import FCN
from milseg.models.transfer import build_model
from milseg.rules import find_rule
from milseg.training.optimizer import find_schedule
from milseg.training.table1_settings import table1_settings
from milseg.utils.devices import pick_device

RUN_ONLY = ("out", "device", "resume", "overwrite")


def _sets(options: VocOptions) -> tuple[str, str]:
    """Names of the training and validation sets, those that belong together where one is not given."""
    train, val = options.train_set, options.val_set
    if train is None and val is None:
        return default_pair(options.root, year=options.year, sbd=options.sbd)
    partner = dict(PAIRS)
    other = {b: a for a, b in reversed(PAIRS)}
    return train or other.get(str(val), "train"), val or partner.get(str(train), "val")


def command_line(options: VocOptions) -> str:
    """What to type for the same result; options left at their default are not repeated."""
    words = ["milseg", "reproduce", "voc"]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in RUN_ONLY or value is None or value == field.default:
            continue
        shown = ",".join(value) if isinstance(value, tuple) else str(value)
        # Folders differ from machine to machine: the name says which option, the user which folder.
        shown = {"root": "VOCDIR", "sbd": "SBDDIR"}.get(
            field.name, Path(shown).name if isinstance(value, Path) else shown
        )
        if field.name == "weights":
            shown = Path(shown).name
        words += ["--" + field.name.replace("_", "-"), shown]
    return shlex.join(words)


def make_experiment(options: VocOptions) -> Experiment:
    """Read the sets, check the weights, settle the settings.

    Raises:
        UserError: anything missing or unknown, before any training starts.
    """
    trained = table1_settings(options.backbone)
    if find_rule(options.rule).supervision != "tags":
        raise UserError(
            f"--rule {options.rule}: learns from masks; the oracle row does that already. Choose a rule of "
            "tags"
        )
    find_schedule(options.schedule or "constant")
    train, val = _read(options)
    mil = overridden_by(trained.mil, options)
    oracle = overridden(
        mil, rule="oracle", learning_rate=options.oracle_learning_rate or trained.oracle_learning_rate
    )
    scale = trained.score_scale if options.score_scale is None else options.score_scale
    if not scale > 0:
        raise UserError(f"--score-scale {scale}: expected a number above 0")
    spec = ModelSpec(
        backbone=options.backbone,
        classes=train.classes,
        output_stride=options.output_stride or trained.output_stride,
        vgg_padding=options.vgg_padding,
        tags_from=train.tags_from,
        longest_side=mil.longest_side,
    )
    start = partial(_started, options, spec, scale)
    start("zero")  # weights that are missing or of another network stop the run here
    return Experiment(
        dataset=f"PASCAL VOC ({val.name}), {len(train.classes) - 1} classes, {options.backbone}",
        command=command_line(options),
        train=train,
        val=val,
        start=start,
        spec=spec,
        mil=mil,
        oracle=oracle,
        settings=_settings(options),
        notes=(f"Settings: {trained.note}.", *train.notes, *val.notes),
    )


def _read(options: VocOptions) -> tuple[BagSet, BagSet]:
    """The sets to train and to score on; the masks of both are looked at, as the oracle learns from the first."""
    train, val = (
        read_voc(
            options.root,
            name,
            year=options.year,
            classes=options.classes,
            tags_file=options.tags,
            sbd=options.sbd,
        )
        for name in _sets(options)
    )
    require_disjoint(train, val)
    return _looked_at(train), _readable(_looked_at(val))


def _readable(bags: BagSet) -> BagSet:
    """The bags whose photos can be read, the others named: every row of the table is scored on the same photos."""
    kept, _, bad = readable_bags(bags, read_photos(bags.bags, progress=True))
    for line in bad:
        print(f"milseg: left out: {line}", file=sys.stderr)
    if not len(kept):
        raise UserError(f"{bags.name}: none of its {len(bags):,} photos can be read; the first: {bad[0]}")
    return kept


def _looked_at(bags: BagSet) -> BagSet:
    """The bags with notes on what is odd about their masks; a set without masks is told of where they are needed."""
    if any(bag.mask is None for bag in bags.bags):
        return bags
    return checked_truth(bags, reading_of(bags, bags.name))


def _started(options: VocOptions, spec: ModelSpec, scale: float, kind: str) -> FCN:
    """A fresh network: its score layer from the classifier, zero or random, as `kind` says."""
    transfer: Any = True if kind == "classifier" else kind
    model, report = build_model(
        options.backbone,
        spec.classes,
        weights=options.weights,
        transfer=transfer,
        output_stride=spec.output_stride,
        vgg_padding=options.vgg_padding,
        seed=options.seed,
    )
    if kind == "classifier":
        print(report)
        model.scale_rows(scale)
    return model.eval()


def _settings(options: VocOptions) -> dict[str, Any]:
    """What a run depends on, as plain values."""
    return {
        key: list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
        for key, value in asdict(options).items()
        if key not in RUN_ONLY
    }


def reproduce_voc(options: VocOptions, *, progress: bool = True) -> list[Row]:
    """Run the experiment into `options.out`; see `run_table1` for what is written there."""
    device = pick_device(options.device)
    experiment = make_experiment(options)
    prepare_folder(options.out, resume=options.resume, overwrite=options.overwrite)
    return run_table1(experiment, options.out, device=device, resume=options.resume, progress=progress)
