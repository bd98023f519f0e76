"""`milseg evaluate`."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from milseg.config import READINGS, EvaluateOptions
from milseg.data.sources.evaluation_set import evaluation_bags, truth_names
from milseg.data.sources.mask_names import given_names
from milseg.data.sources.tag_file import read_ids
from milseg.distributed.collectives import process_group
from milseg.distributed.launch import is_first
from milseg.errors import UserError, unknown_name
from milseg.evaluation.confusion import Scores
from milseg.evaluation.evaluate import evaluate_model, evaluate_segmenter
from milseg.evaluation.folders import evaluate_folder
from milseg.inference.hub import local_folder
from milseg.inference.model_folder import load_model
from milseg.inference.segmenter import Segmenter
from milseg.utils.files import check_writable, write_json


def evaluate(options: EvaluateOptions) -> None:
    """`milseg evaluate`; several processes share the photos of a model, and the first one tells."""
    model = (options.model, options.source)
    if options.pred and options.truth and not any(model):
        _refuse(options, ("tags", "split", "kind", "year", "sbd"), "--model")
        scores, about = _evaluate_folders(options)
    elif all(model) and not options.pred:
        _refuse(options, ("labels", "names", "pred_values"), "--pred")
        with process_group(options.device) as device:
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
            raise UserError(f"--{name.replace('_', '-')} goes with {only_with} alone; leave it out")


def _evaluate_folders(options: EvaluateOptions) -> tuple[Scores, dict[str, str]]:
    assert options.pred is not None
    assert options.truth is not None
    scores = evaluate_folder(
        options.pred,
        options.truth,
        classes=given_names(options.labels, options.pred_values, "--labels", "--pred-values"),
        truth_classes=given_names(
            options.truth_labels, options.truth_values, "--truth-labels", "--truth-values"
        ),
        names=read_ids(options.names) if options.names else None,
    )
    about = {"predictions": str(options.pred), "truth": str(options.truth)}
    return scores, {**about, "supervision": "not known (masks from files)"}


def _evaluate_model(options: EvaluateOptions, device: torch.device) -> tuple[Scores, dict[str, str]]:
    assert options.model is not None
    if options.reading not in READINGS:
        raise unknown_name("reading", options.reading, READINGS)
    truth_names(options)  # a mistake in them is told before the model is loaded
    model, spec = load_model(local_folder(options.model))
    bags = evaluation_bags(options, spec.classes)
    bags = bags.with_ranges(spec.value_ranges)
    model.to(device)
    if options.reading == "scores":
        # The masks that `milseg predict` writes, so that both ways to a score agree.
        scores = evaluate_segmenter(Segmenter(model, spec), bags)
    else:
        found = evaluate_model(model, bags, readings=[options.reading], longest_side=spec.longest_side)
        scores = found[options.reading]
    scores = replace(scores, notes=(*bags.notes, *scores.notes))
    about = {
        "model": str(options.model),
        "set": bags.name,
        "truth": str(options.truth) if options.truth else "the source's own masks",
        "supervision": spec.supervision,
        "reading": options.reading,
    }
    return scores, about
