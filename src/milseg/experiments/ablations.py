"""The paper's claims on digits, each by a run without the thing claimed for.

Command: `milseg reproduce digits --ablations`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from milseg.config import TrainConfig, overridden
from milseg.evaluation.confusion import Scores
from milseg.evaluation.evaluate import evaluate_model
from milseg.experiments.table1 import Experiment, Row
from milseg.models.backbones import build_fcn
from milseg.models.fcn import FCN
from milseg.training.trainer import fit
from milseg.utils.files import write_json, write_text

# Collapse is quick, and a long run can leave it by memorising a place a photo: both moments are told.
EARLY = 30


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """A run of MIL-FCN without one thing.

    Attributes:
        left_out: the thing.
        claim: what the paper says of it, in its words.
        start: "classifier" or "zero" as in `Experiment.start`, or "untrained" for a random network.
        rule: in place of MIL-FCN's; None keeps it.
    """

    left_out: str
    claim: str = ""
    start: str = "classifier"
    rule: str | None = None


ABLATIONS: dict[str, Ablation] = {
    "mil-fcn": Ablation(left_out="nothing: MIL-FCN as in Table 1"),
    "no-pretraining": Ablation(
        left_out="image-level pre-training (random network, score layer zero)",
        claim="If there is no image-level pretraining, the model quickly converges to all background",
        start="untrained",
    ),
    "no-rows": Ablation(
        left_out="the classifier's rows (score layer zero, body pre-trained)",
        claim="Including these classifier parameters helps prevent degenerate solutions of predicting all "
        "background",
        start="zero",
    ),
    "all-places": Ablation(
        left_out="the maximum (every place of every present class)",
        claim="Ignoring the loss at all non-maximally scoring points is key to avoid biasing the learning to the "
        "background",
        rule="average",
    ),
    "binary": Ablation(
        left_out="the competition of classes (one binary MIL a class)",
        claim="When an image contains multiple classes the competition of pixelwise models helps",
        rule="binary-max",
    ),
}


def run_ablations(
    experiment: Experiment, rows: list[Row], out: Path, *, device: torch.device, progress: bool = True
) -> list[dict[str, Any]]:
    """Train once without each thing, with MIL-FCN's steps and seed; writes ablations.json and .md."""
    results = [_run(experiment, name, device, progress) for name in ABLATIONS]
    record = {"dataset": experiment.dataset, "command": f"{experiment.command} --ablations", "runs": results}
    write_json(out / "ablations.json", record)
    write_text(out / "ablations.md", ablations_markdown(record, rows))
    return results


def _run(experiment: Experiment, name: str, device: torch.device, progress: bool) -> dict[str, Any]:
    began = time.monotonic()
    model = _started(experiment, ABLATIONS[name].start)
    config = overridden(experiment.mil, rule=ABLATIONS[name].rule)
    early: list[float] = []

    def watch(step: int, loss: float) -> None:
        if step + 1 == EARLY:
            shares = evaluate_model(model, experiment.val, progress=False)["scores"].predicted_share
            early.append(shares["background"])
            model.train()

    fit(model, experiment.train, config, device=device, progress=progress, on_step=watch)
    scores = evaluate_model(model, experiment.val, progress=progress)["scores"]
    return _result(name, scores, early, config, time.monotonic() - began)


def _started(experiment: Experiment, start: str) -> FCN:
    if start != "untrained":
        return experiment.start(start)
    spec = experiment.spec
    model = build_fcn(
        spec.backbone, len(spec.classes), output_stride=spec.output_stride, seed=experiment.mil.seed
    )
    model.replace_score_layer(len(spec.classes))
    return model


def _result(
    name: str, scores: Scores, early: list[float], config: TrainConfig, seconds: float
) -> dict[str, Any]:
    return {
        "run": name,
        "left_out": ABLATIONS[name].left_out,
        "claim": ABLATIONS[name].claim,
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
