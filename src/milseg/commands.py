"""What each command does with its settings: run, then say where to look."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from milseg.bags import BagSet, load_photo
from milseg.check import check_source
from milseg.checkpoint import load_model
from milseg.devices import keep_freed_memory, pick_device
from milseg.distributed import joined
from milseg.errors import UserError, unknown_name
from milseg.evaluate import evaluate_folder, evaluate_model, evaluate_segmenter
from milseg.experiments.compare import compare as compare_rules
from milseg.experiments.digits import reproduce_digits
from milseg.experiments.table1 import TITLES, Row, gain
from milseg.experiments.voc import reproduce_voc
from milseg.export import export_run
from milseg.files import check_writable, refuse_existing, write_json
from milseg.hub import local_folder
from milseg.launch import is_first
from milseg.masks import voc_results as write_voc_results
from milseg.merging import merge_folders
from milseg.models.fcn import FCN
from milseg.options import (
    READINGS,
    CheckOptions,
    CompareOptions,
    DigitsOptions,
    EvaluateOptions,
    ExportOptions,
    MergeOptions,
    PredictOptions,
    ShardOptions,
    TrainOptions,
    VocOptions,
    VocResultsOptions,
)
from milseg.options.source import ShardReading
from milseg.photos import UInt8
from milseg.plan import LONGEST_SIDE
from milseg.predict import segment
from milseg.prediction_run import predict_run
from milseg.recipes import train_recipe
from milseg.scores import Scores
from milseg.segmenter import Segmenter
from milseg.shard_run import shard_run
from milseg.sources.open import open_source_of
from milseg.sources.tag_file import read_ids
from milseg.sources.to_score import bags_to_score
from milseg.sources.truth import read_labels
from milseg.sources.voc import read_voc
from milseg.training_run import train_run


def digits(options: DigitsOptions) -> None:
    """`milseg reproduce digits`."""
    keep_freed_memory()
    _tell(reproduce_digits(options), options.out)


def voc(options: VocOptions) -> None:
    """`milseg reproduce voc`."""
    keep_freed_memory()
    _tell(reproduce_voc(options), options.out)


def _tell(rows: list[Row], out: Path) -> None:
    print(f"\n{'':28} mean IU, %")
    for row in rows:
        value = "-" if row["mean_iu"] is None else f"{row['mean_iu']:.2f}"
        print(f"{TITLES[row['approach']]:28} {value:>10}   {row['supervision']}")
    print(f"\nMIL-FCN is {gain(rows):.2f} times the baseline with classifier (paper: 1.91).")
    print(
        f"Look at {out / 'figure1.png'}, {out / 'table1.md'}, {out / 'table1.png'} and {out / 'curves.png'}."
    )


def evaluate(options: EvaluateOptions) -> None:
    """`milseg evaluate`; several processes share the photos of a model, and the first one tells."""
    model = (options.model, options.source)
    if options.pred and options.truth and not any(model):
        _refuse(options, ("tags", "split", "kind", "year", "sbd"), "--model")
        scores, about = _evaluate_folders(options)
    elif all(model) and not options.pred:
        _refuse(options, ("labels", "names"), "--pred")
        with joined(options.device) as device:
            scores, about = _evaluate_model(options, device)
    else:
        raise UserError(
            "give either --pred with --truth (folders of masks), or --model RUN with photos (a VOC folder, or any "
            "source with --truth)"
        )
    result = {**about, **scores.to_json()}
    if not is_first():
        return
    if options.out is not None:
        check_writable(options.out.parent)
        write_json(options.out, result)
    print(json.dumps(result, indent=2) if options.json else scores.table())


def _refuse(options: EvaluateOptions, names: tuple[str, ...], only_with: str) -> None:
    """Stop where an option is given that would change nothing."""
    for name in names:
        if getattr(options, name) is not None:
            raise UserError(f"--{name} goes with {only_with} alone; leave it out")


def _evaluate_folders(options: EvaluateOptions) -> tuple[Scores, dict[str, str]]:
    assert options.pred is not None
    assert options.truth is not None
    scores = evaluate_folder(
        options.pred,
        options.truth,
        classes=read_labels(options.labels) if options.labels else None,
        truth_classes=options.truth_labels,
        names=read_ids(options.names) if options.names else None,
    )
    about = {"predictions": str(options.pred), "truth": str(options.truth)}
    return scores, {**about, "supervision": "not known (masks from files)"}


def _evaluate_model(options: EvaluateOptions, device: torch.device) -> tuple[Scores, dict[str, str]]:
    assert options.model is not None
    assert options.source is not None
    if options.reading not in READINGS:
        raise unknown_name("reading", options.reading, READINGS)
    if options.truth_labels is not None and options.truth is None:
        raise UserError(
            "--truth-labels goes with --truth alone; leave it out, or give the folder of true masks"
        )
    model, spec = load_model(local_folder(options.model))
    bags = bags_to_score(
        options.source,
        spec.classes,
        truth=options.truth,
        truth_classes=options.truth_labels,
        tags=options.tags,
        split=options.split,
        kind=options.kind,
        year=options.year,
        sbd=options.sbd,
        shards=ShardReading.of(options),
    )
    model.to(device)
    if options.reading == "scores":
        # The masks that `milseg predict` writes, so that both ways to a score agree.
        scores = evaluate_segmenter(Segmenter(model, spec), bags)
    else:
        found = evaluate_model(model, bags, readings=[options.reading], longest_side=spec.longest_side)
        scores = found[options.reading]
    scores = replace(scores, notes=bags.notes)
    about = {
        "model": str(options.model),
        "set": bags.name,
        "truth": str(options.truth) if options.truth else "the source's own masks",
        "supervision": spec.supervision,
        "reading": options.reading,
    }
    return scores, about


def export(options: ExportOptions) -> None:
    """`milseg export`."""
    export_run(options)
    print(f"The model is in {options.out}; docs/export.md says how other programs run it.")
    if options.format == "onnx":
        print(f"  milseg predict PHOTOS --model {options.out} --out MASKS")


def voc_results(options: VocResultsOptions) -> None:
    """`milseg voc-results`."""
    model, spec = load_model(local_folder(options.model))
    bags = read_voc(options.root, options.split, year=options.year, classes=spec.classes[1:])
    refuse_existing(options.out, overwrite=options.overwrite)
    check_writable(options.out)
    model.to(pick_device(options.device))
    archive = write_voc_results(
        _masks(model, bags),
        options.out,
        ids=[bag.name for bag in bags.bags],
        classes=spec.classes,
        competition=options.competition,
        split=options.split,
    )
    print(f"{len(bags)} masks in {archive}")


def _masks(model: FCN, bags: BagSet) -> Iterator[tuple[str, UInt8]]:
    for bag in tqdm(bags.bags, desc=f"predict {bags.name}", unit="photo"):
        yield bag.name, np.asarray(segment(model, load_photo(bag)))


def compare(options: CompareOptions) -> None:
    """`milseg compare`."""
    keep_freed_memory()
    compare_rules(options)
    print((options.out / "compare.md").read_text(encoding="utf-8"))
    print(f"Look at {options.out / 'compare.png'}; every run is in {options.out / 'compare.json'}.")


def shard(options: ShardOptions) -> None:
    """`milseg shard`."""
    made = shard_run(options)
    left_out = f", {len(made['left_out']):,} left out" * bool(made["left_out"])
    print(
        f"{made['photos']:,} photos in {len(made['shards']):,} shards, {made['bytes'] / 1e6:,.1f} MB, in {options.out}"
        f"{left_out}. Look at {options.out / 'shards.json'}, then: milseg train {options.out}"
    )


def check(options: CheckOptions) -> None:
    """`milseg check`; a report, and a UserError where training would teach nothing."""
    keep_freed_memory()  # as training does, whose time is estimated
    bags = open_source_of(options)
    recipe = train_recipe("best", options.backbone)
    if options.max_steps is not None:
        recipe = recipe.with_steps(options.max_steps)
    report = check_source(
        bags,
        max_pixels=options.max_pixels,
        progress=not options.json,
        config=replace(recipe.stages[0], max_steps=recipe.steps, longest_side=LONGEST_SIDE["cpu"]),
        backbone=options.backbone,
        output_stride=recipe.output_stride,
        device=pick_device(options.device),
        mapping=options.mapping,
    )
    print(json.dumps(report.to_json(), indent=2) if options.json else report.text())
    if report.meaningless:
        raise UserError("training would be meaningless: " + "; ".join(report.meaningless))


def train(options: TrainOptions) -> None:
    """`milseg train`."""
    keep_freed_memory()
    out = train_run(options)
    if not is_first():
        return
    print(f"\nThe model is in {out}. Look at {out / 'samples'} and {out / 'curves.png'}, then:")
    print(f"  milseg predict PHOTOS --model {out} --out MASKS")


def predict(options: PredictOptions) -> None:
    """`milseg predict`."""
    keep_freed_memory()
    counts = predict_run(options)
    if not is_first():
        return
    if options.shard:
        print(
            f"{counts['done']} photos of shard {options.shard} segmented, {counts['earlier']} were there before, "
            f"{counts['failed']} left out. When all shards are: milseg merge {options.out}"
        )
        return
    print(
        f"{counts['done']} photos segmented into {options.out}, {counts['earlier']} were there before, "
        f"{counts['failed']} left out."
    )
    print(
        f"Look at {options.out / 'overlays'}; {options.out / 'predictions.csv'} lists the least certain first."
    )


def merge_shards(options: MergeOptions) -> None:
    """`milseg merge`."""
    out = merge_folders([Path(folder) for folder in options.folders], options.out, resume=options.resume)
    print(f"{out['photos']} photos in {options.out or options.folders[0]}, {out['failed']} left out.")
