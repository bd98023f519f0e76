"""Table 1 and Figure 1: the paper's four systems on any set of bags, each row scored in one way.

Rows: all background; no classifier (score layer zero, and a small random start beside it); with classifier,
    which is
step 0 of the MIL run's own checkpoint; MIL-FCN; and the supervised oracle, which has the same start, body,
steps and prediction path. Where the experiment asks for it a row beyond the paper: another rule, and masks refined.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from milseg._version import __version__
from milseg.config import READINGS, InferenceConfig, TrainConfig
from milseg.data.bags import PRESENT, BagSet, load_mask, load_photo
from milseg.errors import UserError
from milseg.evaluation.confusion import Scores
from milseg.evaluation.evaluate import evaluate_all_background, evaluate_model, evaluate_segmenter
from milseg.figures import curves, figure1, score_bars
from milseg.inference.model_folder import ModelSpec, load_model, save_model
from milseg.inference.segmenter import Segmenter
from milseg.models.fcn import FCN
from milseg.training.trainer import fit
from milseg.utils.files import claim_folder, write_json, write_text


@dataclass(frozen=True, kw_only=True)
class Approach:
    """A row of Table 1.

    Attributes:
        title: as the tables and figures call it.
        val, test: the paper's mean IU in percent on VOC 2011 val and VOC 2012 test; None where it has none.
    """

    title: str
    val: float | None = None
    test: float | None = None


# In the table's order.
APPROACHES: dict[str, Approach] = {
    "all-background": Approach(title="All background"),
    "baseline-no-classifier": Approach(title="Baseline (no classifier)", val=3.52),
    "baseline": Approach(title="Baseline (with classifier)", val=13.11, test=13.09),
    "mil-fcn": Approach(title="MIL-FCN", val=25.05, test=25.66),
    "oracle": Approach(title="Oracle (supervised)", val=59.43, test=63.80),
    "beyond": Approach(title="Beyond the paper"),
}
FIGURE_ROWS = 6

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything the rows share.

    Attributes:
        dataset: named in the result.
        command: what to type for the same result.
        train, val: bags; only the oracle opens the training masks, and scoring the validation masks.
        start: "classifier", "zero" or "random" to a fresh network, the same one each time.
        spec: how to build the network again.
        mil, oracle: how the two are trained.
        beyond, beyond_inference: how a network beyond the paper is trained from the same tags, and how its maps become
            masks; None for the paper's rows alone.
        settings: written into config.yaml as they are.
        notes: sentences for the result, such as what was left out.
    """

    dataset: str
    command: str
    train: BagSet
    val: BagSet
    start: Callable[[str], FCN]
    spec: ModelSpec
    mil: TrainConfig
    oracle: TrainConfig
    beyond: TrainConfig | None = None
    beyond_inference: InferenceConfig = field(default_factory=InferenceConfig)
    settings: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def prepare_folder(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds a run, unless told to go on in it or to write over it; rows left there go
    first.

    Raises:
        UserError: the folder holds files, or cannot be written.
    """
    claim_folder(out, resume=resume, overwrite=overwrite)
    if overwrite and not resume:
        for stale in [*out.glob("rows/*.json"), *out.glob("runs/*/checkpoint.safetensors")]:
            stale.unlink()


def run_table1(
    experiment: Experiment, out: Path, *, device: torch.device, resume: bool = False, progress: bool = True
) -> list[Row]:
    """Compute the rows and write table1.json, table1.md, table1.png, figure1.png, curves.png, config.yaml,
    models/.

    With `resume`, rows that an earlier run finished are taken from it and a half-trained row goes on.

    Returns:
        The rows, in the table's order.
    """
    _write_config(experiment, out, resume)
    rows = [
        _row(out, resume, "all-background", lambda: _all_background(experiment)),
        _row(out, resume, "baseline-no-classifier", lambda: _no_classifier(experiment, device, progress)),
        _row(out, resume, "baseline", lambda: _with_classifier(experiment, out, device, progress)),
        _row(out, resume, "mil-fcn", lambda: _trained(experiment, out, "mil-fcn", device, resume, progress)),
        _row(out, resume, "oracle", lambda: _trained(experiment, out, "oracle", device, resume, progress)),
    ]
    if experiment.beyond is not None:
        rows.append(_row(out, resume, "beyond", lambda: _beyond(experiment, out, device, resume, progress)))
    _write_results(experiment, rows, out)
    _draw(experiment, rows, out)
    return rows


def gain(rows: list[Row]) -> float:
    """MIL-FCN over the baseline with classifier; the paper's is 1.91 on VOC 2011 val."""
    iu = {row["approach"]: row["mean_iu"] for row in rows}
    # A score of 0, or none (no true pixel at all), has no multiple.
    return float(iu["mil-fcn"] / iu["baseline"]) if iu["baseline"] and iu["mil-fcn"] is not None else math.nan


def _row(out: Path, resume: bool, approach: str, compute: Callable[[], Row]) -> Row:
    path = out / "rows" / f"{approach}.json"
    if resume and path.is_file():
        kept: Row = json.loads(path.read_text(encoding="utf-8"))
        return kept
    began = time.monotonic()
    row = compute()
    row["seconds"] = round(row.get("seconds", time.monotonic() - began), 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, row)
    return row


def _scored(approach: str, scores: Scores, supervision: str, **more: Any) -> Row:
    data = scores.to_json()
    return {
        "approach": approach,
        "mean_iu": data.pop("mean_iu"),
        "per_class_iu": data.pop("per_class_iu"),
        "supervision": supervision,
        **{key: value for key, value in data.items() if key != "notes"},
        **more,
    }


def _both_readings(
    experiment: Experiment, model: FCN, progress: bool
) -> tuple[Scores, dict[str, float | None]]:
    """Scores by the default reading, and the mean IU by the literal one (see `milseg.inference.score_map`)."""
    scores = evaluate_model(model, experiment.val, readings=READINGS, progress=progress)
    return scores["scores"], {"mean_iu_labels": scores["labels"].to_json()["mean_iu"]}


def _all_background(experiment: Experiment) -> Row:
    return _scored("all-background", evaluate_all_background(experiment.val), "none")


def _no_classifier(experiment: Experiment, device: torch.device, progress: bool) -> Row:
    """Score layer zero: every place ties and goes to the background; a small random start beside it."""
    zero, labels = _both_readings(experiment, experiment.start("zero").to(device), progress)
    random, _ = _both_readings(experiment, experiment.start("random").to(device), progress)
    return _scored(
        "baseline-no-classifier",
        zero,
        "image labels of the classifier",
        **labels,
        mean_iu_random_start=random.to_json()["mean_iu"],
    )


def _with_classifier(experiment: Experiment, out: Path, device: torch.device, progress: bool) -> Row:
    """Step 0 of the MIL run: its start is saved as a model, and that model is scored."""
    folder = out / "models" / "baseline"
    spec = replace(experiment.spec, supervision="image labels of the classifier")
    save_model(folder, experiment.start("classifier"), spec)
    model, _ = load_model(folder)
    scores, labels = _both_readings(experiment, model.to(device), progress)
    return _scored("baseline", scores, spec.supervision, **labels, steps=0)


def _trained(
    experiment: Experiment, out: Path, approach: str, device: torch.device, resume: bool, progress: bool
) -> Row:
    config = experiment.mil if approach == "mil-fcn" else experiment.oracle
    source = f"image tags ({experiment.train.tags_from})" if approach == "mil-fcn" else "pixel masks"
    model, _ = load_model(out / "models" / "baseline")
    history = fit(
        model,
        experiment.train,
        config,
        out=out / "runs" / approach,
        device=device,
        resume=resume,
        progress=progress,
    )
    save_model(out / "models" / approach, model, replace(experiment.spec, supervision=source))
    scores, labels = _both_readings(experiment, model, progress)
    return _scored(
        approach,
        scores,
        source,
        **labels,
        steps=config.max_steps,
        seconds=history[-1]["seconds"] if history else 0.0,
    )


def _beyond(experiment: Experiment, out: Path, device: torch.device, resume: bool, progress: bool) -> Row:
    """The row beyond the paper, scored on the masks that `milseg predict` would write."""
    assert experiment.beyond is not None
    source = f"image tags ({experiment.train.tags_from})"
    spec = replace(experiment.spec, supervision=source, inference=experiment.beyond_inference)
    model, _ = load_model(out / "models" / "baseline")
    history = fit(
        model,
        experiment.train,
        experiment.beyond,
        out=out / "runs" / "beyond",
        device=device,
        resume=resume,
        progress=progress,
    )
    save_model(out / "models" / "beyond", model, spec)
    scores = evaluate_segmenter(Segmenter(model, spec), experiment.val, progress=progress)
    seconds = history[-1]["seconds"] if history else 0.0
    return _scored("beyond", scores, source, steps=experiment.beyond.max_steps, seconds=seconds)


def _write_config(experiment: Experiment, out: Path, resume: bool) -> None:
    record = {
        "command": experiment.command,
        "dataset": experiment.dataset,
        "train": experiment.train.name,
        "val": experiment.val.name,
        "settings": dict(experiment.settings),
        "mil": asdict(experiment.mil),
        "oracle": asdict(experiment.oracle),
        "beyond": None if experiment.beyond is None else asdict(experiment.beyond),
    }
    text = yaml.safe_dump(record, sort_keys=False)
    path = out / "config.yaml"
    if resume and path.is_file() and path.read_text(encoding="utf-8") != text:
        raise UserError(
            f"{path}: the run in this folder had other settings; give the same ones to --resume, or choose "
            "another --out"
        )
    write_text(path, text)


def _write_results(experiment: Experiment, rows: list[Row], out: Path) -> None:
    write_json(
        out / "table1.json",
        {
            "dataset": experiment.dataset,
            "train": {"name": experiment.train.name, "photos": len(experiment.train)},
            "val": {"name": experiment.val.name, "photos": len(experiment.val)},
            "tags_from": experiment.train.tags_from,
            "gain": None if math.isnan(gain(rows)) else gain(rows),
            "paper_gain": 1.91,
            "command": experiment.command,
            "milseg_version": __version__,
            "notes": list(experiment.notes),
            "rows": rows,
        },
    )
    write_text(out / "table1.md", table_markdown(experiment, rows))


def table_markdown(experiment: Experiment, rows: list[Row]) -> str:
    """Table 1 with the paper's figures beside ours."""

    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    lines = [
        f"# Table 1 on {experiment.dataset}",
        "",
        f"`{experiment.command}`",
        "",
        "| Approach | Learned from | mean IU, % | literal reading | seconds | paper, VOC 2011 val | "
        "paper, VOC 2012 test |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        approach = APPROACHES[row["approach"]]
        lines.append(
            f"| {approach.title} | {row['supervision']} | {figure(row['mean_iu'])} | "
            f"{figure(row.get('mean_iu_labels'))} | {row['seconds']:.0f} | {figure(approach.val)} | "
            f"{figure(approach.test)} |"
        )
    random = next(row["mean_iu_random_start"] for row in rows if "mean_iu_random_start" in row)
    lines += [
        "",
        f"MIL-FCN is {gain(rows):.2f} times the baseline with classifier (paper: 1.91 on VOC 2011 val, 1.96 "
        "on test).",
        f"No classifier, with a small random score layer in place of zeros: {figure(random)}.",
        "Literal reading: the coarse top class interpolated, in place of the scores. Seconds: training, else "
        "scoring.",
        f"Trained on {len(experiment.train)} photos ({experiment.train.name}), scored on "
        f"{len(experiment.val)} ({experiment.val.name}), void excluded, one confusion matrix over the set.",
        *experiment.notes,
    ]
    return "\n".join(lines) + "\n"


def figure_photos(val: BagSet, count: int = FIGURE_ROWS) -> list[int]:
    """Which photos Figure 1 shows: the first that has each class in turn; nobody picks the good ones."""
    chosen: list[int] = []
    for number in range(1, len(val.classes)):
        found = (i for i, bag in enumerate(val.bags) if bag.tags[number] == PRESENT and i not in chosen)
        chosen += [i for i in [next(found, None)] if i is not None]
    return sorted(chosen[:count]) or list(range(min(count, len(val))))


def _draw(experiment: Experiment, rows: list[Row], out: Path) -> None:
    names = ["baseline", "mil-fcn", "oracle", *(["beyond"] if experiment.beyond is not None else [])]
    segmenters = [Segmenter(*load_model(out / "models" / name)) for name in names]
    pictures = []
    for index in figure_photos(experiment.val):
        bag = experiment.val.bags[index]
        photo = load_photo(bag)
        masks = [segmenter.segment(photo).mask for segmenter in segmenters]
        pictures.append([photo, load_mask(bag, experiment.val), *masks])
    # The paper's three columns in its order, and beside them the rows above and below MIL-FCN.
    order = (0, 1, 3, 2, 4)
    titles = ("input", "ground truth", "MIL-FCN", "with classifier", "oracle", "beyond the paper")
    figure1(
        [[*(row[i] for i in order), *row[5:]] for row in pictures],
        experiment.val.classes,
        out / "figure1.png",
        titles=titles[: len(pictures[0])],
    )
    runs = {}
    for name in names[1:]:
        lines = (out / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        runs[name] = [json.loads(line) for line in lines]
    curves(runs, out / "curves.png", title=experiment.dataset)
    score_bars(
        [
            (APPROACHES[row["approach"]].title, math.nan if row["mean_iu"] is None else row["mean_iu"])
            for row in rows
        ],
        out / "table1.png",
        paper={row.title: row.val for row in APPROACHES.values() if row.val is not None},
        title=f"mean IU on {experiment.dataset}",
    )
