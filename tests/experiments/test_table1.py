"""Table 1 and Figure 1 end to end, with settings so small that the numbers mean nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import milseg.experiments.digits
import milseg.experiments.table1
from milseg.config import DigitsOptions, TrainConfig, VocOptions
from milseg.data.bags import VOID, Bag, BagSet
from milseg.data.sources.digits import read_digits
from milseg.errors import UserError
from milseg.evaluation.evaluate import evaluate_all_background, evaluate_model, evaluate_segmenter
from milseg.experiments.ablations import ABLATIONS
from milseg.experiments.digits import mil_config, oracle_config, pretrain, reproduce_digits
from milseg.experiments.table1 import APPROACHES as TABLE
from milseg.experiments.table1 import figure_photos, gain
from milseg.experiments.voc import command_line, reproduce_voc
from milseg.inference.model_folder import load_model
from milseg.inference.segmenter import Segmenter
from milseg.models.backbone_table import BACKBONES
from milseg.models.backbones import make_classifier
from milseg.models.fcn import FCN
from milseg.training.table1_settings import TABLE1_SETTINGS, table1_settings
from milseg.training.trainer import fit

if TYPE_CHECKING:
    from conftest import SmallVoc

APPROACHES = ["all-background", "baseline-no-classifier", "baseline", "mil-fcn", "oracle", "beyond"]
FILES = {
    *("table1.json", "table1.md", "table1.png", "figure1.png", "curves.png", "config.yaml"),
    *(f"rows/{name}.json" for name in APPROACHES),
    *(
        f"models/{name}/{file}"
        for name in APPROACHES[2:]
        for file in ("config.yaml", "labels.json", "model.safetensors")
    ),
    *(
        f"runs/{name}/{file}"
        for name in APPROACHES[3:]
        for file in ("metrics.jsonl", "checkpoint.safetensors")
    ),
    *(f"models/{name}/examples/val-0000{i}.png" for name in ("mil-fcn", "beyond") for i in (0, 1)),
}
# Photos have no row beyond the paper, and no scenes to show.
PAPER_FILES = {name for name in FILES if "beyond" not in name and "examples" not in name}
STEPS = 3


def tiny_digits(out: Path, **more: Any) -> DigitsOptions:
    settings = {"scenes": 8, "pretrain_steps": 2, "max_steps": STEPS, "device": "cpu", "seed": 3}
    return DigitsOptions(out=out, **{**settings, **more})


@pytest.fixture(scope="module", autouse=True)
def few_singles() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(milseg.experiments.digits, "SINGLES", 32)
        yield


@pytest.fixture(scope="module")
def finished(few_singles: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with its ablations; nothing may change it."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    reproduce_digits(tiny_digits(out, ablations=True), progress=False)
    return out


def files_below(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def table(out: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((out / "table1.json").read_text(encoding="utf-8"))
    return data


def numbers(out: Path) -> list[dict[str, Any]]:
    """The rows without what depends on the clock."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in table(out)["rows"]]


def weights_of(model: FCN) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# digits: what is written


def test_everything_that_is_promised_is_written(finished: Path) -> None:
    assert files_below(finished) == FILES | {"ablations.json", "ablations.md"}
    for name in ("table1.png", "figure1.png", "curves.png"):
        with Image.open(finished / name) as image:
            image.load()
            assert min(image.size) > 200


def test_the_table_has_the_promised_form(finished: Path) -> None:
    data = table(finished)
    assert data["dataset"] == "digits, seed 3"
    assert data["command"].startswith("milseg reproduce digits --seed 3")
    assert data["train"] == {"name": "digits train", "photos": 8}
    assert data["val"] == {"name": "digits val", "photos": 2}
    assert [row["approach"] for row in data["rows"]] == APPROACHES
    for row in data["rows"]:
        assert 0 <= row["mean_iu"] <= 100
        assert list(row["per_class_iu"]) == ["background", *map(str, range(10))]
        known = [value for value in row["per_class_iu"].values() if value is not None]
        assert row["mean_iu"] == pytest.approx(np.mean(known))
        assert row["seconds"] >= 0
    assert [row["supervision"] for row in data["rows"]] == [
        "none",
        "image labels of the classifier",
        "image labels of the classifier",
        "image tags (generator)",
        "pixel masks",
        "image tags (generator)",
    ]
    assert [row.get("steps") for row in data["rows"]] == [None, None, 0, STEPS, STEPS, STEPS]
    baseline, mil = data["rows"][2]["mean_iu"], data["rows"][3]["mean_iu"]
    assert data["gain"] == (pytest.approx(mil / baseline) if baseline else None)


def test_the_markdown_shows_the_papers_figures_beside_ours(finished: Path) -> None:
    text = (finished / "table1.md").read_text(encoding="utf-8")
    assert f"`{table(finished)['command']}`" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "Approach" not in line]
    assert len(rows) == 6
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1
    for row, line in zip(table(finished)["rows"], rows, strict=True):
        assert f"| {row['mean_iu']:.2f} |" in line
        approach = TABLE[row["approach"]]
        for figure in (approach.val, approach.test):
            assert figure is None or f"| {figure:.2f} |" in line
    assert "3.52" in rows[1]
    assert "25.05 | 25.66" in rows[3]


def test_the_configuration_says_what_was_run(finished: Path) -> None:
    record = yaml.safe_load((finished / "config.yaml").read_text(encoding="utf-8"))
    assert record["settings"] == {"seed": 3, "scenes": 8, "pretrain_steps": 2, "max_steps": STEPS}
    assert record["mil"]["rule"] == "max"
    assert record["oracle"]["rule"] == "oracle"
    # Same start, body, steps and scenes: only the rule and its own rates differ.
    differ = {key for key in record["mil"] if record["mil"][key] != record["oracle"][key]}
    assert differ <= {"rule", "learning_rate", "score_rate"}
    assert TrainConfig(**record["mil"]) == mil_config(tiny_digits(Path()))
    assert TrainConfig(**record["oracle"]) == oracle_config(tiny_digits(Path()))


# digits: what the rows are


def test_the_first_rows_are_all_background_and_a_score_layer_of_zeros_is_that_exactly(finished: Path) -> None:
    rows = {row["approach"]: row for row in table(finished)["rows"]}
    expected = evaluate_all_background(read_digits("val", 2, seed=3)).to_json()
    for name in APPROACHES[:2]:
        assert rows[name]["mean_iu"] == expected["mean_iu"]
        assert rows[name]["per_class_iu"] == expected["per_class_iu"]
        assert rows[name]["pixel_accuracy"] == expected["pixel_accuracy"]
    assert rows["baseline-no-classifier"]["mean_iu_labels"] == expected["mean_iu"]
    assert 0 <= rows["baseline-no-classifier"]["mean_iu_random_start"] <= 100


def test_the_row_beyond_the_paper_is_what_predict_would_write(finished: Path) -> None:
    model, spec = load_model(finished / "models" / "beyond")
    row = next(row for row in table(finished)["rows"] if row["approach"] == "beyond")
    assert spec.supervision == row["supervision"]
    assert spec.inference.refine.startswith("crf(")
    assert yaml.safe_load((finished / "config.yaml").read_text())["beyond"]["rule"] == "weighted-pooling"
    val = read_digits("val", 2, seed=3)
    assert row["mean_iu"] == evaluate_segmenter(Segmenter(model, spec), val, progress=False).mean_iu
    assert (finished / "models" / "beyond" / "examples").is_dir()


@pytest.mark.parametrize("name", APPROACHES[2:5])
def test_a_row_is_its_saved_models_score_in_both_readings(finished: Path, name: str) -> None:
    model, spec = load_model(finished / "models" / name)
    assert spec.classes == ("background", *map(str, range(10)))
    row = next(row for row in table(finished)["rows"] if row["approach"] == name)
    assert spec.supervision == row["supervision"]
    val = read_digits("val", 2, seed=3)
    scores = evaluate_model(model, val, readings=("scores", "labels"), progress=False)
    assert row["mean_iu"] == scores["scores"].mean_iu
    assert row["mean_iu_labels"] == scores["labels"].mean_iu


def test_the_baseline_is_step_zero_of_both_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = []

    def watched(model: FCN, bags: BagSet, config: TrainConfig, **given: Any) -> Any:
        begun.append((config.rule, weights_of(model)))
        return fit(model, bags, config, **given)

    monkeypatch.setattr(milseg.experiments.table1, "fit", watched)
    reproduce_digits(tiny_digits(tmp_path / "out", max_steps=1), progress=False)
    baseline = weights_of(load_model(tmp_path / "out" / "models" / "baseline")[0])
    assert [rule for rule, _ in begun] == ["max", "oracle", "weighted-pooling"]
    assert all(same(start, baseline) for _, start in begun)
    for name in ("mil-fcn", "oracle"):
        assert not same(weights_of(load_model(tmp_path / "out" / "models" / name)[0]), baseline)


def test_the_background_row_of_the_start_is_zero(finished: Path) -> None:
    layer = load_model(finished / "models" / "baseline")[0].score_layer
    assert layer.bias is not None
    assert not layer.weight[0].any()
    assert not layer.bias[0].any()
    assert layer.weight[1:].any()


def test_the_same_seed_gives_the_same_table(finished: Path, tmp_path: Path) -> None:
    reproduce_digits(tiny_digits(tmp_path / "again"), progress=False)
    assert numbers(tmp_path / "again") == numbers(finished)
    for name in APPROACHES[2:]:
        file = f"models/{name}/model.safetensors"
        assert (tmp_path / "again" / file).read_bytes() == (finished / file).read_bytes()


def test_pretraining_learns_digits_and_freezes_batch_norm() -> None:
    model = pretrain(tiny_digits(Path(), pretrain_steps=0), device=torch.device("cpu"), progress=False)
    assert model.frozen_batch_norm
    assert not model.training
    assert model.classes == 10
    trained = pretrain(tiny_digits(Path(), pretrain_steps=2), device=torch.device("cpu"), progress=False)
    assert not same(weights_of(trained), weights_of(model))


# digits: folders that exist, and going on


def test_a_folder_that_holds_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(
        UserError, match="already holds files; --resume goes on with that run, --overwrite starts anew"
    ):
        reproduce_digits(tiny_digits(tmp_path), progress=False)
    assert files_below(tmp_path) == {"mine.txt"}


def test_overwrite_starts_anew(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reproduce_digits(tiny_digits(out, max_steps=1, seed=4), progress=False)
    reproduce_digits(tiny_digits(out, overwrite=True), progress=False)
    assert numbers(out) == numbers(finished)
    assert files_below(out) == FILES


class Cut(KeyboardInterrupt):
    pass


def cut_in(rule: str, step: int | None) -> Callable[..., Any]:
    """`fit` that is interrupted after a step of the run with that rule, or before it where `step` is None.

    It keeps a checkpoint of every step, which changes no number.
    """

    def interrupted(model: FCN, bags: BagSet, config: TrainConfig, **given: Any) -> Any:
        def on_step(done: int, loss: float) -> None:
            if config.rule == rule and done == step:
                raise Cut

        if config.rule == rule and step is None:
            raise Cut
        return fit(model, bags, replace(config, checkpoint_every=1), **{**given, "on_step": on_step})

    return interrupted


@pytest.mark.parametrize(
    ("rule", "step", "done"),
    [("max", None, 3), ("max", 1, 3), ("oracle", None, 4), ("oracle", 0, 4), ("weighted-pooling", 1, 5)],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_table(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, step: int | None, done: int
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(milseg.experiments.table1, "fit", cut_in(rule, step))
    with pytest.raises(Cut):
        reproduce_digits(tiny_digits(out), progress=False)
    assert {f"rows/{name}.json" for name in APPROACHES[:done]} <= files_below(out)
    assert "table1.json" not in files_below(out)

    trained = []

    def watched(model: FCN, bags: BagSet, config: TrainConfig, **given: Any) -> Any:
        steps: list[int] = []
        trained.append((config.rule, steps))
        config = replace(config, checkpoint_every=1)
        return fit(model, bags, config, **given, on_step=lambda number, loss: steps.append(number))

    monkeypatch.setattr(milseg.experiments.table1, "fit", watched)
    reproduce_digits(tiny_digits(out, resume=True), progress=False)
    assert numbers(out) == numbers(finished)
    # Rows that were done are not trained again; the one that was cut goes on after its last checkpoint, and a step that
    # was cut before it was told of is done again.
    rules = ["max", "oracle", "weighted-pooling"]
    assert [name for name, _ in trained] == rules[rules.index(rule) :]
    assert trained[0][1] == list(range(step or 0, STEPS))
    for name in APPROACHES[2:]:
        file = f"models/{name}/model.safetensors"
        assert (out / file).read_bytes() == (finished / file).read_bytes()
    losses = [
        json.loads(line)["loss"] for line in (out / "runs/mil-fcn/metrics.jsonl").read_text().splitlines()
    ]
    whole = (finished / "runs/mil-fcn/metrics.jsonl").read_text().splitlines()
    assert losses == [json.loads(line)["loss"] for line in whole]


def test_resuming_with_other_settings_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    reproduce_digits(tiny_digits(out, max_steps=1), progress=False)
    before = (out / "table1.json").read_bytes()
    with pytest.raises(UserError, match=r"config\.yaml: the run in this folder had other settings"):
        reproduce_digits(tiny_digits(out, max_steps=2, resume=True), progress=False)
    assert (out / "table1.json").read_bytes() == before


def test_resuming_with_nothing_there_starts(tmp_path: Path) -> None:
    reproduce_digits(tiny_digits(tmp_path / "new", max_steps=1, resume=True), progress=False)
    assert files_below(tmp_path / "new") == FILES


# digits: ablations


def test_ablations_name_what_was_left_out(finished: Path) -> None:
    record = json.loads((finished / "ablations.json").read_text(encoding="utf-8"))
    assert [run["run"] for run in record["runs"]] == list(ABLATIONS)
    assert [run["rule"] for run in record["runs"]] == ["max", "max", "max", "average", "binary-max"]
    assert record["command"].endswith("--ablations")
    mil = next(row for row in table(finished)["rows"] if row["approach"] == "mil-fcn")
    assert record["runs"][0]["mean_iu"] == mil["mean_iu"]
    for run in record["runs"]:
        assert 0 <= run["mean_iu"] <= 100
        assert 0 <= run["background_share"] <= 100
    text = (finished / "ablations.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(ABLATIONS)
    assert len({line.count("|") for line in rows}) == 1
    assert "predicting all background" in text


# pieces


def test_gain() -> None:
    def rows(baseline: float | None, mil: float | None) -> list[dict[str, Any]]:
        return [{"approach": "baseline", "mean_iu": baseline}, {"approach": "mil-fcn", "mean_iu": mil}]

    assert gain(rows(13.11, 25.05)) == pytest.approx(1.91, abs=0.005)
    assert math.isnan(gain(rows(0.0, 5.0)))
    assert math.isnan(gain(rows(None, 5.0)))
    assert math.isnan(gain(rows(5.0, None)))
    assert gain(rows(5.0, 0.0)) == 0


def test_the_figure_shows_the_first_photo_of_each_class_in_turn() -> None:
    def val(*tags: tuple[int, ...]) -> BagSet:
        photo = np.zeros((1, 1, 3), dtype=np.uint8)
        bags = tuple(Bag(name=str(i), photo=photo, tags=t) for i, t in enumerate(tags))
        return BagSet(name="val", classes=("background", "a", "b", "c"), bags=bags, tags_from="masks")

    nothing, a, b, ab = (1, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 1, 1, 0)
    assert figure_photos(val(nothing, ab, a, b)) == [1, 3]
    assert figure_photos(val(b, a)) == [0, 1]
    assert figure_photos(val(b, a), count=1) == [1]
    assert figure_photos(val(nothing, nothing)) == [0, 1]


def test_every_recipe_is_for_a_backbone_at_a_stride_it_has() -> None:
    for name in BACKBONES:
        recipe = table1_settings(name)
        assert recipe.output_stride in BACKBONES[name].strides
        assert recipe.note
    assert set(TABLE1_SETTINGS) <= set(BACKBONES)
    paper = TABLE1_SETTINGS["vgg16"]
    assert paper.mil == TrainConfig()
    assert (paper.mil.learning_rate, paper.mil.momentum, paper.mil.weight_decay) == (1e-4, 0.9, 5e-4)
    assert (paper.output_stride, paper.score_scale) == (32, 1.0)


def test_the_command_repeats_what_was_chosen_and_hides_folders() -> None:
    options = VocOptions(
        root=Path("/somewhere/private"),
        tags=Path("/somewhere/private/tags.csv"),
        weights="/somewhere/private/net.safetensors",
        classes=("cat", "dog"),
        max_steps=5,
        out=Path("/somewhere"),
        overwrite=True,
    )
    assert command_line(options) == (
        "milseg reproduce voc --root VOCDIR --tags tags.csv --classes cat,dog --weights net.safetensors "
        "--max-steps 5"
    )


# VOC


def voc_options(tree: SmallVoc, weights: Path, out: Path, **more: Any) -> VocOptions:
    settings = {
        "classes": ("cat", "dog"),
        "backbone": "tiny",
        "max_steps": 2,
        "batch_size": 2,
        "device": "cpu",
    }
    return VocOptions(root=tree.root, weights=str(weights), out=out, **{**settings, **more})


def test_the_oracle_has_a_rate_of_its_own(small_voc: SmallVoc, tiny_weights: Path, tmp_path: Path) -> None:
    given = {"learning_rate": 0.003, "oracle_learning_rate": 0.02, "max_steps": 1}
    reproduce_voc(voc_options(small_voc, tiny_weights, tmp_path / "out", **given), progress=False)
    for name, rate in (("mil-fcn", 0.003), ("oracle", 0.02)):
        (row,) = (tmp_path / "out" / "runs" / name / "metrics.jsonl").read_text().splitlines()
        assert json.loads(row)["learning_rate"] == rate


def test_reproduce_voc_writes_the_same_files(
    small_voc: SmallVoc, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    rows = reproduce_voc(voc_options(small_voc, tiny_weights, out), progress=False)
    assert files_below(out) == PAPER_FILES
    data = table(out)
    assert data["rows"] == rows
    assert [row["approach"] for row in rows] == APPROACHES[:5]
    assert data["dataset"] == "PASCAL VOC (VOC2012 val), 2 classes, tiny"
    assert data["tags_from"] == "XML annotations"
    assert rows[3]["supervision"] == "image tags (XML annotations)"
    # Void is left out: 22 x 26 pixels of a class in 24 x 28 that are not background, of 41 x 50.
    share = 100 * (1 - 22 * 26 / (41 * 50 - (24 * 28 - 22 * 26)))
    assert rows[0]["pixel_accuracy"] == pytest.approx(share)
    assert rows[0]["mean_iu"] == rows[1]["mean_iu"] == pytest.approx(share / 3)
    # Which ImageNet rows were taken is told, once or more.
    assert "tabby" in capsys.readouterr().out
    spec = load_model(out / "models" / "mil-fcn")[1]
    assert (spec.classes, spec.backbone, spec.tags_from) == (
        ("background", "cat", "dog"),
        "tiny",
        "XML annotations",
    )


def test_reproduce_voc_with_squeezenet_and_a_tag_file(small_voc: SmallVoc, tmp_path: Path) -> None:
    save_file(make_classifier("squeezenet1_0", 1000).state_dict(), tmp_path / "net.safetensors")
    tags = tmp_path / "tags.csv"
    names = {"t0": "cat", "t1": "dog", "t2": "cat", "t3": "dog", "v0": "cat", "v1": "dog"}
    tags.write_text("image,tags\n" + "".join(f"{name}.jpg,{tag}\n" for name, tag in names.items()))
    options = voc_options(
        small_voc, tmp_path / "net.safetensors", tmp_path / "out", backbone="squeezenet1_0", tags=tags
    )
    rows = reproduce_voc(options, progress=False)
    assert rows[3]["supervision"] == "image tags (tag file)"
    record = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert record["mil"]["max_steps"] == record["oracle"]["max_steps"] == 2
    assert record["command"].startswith(
        "milseg reproduce voc --root VOCDIR --tags tags.csv --classes cat,dog"
    )


def test_scaled_rows_change_no_mask_of_the_baseline(
    small_voc: SmallVoc, tiny_weights: Path, tmp_path: Path
) -> None:
    rows = [
        reproduce_voc(
            voc_options(small_voc, tiny_weights, tmp_path / str(scale), max_steps=1, score_scale=scale),
            progress=False,
        )
        for scale in (1.0, 0.25)
    ]
    for one, other in zip(*[r[:3] for r in rows], strict=True):
        assert one["per_class_iu"] == other["per_class_iu"]
    layers = [load_model(tmp_path / s / "models" / "baseline")[0].score_layer.weight for s in ("1.0", "0.25")]
    assert torch.equal(layers[0] * 0.25, layers[1])


def test_only_the_oracle_learns_from_the_masks_of_the_training_set(
    small_voc: SmallVoc, tiny_weights: Path, tmp_path: Path
) -> None:
    """All masks are looked at before any counts, but other masks change no row except the oracle's."""
    reproduce_voc(voc_options(small_voc, tiny_weights, tmp_path / "one"), progress=False)
    for name in ("t0", "t1", "t2", "t3"):
        mask = np.array(Image.open(small_voc.mask(name)))
        small_voc.write_mask(name, np.roll(mask, (8, 10), axis=(0, 1)))
    reproduce_voc(voc_options(small_voc, tiny_weights, tmp_path / "other"), progress=False)
    for name in APPROACHES[2:5]:
        one, other = (weights_of(load_model(tmp_path / run / "models" / name)[0]) for run in ("one", "other"))
        assert same(one, other) == (name != "oracle"), name


def test_masks_of_which_none_can_be_read_end_the_run_before_any_row(
    small_voc: SmallVoc, tiny_weights: Path, tmp_path: Path
) -> None:
    for name in ("t0", "t1", "t2", "t3"):
        small_voc.mask(name).write_bytes(b"not a mask")
    with pytest.raises(UserError, match=r"t\d\.png: not an image"):
        reproduce_voc(voc_options(small_voc, tiny_weights, tmp_path / "out"), progress=False)
    assert files_below(tmp_path / "out") == set()


def test_a_class_that_is_not_learned_is_void(small_voc: SmallVoc, tiny_weights: Path, tmp_path: Path) -> None:
    options = voc_options(small_voc, tiny_weights, tmp_path / "out", classes=("cat",), max_steps=1)
    rows = reproduce_voc(options, progress=False)
    assert list(rows[0]["per_class_iu"]) == ["background", "cat"]
    cat, ground = 22 * 26, 41 * 50 - 24 * 28
    assert rows[0]["pixel_accuracy"] == pytest.approx(100 * 2 * ground / (2 * ground + cat))
    assert table(tmp_path / "out")["train"]["photos"] == 2
    assert VOID == 255
