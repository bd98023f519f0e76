from __future__ import annotations

import json
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import milseg.data.bags
import milseg.data.image
import milseg.training.plan
import milseg.training.run as training_run
from milseg.cli import main
from milseg.config import TrainConfig, TrainOptions, seconds_of
from milseg.data.bags import PRESENT, Bag, BagSet
from milseg.data.sources.open import open_source
from milseg.data.split import hold_out
from milseg.distributed.preemption import Stopped
from milseg.errors import UserError
from milseg.evaluation.tag_precision import TagScores
from milseg.inference.segmenter import load
from milseg.models.backbone_table import BACKBONES
from milseg.models.backbones import build_fcn
from milseg.models.fcn import evaluating
from milseg.training.callbacks import Callback
from milseg.training.recipes import find_recipe
from milseg.training.run import train_run

if TYPE_CHECKING:
    from conftest import SmallVoc

COLOURS = {"cat": (220, 30, 30), "dog": (30, 30, 220)}
FILES = {
    *("model.safetensors", "config.yaml", "labels.json", "README.md", "train.yaml", "selection.json"),
    *("metrics.jsonl", "curves.png", "checkpoint.safetensors"),
}


def paint(path: Path, number: int, tag: str) -> None:
    pixels = np.random.default_rng(number).integers(100, 150, (36 + number, 48, 3)).astype(np.uint8)
    pixels[6:28, 8:30] = COLOURS[tag]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eight photos, half in a folder of their own, and their tags."""
    rows = []
    for i in range(8):
        tag = ("cat", "dog")[i % 2]
        name = f"more/p{i}.png" if i > 3 else f"p{i}.png"
        paint(tmp_path / "photos" / name, i, tag)
        rows.append(f"{name},{tag}\n")
    (tmp_path / "tags.csv").write_text("image,tags\n" + "".join(rows))
    return tmp_path / "photos"


def options(source: Path, out: str = "run", **changes: Any) -> TrainOptions:
    settings = {
        "source": source,
        "tags": source.parent / "tags.csv",
        "out": source.parent / out,
        "backbone": "tiny",
        "weights": "none",
        "max_steps": 4,
        "batch_size": 2,
        "hold_out": 0.4,
        "recipe": "paper",
        "device": "cpu",
        **changes,
    }
    return TrainOptions(**settings)


def run(source: Path, out: str = "run", **changes: Any) -> Path:
    return train_run(options(source, out, **changes), progress=False)


def words(source: Path, *more: str) -> list[str]:
    return (
        f"train {source} --tags {source.parent / 'tags.csv'} --out {source.parent / 'run'} --backbone tiny "
        "--weights none --max-steps 4 --batch-size 2 --device cpu --recipe paper"
    ).split() + list(more)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`milseg.cli.main` whose marks on this process are taken back."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    return main


def rows_of(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "selection.json").read_text())


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# from end to end


def test_photos_and_tags_in_a_model_folder_out(
    source: Path, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = source.parent / "run"
    assert command(words(source, "--hold-out", "0.4")) == 0
    told = capsys.readouterr().out
    assert "photos: 8 photos (5 to learn from, 3 held out); tags: cat 4, dog 4" in told
    assert f"milseg predict PHOTOS --model {out}" in told
    assert {path.name for path in out.iterdir()} == {*FILES, "samples"}
    assert [path.name for path in sorted((out / "samples").iterdir())] == [
        f"step-00000{i}.png" for i in (1, 2, 3, 4)
    ]
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 4
    assert json.loads((out / "labels.json").read_text()) == {"classes": ["background", "cat", "dog"]}
    for picture in (out / "curves.png", *(out / "samples").iterdir()):
        assert min(Image.open(picture).size) > 100
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: milseg\n")
    for part in (
        "# cat, dog\n",
        "photos: 5 photos to learn from, 3 held out for model selection. Tags from: tag file.",
        "| cat | 4 |",
        "no pixel mask was used",
        "Trained with rule max, 4 steps of 2; learning rate 3e-05",
        "chosen by mean tag average precision",
        "cat         small random start",
        f"torch {torch.__version__}",
    ):
        assert part in card, part
    # A model folder travels: nothing in it tells where it was made.
    for name in ("README.md", "train.yaml", "config.yaml", "selection.json"):
        assert str(source.parent) not in (out / name).read_text()

    photo = np.array(Image.open(source / "p0.png"))
    shutil.rmtree(source)
    (source.parent / "tags.csv").unlink()
    found = load(out).segment(photo)
    assert found.mask.shape == photo.shape[:2]
    assert found.classes == ("background", "cat", "dog")


def test_a_folder_for_each_tag_does_too(tmp_path: Path) -> None:
    for i in range(4):
        paint(tmp_path / "pets" / ("cat", "dog")[i % 2] / f"{i}.png", i, ("cat", "dog")[i % 2])
    out = train_run(options(tmp_path / "pets", tags=None), progress=False)
    assert load(out).classes == ("background", "cat", "dog")


def test_training_learns(source: Path) -> None:
    out = run(source, max_steps=40, learning_rate=0.01, select_every=20, longest_side=24, score_rate=1.0)
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_masks_are_never_opened(small_voc: SmallVoc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VOC tree with masks, whose opening would be seen, however it came about."""
    masks = [small_voc.mask(f"t{i}") for i in range(4)]
    assert all(mask.is_file() for mask in masks)

    def refuse(path: Path, **_: Any) -> None:
        raise AssertionError(f"a mask was opened: {path}")

    for module in (milseg.data.image, milseg.data.bags):
        monkeypatch.setattr(module, "open_mask", refuse)
    opened: list[str] = []
    watching = True
    sys.addaudithook(
        lambda event, arguments: (
            opened.append(str(arguments[0])) if watching and event == "open" and arguments else None
        )
    )
    out = train_run(
        options(small_voc.home, tags=None, split="train", out=tmp_path / "run", hold_out=0.5), progress=False
    )
    watching = False
    assert any(name.endswith("t0.jpg") for name in opened), "the watch sees photos, so it would see masks"
    assert [name for name in opened if "SegmentationClass" in name] == []
    assert load(out).spec.supervision == "image tags (XML annotations)"
    # And with the masks gone the weights are the same.
    for mask in masks:
        mask.unlink()
    again = options(small_voc.home, tags=None, split="train", out=tmp_path / "blind", hold_out=0.5)
    train_run(again, progress=False)
    assert same_weights(out / "model.safetensors", tmp_path / "blind" / "model.safetensors")


def test_the_same_seed_gives_the_same_weights(source: Path) -> None:
    first, again = run(source, "a"), run(source, "b")
    assert same_weights(first / "model.safetensors", again / "model.safetensors")
    assert rows_of(first) == rows_of(again)
    assert not same_weights(run(source, "c", seed=1) / "model.safetensors", first / "model.safetensors")


# selection


def scores_of(value: float) -> TagScores:
    return TagScores(
        mean_average_precision=value,
        per_class={"cat": value, "dog": value},
        predicted_share={"background": 60.0, "cat": 20.0, "dog": 20.0},
        never_predicted=(),
    )


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ([50.0, 90.0, 70.0, 80.0], [1, 2]),
        ([50.0, 60.0, 70.0, 80.0], [1, 2, 3, 4]),
        ([66.66666666, 66.66666667, 10.0, 66.66666665], [1, 2, 4]),  # of equals the later
        ([0.0, 0.0, float("nan"), 0.0], [1, 2, 3, 4]),
    ],
)
def test_the_best_by_tag_average_precision_is_kept(
    source: Path, monkeypatch: pytest.MonkeyPatch, values: list[float], kept: list[int]
) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def score(model: torch.nn.Module, bags: BagSet, **_: Any) -> TagScores:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return scores_of(values[len(seen) - 1])

    monkeypatch.setattr(training_run, "score_tags", score)
    out = run(source)
    assert [row["step"] for row in rows_of(out) if row["kept"]] == kept
    weights = load_file(out / "model.safetensors")
    best = seen[kept[-1] - 1]
    assert all(torch.equal(weights[name], best[name]) for name in best)
    assert f"those after step {kept[-1]}" in (out / "README.md").read_text()


def test_without_held_out_photos_the_last_is_kept(source: Path) -> None:
    out = run(source, hold_out=0.0, select_every=3)
    assert [(row["step"], row["tag_average_precision"], row["kept"]) for row in rows_of(out)] == [
        (3, None, True),
        (4, None, True),
    ]
    assert "after step 4, the last: nothing was held out" in (out / "README.md").read_text()


def test_a_collapse_is_told_while_it_trains(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fallen = TagScores(
        mean_average_precision=50.0,
        per_class={"cat": 50.0},
        predicted_share={"background": 100.0, "cat": 0.0, "dog": 0.0},
        never_predicted=("cat", "dog"),
    )
    monkeypatch.setattr(training_run, "score_tags", lambda *_, **__: fallen)
    out = run(source, select_every=4)
    assert "milseg: after 4 steps: all background: 100.0 % of the places. Try" in capsys.readouterr().err
    assert rows_of(out)[0]["warning"].startswith("all background")


def test_looking_changes_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Selections leave dropout and batch norm as they were, also dropout that the settings switched off."""
    modes = []
    score = training_run.score_tags

    def spying(model: torch.nn.Module, *rest: Any, **more: Any) -> TagScores:
        modes.append([module.training for module in model.modules()])
        return score(model, *rest, **more)

    monkeypatch.setattr(training_run, "score_tags", spying)
    often = run(source, "often", select_every=1)
    rarely = run(source, "rarely", select_every=4)
    assert not any(modes[0])
    assert same_weights(often / "checkpoint.safetensors", rarely / "checkpoint.safetensors")

    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Dropout()).train()
    model[1].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]


def test_hold_out_keeps_a_bag_of_every_tag_to_learn_from() -> None:
    tags = [(1, 1, 0, 0)] * 10 + [(1, 0, 1, 0)] * 10 + [(1, 0, 0, 1)]
    bags = BagSet(
        name="b",
        classes=("background", "cat", "dog", "rare"),
        bags=tuple(
            Bag(name=f"{i:02}", photo=np.zeros((1, 1, 3), np.uint8), tags=t) for i, t in enumerate(tags)
        ),
        tags_from="tag file",
    )
    chosen = set()
    for seed in range(30):
        train, held = hold_out(bags, 0.5, seed)
        assert (len(train), len(held)) == (11, 10)
        names = [bag.name for bag in train.bags] + [bag.name for bag in held.bags]
        assert sorted(names) == [bag.name for bag in bags.bags]
        assert train.tag_counts()["rare"] == 1
        chosen.add(tuple(bag.name for bag in held.bags))
    assert len(chosen) > 20
    assert hold_out(bags, 0.1, 0)[1].bags == hold_out(bags, 0.1, 0)[1].bags
    assert len(hold_out(bags, 0.0, 0)[1]) == 0
    assert len(hold_out(bags.take([0]), 0.5, 0)[1]) == 0
    assert len(hold_out(bags.take([0, 10]), 0.5, 0)[0]) == 2
    assert PRESENT in hold_out(bags, 0.001, 0)[1].bags[0].tags
    for share in (-0.1, 0.6, float("nan")):
        with pytest.raises(UserError, match=r"--hold-out .*: expected a share from 0 to 0\.5"):
            hold_out(bags, share, 0)


# stop and go on


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the next run stop, as by Ctrl-C, at a step of the loop, before or after what is done with it."""
    fit = training_run.fit

    def arrange(step: int, *, after_look: bool) -> None:
        def stopping(*arguments: Any, validate: Any, callbacks: Any, **more: Any) -> Any:
            def look(done: int) -> Any:
                if done == step + 1 and not after_look:
                    raise KeyboardInterrupt
                return validate(done) or ({} if done == step + 1 else None)

            class Last(Callback):
                def on_validation(self, done: int, scores: Any) -> None:
                    if done == step + 1:
                        raise KeyboardInterrupt

            class Given(Callback):
                def on_validation(self, done: int, scores: Any) -> None:
                    for callback in callbacks if scores else ():
                        callback.on_validation(done, scores)

            return fit(*arguments, validate=look, callbacks=[Given(), Last()], **more)

        monkeypatch.setattr(training_run, "fit", stopping)

    arrange.undo = lambda: monkeypatch.setattr(training_run, "fit", fit)
    return arrange


@pytest.mark.parametrize("after_look", [False, True])
@pytest.mark.parametrize("step", [0, 2, 3, 5])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    source: Path, stop_at: Any, step: int, after_look: bool
) -> None:
    """Selections after steps 2, 4, 6 and checkpoints after 3 and 6: stops fall between them in every order."""
    settings = {"max_steps": 6, "select_every": 2, "checkpoint_every": 3, "learning_rate": 0.01}
    whole = run(source, "whole", **settings)
    stop_at(step, after_look=after_look)
    with pytest.raises(KeyboardInterrupt):
        run(source, "cut", **settings)
    stop_at.undo()
    cut = run(source, "cut", **settings, resume=True)
    assert same_weights(whole / "model.safetensors", cut / "model.safetensors")
    assert same_weights(whole / "checkpoint.safetensors", cut / "checkpoint.safetensors")
    assert rows_of(whole) == rows_of(cut)
    losses = [
        [(row["step"], row["loss"]) for row in map(json.loads, (out / "metrics.jsonl").open())]
        for out in (whole, cut)
    ]
    assert losses[0] == losses[1]


def test_resuming_a_run_that_is_done_changes_no_weights(source: Path) -> None:
    out = run(source)
    before = (out / "model.safetensors").read_bytes(), rows_of(out)
    (out / "README.md").unlink()
    run(source, resume=True)
    assert ((out / "model.safetensors").read_bytes(), rows_of(out)) == before
    assert "chosen by mean tag average precision" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_steps": 5}, "max_steps was 4, is 5"),
        ({"learning_rate": 0.1}, "learning_rate was 3e-05, is 0.1"),
        (
            {"classes": ("dog", "cat")},
            "classes was ['background', 'cat', 'dog'], is ['background', 'dog', 'cat']",
        ),
        ({"hold_out": 0.2}, "held_out was 3, is 2"),
        ({"select_every": 3}, "every was 1, is 3"),
        ({"score_scale": 1.0}, "score_scale was 0.3, is 1.0"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"output_stride": 2}, "output_stride was 4, is 2"),
        ({"rounds": 1}, "rounds was 0, is 1"),
        ({"refine": "crf"}, "refine of inference was 'none', is 'crf'"),
        ({"random_walk": 2}, "walk of inference was 0, is 2"),
    ],
)
def test_resuming_with_other_settings_is_refused(source: Path, change: dict[str, Any], told: str) -> None:
    out = run(source)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"train\.yaml: the run to resume had other settings") as caught:
        run(source, resume=True, **change)
    assert told in str(caught.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_resuming_with_other_photos_or_tags_is_refused(source: Path) -> None:
    run(source)
    table = source.parent / "tags.csv"
    table.write_text(table.read_text().replace("p0.png,cat", "p0.png,dog"))
    with pytest.raises(UserError, match="other photos and tags"):
        run(source, resume=True)


def test_a_run_goes_on_from_another_place(source: Path, tmp_path: Path) -> None:
    out = run(source)
    (tmp_path / "elsewhere").mkdir()
    for path in (source, out, source.parent / "tags.csv"):
        path.rename(tmp_path / "elsewhere" / path.name)
    assert run(tmp_path / "elsewhere" / "photos", resume=True) == tmp_path / "elsewhere" / "run"


@pytest.mark.parametrize("text", ["", "[1, 2]", "plan: 3", "plan: {config: {max_steps: 4}}", "{", "a: \x00"])
def test_a_damaged_record_is_no_run_to_resume(source: Path, text: str) -> None:
    (source.parent / "run").mkdir()
    (source.parent / "run" / "train.yaml").write_text(text)
    with pytest.raises(UserError, match=r"(?s)train\.yaml: cannot be read .*--overwrite"):
        run(source, resume=True)


def test_a_folder_that_holds_files_is_refused(source: Path) -> None:
    out = source.parent / "run"
    out.mkdir()
    (out / "weights.safetensors").write_text("mine")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"run: already holds files; --resume .* --overwrite"):
        run(source)
    with pytest.raises(UserError, match=r"holds files, but no run to resume"):
        run(source, resume=True)
    run(source, overwrite=True)
    # Starting anew takes away an earlier run's files and nobody else's.
    assert (out / "weights.safetensors").read_text() == (out / "notes.txt").read_text() == "mine"
    (out / "samples" / "step-000099.png").write_text("old")
    run(source, overwrite=True, select_every=4)
    assert [path.name for path in (out / "samples").iterdir()] == ["step-000004.png"]
    assert len(rows_of(out)) == 1
    (source.parent / "file").write_text("")
    with pytest.raises(UserError, match="a file, where a folder"):
        run(source, "file")


def test_resume_with_nothing_there_starts(source: Path) -> None:
    assert (run(source, resume=True) / "model.safetensors").is_file()


# settings


def test_a_time_budget_sets_the_steps(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = []

    class Timed:
        seconds_per_step = 0.5
        trial_seconds = 0.0
        busy = None

    def estimate(bags: Any, **_: Any) -> Timed:
        sets.append(len(bags.classes))
        return Timed()

    monkeypatch.setattr(milseg.training.plan, "estimate_training", estimate)
    changes = {"time_budget": "8s", "max_steps": None, "select_every": 20}
    out = run(source, **changes)
    assert (
        yaml.safe_load((out / "train.yaml").read_text())["plan"]["recipe"]["stages"][0]["max_steps"] == 13
    )  # 0.85 * 8 / 0.5
    assert sets == [3]
    # A run goes on with the steps it began with, whatever the machine does today.
    Timed.seconds_per_step = 100.0
    run(source, resume=True, **changes)
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 13
    # Too little time is no mistake: one step, and what to expect of it.
    one = run(source, "one", **changes)
    assert len((one / "metrics.jsonl").read_text().splitlines()) == 1
    Timed.seconds_per_step = 0.01
    # The lower of the two.
    both = run(source, "both", **{**changes, "max_steps": 12})
    assert len((both / "metrics.jsonl").read_text().splitlines()) == 12


def test_a_budget_of_next_to_nothing_trains_a_step_and_says_what_to_expect(
    source: Path, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(words(source, "--time-budget", "0.0001s")) == 0
    told = capsys.readouterr().err
    assert "milseg: --time-budget 0.0001s: recipe paper, 1 step of" in told
    assert "expect masks little better than those of the start" in told
    assert (source.parent / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("45", 2700), (" 5m ", 300)],
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "5d", "-5m", "1h30", "5 m", "1e3s", "5mm", "h5"])
def test_what_is_no_duration(source: Path, text: str) -> None:
    with pytest.raises(UserError, match="expected such as 90s, 30m or 1h30m"):
        run(source, time_budget=text)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"max_steps": 0}, "--max-steps 0: expected 1 or more"),
        ({"select_every": 0}, "--select-every 0: expected 1 or more"),
        ({"select_every": -1}, "--select-every -1"),
        ({"hold_out": 0.7}, "--hold-out 0.7"),
        ({"rule": "oracle"}, "learns from masks; milseg train learns from tags"),
        ({"refine": "crf(iteration=3)"}, "unknown option of refiner crf 'iteration'"),
        ({"refine": "crf(iterations=1000000)"}, "iterations is 1000000; expected 0 to 100"),
        ({"rule": "mxa"}, "unknown rule 'mxa'; did you mean 'max'"),
        ({"backbone": "tinny"}, "unknown backbone 'tinny'; did you mean 'tiny'"),
        ({"output_stride": 7}, "7"),
    ],
)
def test_settings_that_cannot_be(source: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as caught:
        run(source, **change)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", ["fast", "best"])
def test_networks_without_batch_norm_learn_as_from_standardised_features(name: str) -> None:
    for backbone in BACKBONES:
        ended_by_norm = any(
            isinstance(module, nn.BatchNorm2d | nn.LayerNorm) for module in build_fcn(backbone, 3).modules()
        )
        stages = find_recipe(name, backbone).stages
        assert {stage.standardize_features for stage in stages} == {not ended_by_norm}, backbone


def test_the_settings_of_other_networks_are_their_recipes(source: Path) -> None:
    bags = open_source(source, tags=source.parent / "tags.csv")

    def plan(**changes: Any) -> milseg.training.plan.Plan:
        given = options(source, max_steps=None, batch_size=None, **changes)
        return milseg.training.plan.make_plan(given, bags, 1, torch.device("cpu"))

    auto = plan(backbone="auto")
    assert (auto.spec.backbone, auto.spec.output_stride, auto.recipe.score_scale) == ("mobilenet_v2", 16, 0.3)
    config = auto.recipe.stages[0]
    assert (config.max_steps, auto.every, config.longest_side) == (150, 25, 320)
    paper = plan(backbone="vgg16")
    assert paper.recipe.stages == (TrainConfig(longest_side=320),)
    changed = plan(backbone="vgg16", momentum=0.5, longest_side=99, augment="flip", seed=7)
    assert changed.recipe.stages == (TrainConfig(momentum=0.5, longest_side=99, augment="flip", seed=7),)
    assert plan(backbone="resnet18").recipe.stages[0].learning_rate == config.learning_rate


OWN_RULE = """
calls = []

def rule(scores, tags, valid, **_):
    calls.append(scores.shape)
    return (scores.flatten(1) ** 2).mean(1)
"""


def test_ones_own_rule(source: Path, in_tmp: Path, command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (in_tmp / "my_training_rule.py").write_text(OWN_RULE)
    assert command(words(source, "--rule", "my_training_rule:rule")) == 0
    assert len(sys.modules["my_training_rule"].calls) == 4
    assert "rule my_training_rule:rule" in (source.parent / "run" / "README.md").read_text()
    assert command(words(source, "--overwrite", "--rule", "my_training_rule:role")) == 2
    assert "has no function 'role'" in capsys.readouterr().err


# sources that teach nothing, or not all


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("p0.png,\np1.png,\n", "no photo"),
        ("p0.png,cat\n", "at least 2 are needed"),
        ("p0.png,cat\np1.png,cat\np2.png,cat\n", "every photo has the same tags (cat)"),
    ],
)
def test_sources_that_teach_nothing_end_with_status_2(
    source: Path, command: Any, capsys: pytest.CaptureFixture[str], table: str, told: str
) -> None:
    (source.parent / "tags.csv").write_text("image,tags\n" + table)
    assert command(words(source)) == 2
    assert told in capsys.readouterr().err
    assert not (source.parent / "run" / "train.yaml").exists()


def test_a_truncated_photo_is_named_and_left_out(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = source / "p2.png"
    data = cut.read_bytes()[:-400]
    cut.write_bytes(data)
    out = run(source)
    told = capsys.readouterr()
    assert "milseg: left out: p2: damaged or cut short" in told.err
    assert "photos: 7 photos" in told.out
    assert "- 1 photos that cannot be read left out, such as p2\n" in (out / "README.md").read_text()
    assert cut.read_bytes() == data
    (source / "p3.png").write_bytes(b"no photo")
    with pytest.raises(UserError, match="2 of 8 photos cannot be read, such as p2: damaged"):
        run(source, "other")


def test_best_learns_from_its_own_masks_and_goes_on_after_a_stop(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run stopped in its round ends with the weights of one that was not."""
    # So short a training shows hardly a tag: the rounds have to be asked for.
    changes: dict[str, Any] = {
        "recipe": "best",
        "max_steps": 8,
        "checkpoint_every": 1,
        "select_every": 1,
        "rounds": 2,
    }
    whole = run(source, "whole", **changes)
    plan = yaml.safe_load((whole / "train.yaml").read_text())["plan"]["recipe"]
    assert [stage["max_steps"] for stage in plan["stages"]] == [5, 2, 1]  # 800, 500 and 300 of 1600, of 8
    assert [stage["mask_weight"] for stage in plan["stages"]] == [0.0, 1.0, 1.0]
    assert {stage["frozen_stride"] for stage in plan["stages"]} == {0}  # no weights: nothing to keep
    for number in (1, 2):
        masks = sorted((whole / "pseudo-labels" / f"round-{number}").rglob("*.png"))
        assert len(masks) == 5  # those to learn from; none is held out
    rows = json.loads((whole / "selection.json").read_text())
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [row["stage"] for row in rows] == [0, 0, 0, 0, 0, 1, 1, 2]
    assert len((whole / "rounds" / "1" / "metrics.jsonl").read_text().splitlines()) == 2
    assert "5 steps of 2, then 2 and 1 steps on pseudo-labels" in (whole / "README.md").read_text()
    spec = load(whole).spec
    assert spec.inference.flip
    assert spec.inference.refine.startswith("crf(")
    assert spec.inference.random_walk == plan["pseudo_label_inference"]["random_walk"] == 2

    validate, seen = training_run.ModelSelector.validate, []

    def stop(self: Any, stage: int, *args: Any) -> Any:
        seen.append(stage)
        if stage == 1:
            raise KeyboardInterrupt
        return validate(self, stage, *args)

    monkeypatch.setattr(training_run.ModelSelector, "validate", stop)
    with pytest.raises(KeyboardInterrupt):
        run(source, "halves", **changes)
    assert seen == [0, 0, 0, 0, 0, 1]
    monkeypatch.setattr(training_run.ModelSelector, "validate", validate)
    halves = run(source, "halves", resume=True, **changes)
    for name in ("checkpoint.safetensors", "rounds/1/checkpoint.safetensors", "model.safetensors"):
        left, right = load_file(whole / name), load_file(halves / name)
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name
    # Starting anew leaves nothing of the earlier run's masks to be taken for its own.
    run(source, "halves", overwrite=True, **{**changes, "recipe": "fast", "max_steps": 1, "rounds": None})
    assert not list((halves / "pseudo-labels").rglob("*.png"))
    assert not (halves / "rounds" / "1" / "checkpoint.safetensors").exists()


def test_own_masks_without_the_tags_are_not_learned_from(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {"recipe": "best", "max_steps": 8, "select_every": 1}

    def mask(segmenter: Any, photo: Any, tags: Any, *, min_confidence: float) -> Any:
        """Photos with a dog show it; photos with a cat show background."""
        return np.full(photo.shape[:2], 2 if tags[2] == PRESENT else 0, dtype=np.uint8)

    monkeypatch.setattr("milseg.training.pseudo_labels.pseudo_label", mask)
    for more in ({}, {"resume": True}):
        out = run(source, **changes, **more)
        told = capsys.readouterr().err
        assert len(list((out / "pseudo-labels" / "round-1").rglob("*.png"))) == 5
        found = "milseg: round 1 and later ones are left out: of the tags of 5 photos the pseudo-labels show "
        assert found in told
        assert not (out / "rounds").exists()
        assert not (out / "pseudo-labels" / "round-2").exists()
        assert [row["step"] for row in json.loads((out / "selection.json").read_text())] == [1, 2, 3, 4, 5]
        card = (out / "README.md").read_text()
        assert "Trained with rule weighted-pooling, 5 steps of 2; learning rate" in card
        assert "\n- round 1 and later ones are left out" in card
        load(out)
    out = run(source, "asked", **changes, rounds=1)
    assert (out / "rounds" / "1" / "metrics.jsonl").exists()
    assert "left out" not in capsys.readouterr().err + (out / "README.md").read_text()


@pytest.mark.parametrize("asked", [None, "crf"])
def test_a_refiner_that_takes_the_tags_away_is_left_out_unless_it_was_asked_for(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: str | None
) -> None:
    monkeypatch.setattr(
        training_run,
        "drop_harmful_refinement",
        lambda model, spec, found, bags: (replace(found, refine="none"), ["so it is"]),
    )
    out = run(source, recipe="fast", refine=asked)
    spec = load(out).spec
    assert spec.inference.random_walk == 2
    assert (spec.inference.refine == "none") == (asked is None)
    assert ("milseg: so it is" in capsys.readouterr().err) == (asked is None)
    assert ("\n\n- so it is\n" in (out / "README.md").read_text()) == (asked is None)


def test_a_later_stage_takes_over_unless_it_collapsed() -> None:
    def row(stage: int, value: float, warning: str | None = None, kept: bool = False) -> dict[str, Any]:
        return {"stage": stage, "tag_average_precision": value, "warning": warning, "kept": kept}

    better = training_run._better
    first = [row(0, 90.0, kept=True)]
    assert not better(row(0, 80.0), first)
    assert better(row(1, 80.0), first)
    assert not better(row(1, 95.0, "all background"), first)
    assert better(row(1, 95.0, "all background"), [row(0, 90.0, "all background", kept=True)])
    both = [*first, row(1, 80.0, kept=True)]
    assert better(row(1, 81.0), both)
    assert not better(row(1, 79.0), both)


def test_too_little_time_for_best_takes_fast(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Timed:
        seconds_per_step = 1.0
        trial_seconds = 0.0
        busy = None

    monkeypatch.setattr(milseg.training.plan, "estimate_training", lambda *_, **__: Timed())
    bags = open_source(source, tags=source.parent / "tags.csv")

    def plan(budget: str, **changes: Any) -> milseg.training.plan.Plan:
        settings = {"recipe": None, "max_steps": None, "batch_size": None, "time_budget": budget, **changes}
        given = options(source, **settings)
        return milseg.training.plan.make_plan(given, bags, 1, torch.device("cpu"))

    short, long, longer = plan("400s"), plan("1000s"), plan("9h")
    assert (short.recipe_name, [s.max_steps for s in short.recipe.stages]) == ("fast", [250])
    # 0.85 of 1000 s, less the masks of 8 photos in two rounds: each takes three times its sixteenth of a step.
    assert (long.recipe_name, long.recipe.steps) == ("best", 847)
    assert [s.max_steps for s in long.recipe.stages] == [425, 264, 158]
    assert longer.recipe.steps == 1600  # more is not known to help
    assert plan("400s", recipe="best").recipe_name == "best"


def test_without_a_background_the_papers_rule_is_the_default(source: Path) -> None:
    out = run(source, recipe=None, background="no", max_steps=1, hold_out=0.0)
    assert yaml.safe_load((out / "train.yaml").read_text())["plan"]["recipe_name"] == "paper"
    with pytest.raises(UserError, match="rule weighted-pooling: needs a background"):
        run(source, "other", recipe="fast", background="no")


@pytest.mark.parametrize(
    ("change", "told"),
    [({"recipe": "bset"}, "did you mean 'best'"), ({"rounds": 21}, "--rounds 21: expected 0 to 20")],
)
def test_recipes_and_rounds_that_cannot_be(source: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        run(source, **change)


# other sums, and signals


def test_precision_and_pieces_reach_the_loop_and_the_record(source: Path) -> None:
    exact = run(source, "exact", max_steps=1)
    half = run(source, "half", max_steps=1, precision="bfloat16", accumulate=2)
    losses = [json.loads((out / "metrics.jsonl").read_text())["loss"] for out in (exact, half)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    stage = yaml.safe_load((half / "train.yaml").read_text())["plan"]["recipe"]["stages"][0]
    assert (stage["precision"], stage["accumulate"], stage["compile"]) == ("bfloat16", 2, False)
    # What changes rounding alone may be another one.
    run(source, "half", max_steps=1, precision="bfloat16", resume=True)
    with pytest.raises(UserError, match="precision was 'bfloat16', is 'float32'"):
        run(source, "half", max_steps=1, resume=True)
    with pytest.raises(UserError, match="did you mean 'bfloat16'"):
        run(source, "other", precision="bfloat")


def test_a_run_from_before_there_was_a_precision_goes_on(source: Path) -> None:
    out = run(source)
    record = yaml.safe_load((out / "train.yaml").read_text())
    for name in ("precision", "accumulate", "compile"):
        del record["plan"]["recipe"]["stages"][0][name]
    (out / "train.yaml").write_text(yaml.safe_dump(record))
    assert run(source, resume=True) == out
    with pytest.raises(UserError, match="precision was 'float32', is 'float16'"):
        run(source, resume=True, precision="float16")


def test_a_signal_in_a_run_stops_it_and_resume_goes_on(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(source, "whole", augment="flip")
    validate = training_run.ModelSelector.validate

    def ask(self: Any, stage: int, before: int, config: TrainConfig, done: int) -> Any:
        if done == 2:
            signal.raise_signal(signal.SIGTERM)
        return validate(self, stage, before, config, done)

    monkeypatch.setattr(training_run.ModelSelector, "validate", ask)
    with pytest.raises(Stopped, match="after 2 of 4 steps"):
        run(source, "halves", augment="flip")
    assert [row["step"] for row in rows_of(source.parent / "halves")] == [1, 2]
    monkeypatch.setattr(training_run.ModelSelector, "validate", validate)
    halves = run(source, "halves", augment="flip", resume=True)
    assert same_weights(whole / "checkpoint.safetensors", halves / "checkpoint.safetensors")
    assert rows_of(whole) == rows_of(halves)


def test_a_stop_has_a_status_of_its_own(
    source: Path, command: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*_: Any, **__: Any) -> None:
        raise Stopped("stopped by a signal after 1 of 4 steps")

    monkeypatch.setattr(training_run, "fit", fit)
    assert command(words(source)) == 75
    assert capsys.readouterr().err.endswith("\nmilseg: stopped by a signal after 1 of 4 steps\n")
