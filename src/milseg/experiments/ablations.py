"""The paper's claims on digits, each by a run without the thing claimed for.

Command: `milseg reproduce digits --ablations`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from milseg.config import TrainConfig
from milseg.evaluation.confusion import Scores
from milseg.evaluation.evaluate import evaluate_model
from milseg.experiments.table1 import Experiment, Row
from milseg.models.backbones import build_fcn
from milseg.models.fcn import FCN
from milseg.training.trainer import fit
from milseg.utils.files import write_json, write_text

# Collapse is quick, and a long run can leave it by memorising a place a photo: both moments are told.
EARLY = 30

# name -> (what is left out, the claim in the paper's words)
CLAIMS: dict[str, tuple[str, str]] = {
    "mil-fcn": ("nothing: MIL-FCN as in Table 1", ""),
    "no-pretraining": (
        "image-level pre-training (random network, score layer zero)",
        "If there is no image-level pretraining, the model quickly converges to all background",
    ),
    "no-rows": (
        "the classifier's rows (score layer zero, body pre-trained)",
        "Including these classifier parameters helps prevent degenerate solutions of predicting all "
        "background",
    ),
    "all-places": (
        "the maximum (every place of every present class)",
        "Ignoring the loss at all non-maximally scoring points is key to avoid biasing the learning to the "
        "background",
    ),
    "binary": (
        "the competition of classes (one binary MIL a class)",
        "When an image contains multiple classes the competition of pixelwise models helps",
    ),
}


def run_ablations(
    experiment: Experiment, rows: list[Row], out: Path, *, device: torch.device, progress: bool = True
) -> list[dict[str, Any]]:
    """Train once without each thing, with MIL-FCN's steps and seed; writes ablations.json and .md."""
    spec = experiment.spec

    def untrained() -> FCN:
        return build_fcn(
            spec.backbone, len(spec.classes), output_stride=spec.output_stride, seed=experiment.mil.seed
        )

    def untrained_zero() -> FCN:
        model = untrained()
        model.replace_score_layer(len(spec.classes))
        return model

    runs: dict[str, tuple[Callable[[], FCN], TrainConfig]] = {
        "mil-fcn": (lambda: experiment.start("classifier"), experiment.mil),
        "no-pretraining": (untrained_zero, experiment.mil),
        "no-rows": (lambda: experiment.start("zero"), experiment.mil),
        "all-places": (lambda: experiment.start("classifier"), replace(experiment.mil, rule="average")),
        "binary": (lambda: experiment.start("classifier"), replace(experiment.mil, rule="binary-max")),
    }
    results = []
    for name, (start, config) in runs.items():
        began = time.monotonic()
        model = start()
        early: list[float] = []

        def watch(step: int, loss: float, model: FCN = model, early: list[float] = early) -> None:
            if step + 1 == EARLY:
                shares = evaluate_model(model, experiment.val, progress=False)["scores"].predicted_share
                early.append(shares["background"])
                model.train()

        fit(model, experiment.train, config, device=device, progress=progress, on_step=watch)
        scores = evaluate_model(model, experiment.val, progress=progress)["scores"]
        results.append(_result(name, scores, early, config, time.monotonic() - began))
    record = {"dataset": experiment.dataset, "command": f"{experiment.command} --ablations", "runs": results}
    write_json(out / "ablations.json", record)
    write_text(out / "ablations.md", ablations_markdown(record, rows))
    return results


def _result(
    name: str, scores: Scores, early: list[float], config: TrainConfig, seconds: float
) -> dict[str, Any]:
    left_out, claim = CLAIMS[name]
    return {
        "run": name,
        "left_out": left_out,
        "claim": claim,
        "rule": config.rule,
        "mean_iu": scores.mean_iu,
        f"background_share_after_{EARLY}_steps": early[0] if early else None,
        "background_share": scores.predicted_share["background"],
        "per_class_iu": scores.to_json()["per_class_iu"],
        "supervision": "image tags",
        "seconds": round(seconds, 1),
    }


def ablations_markdown(record: dict[str, Any], rows: list[Row]) -> str:
    """A table of the runs, with how much of the photos each calls background."""
    truth = next(row for row in rows if row["approach"] == "all-background")
    lines = [
        f"# The paper's claims on {record['dataset']}",
        "",
        f"`{record['command']}`",
        "",
        f"All background scores {truth['mean_iu']:.2f}; the true background is "
        f"{truth['pixel_accuracy']:.1f} % of the pixels.",
        "",
        f"| Left out | mean IU, % | called background, %: after {EARLY} steps | at the end | "
        "the paper's claim |",
        "|---|---:|---:|---:|---|",
    ]
    for run in record["runs"]:
        claim = f'"{run["claim"]}"' if run["claim"] else ""
        early = run[f"background_share_after_{EARLY}_steps"]
        lines.append(
            f"| {run['left_out']} | {run['mean_iu']:.2f} | {'-' if early is None else f'{early:.1f}'} | "
            f"{run['background_share']:.1f} | {claim} |"
        )
    return "\n".join(lines) + "\n"
