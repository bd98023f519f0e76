from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from milseg.config import CompareOptions, EvaluateOptions
from milseg.data.bags import BagSet, load_mask
from milseg.data.masks import write_mask
from milseg.data.sources.evaluation_set import evaluation_bags
from milseg.errors import UserError
from milseg.evaluation.confusion import Evaluation
from milseg.evaluation.evaluate import evaluate_segmenter
from milseg.experiments.cam import THRESHOLDS, activation_maps
from milseg.experiments.compare import compare
from milseg.experiments.compare_table import markdown
from milseg.inference.segmenter import load
from milseg.models.backbones import build_fcn
from milseg.models.fcn import FCN

if TYPE_CHECKING:
    from conftest import SmallVoc

COLOURS = {"cat": (220, 30, 30), "dog": (30, 30, 220)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Twelve photos in two splits, a coloured square each, with tags and true masks."""
    (tmp_path / "photos").mkdir()
    rows = ["image,tags,split\n"]
    for i in range(12):
        tag = ("cat", "dog")[i % 2]
        pixels = np.random.default_rng(i).integers(100, 150, (32, 48, 3)).astype(np.uint8)
        truth = np.zeros((32, 48), dtype=np.uint8)
        pixels[6:26, 8:30], truth[6:26, 8:30] = COLOURS[tag], 1 + i % 2
        Image.fromarray(pixels).save(tmp_path / "photos" / f"p{i}.png")
        (tmp_path / "truth").mkdir(exist_ok=True)
        write_mask(tmp_path / "truth" / f"p{i}.png", truth)
        rows.append(f"p{i}.png,{tag},{'val' if i >= 8 else 'train'}\n")
    (tmp_path / "photos" / "tags.csv").write_text("".join(rows))
    (tmp_path / "truth" / "labels.json").write_text('{"classes": ["background", "cat", "dog"]}')
    return tmp_path / "photos"


def options(source: Path, **changes: Any) -> CompareOptions:
    settings: dict[str, Any] = {
        "source": source,
        "truth": source.parent / "truth",
        "split": "train",
        "val_split": "val",
        "rules": ("max", "top-k(k=2)"),
        "max_steps": 2,
        "batch_size": 2,
        "backbone": "tiny",
        "weights": "none",
        "out": source.parent / "out",
        "device": "cpu",
        **changes,
    }
    return CompareOptions(**settings)


def test_rules_seeds_and_rounds_each_have_a_row(source: Path) -> None:
    rows = compare(options(source, seeds=(0, 1), rounds=1), progress=False)
    assert [(row["rule"], row["seed"], row["round"]) for row in rows] == [
        *(("max", 0, 0), ("max", 0, 1), ("max", 1, 0), ("max", 1, 1)),
        *(("top-k(k=2)", 0, 0), ("top-k(k=2)", 0, 1), ("top-k(k=2)", 1, 0), ("top-k(k=2)", 1, 1)),
    ]
    for row in rows:
        assert row["photos"] == 4
        assert row["supervision"] == "image tags (tag file)"
        assert all(0 <= value <= 100 for value in row["mean_iu"].values())
    out = source.parent / "out"
    record = json.loads((out / "compare.json").read_text())
    assert record["rows"] == rows
    # Each row's network can be used: its masks are those that the row scored.
    for row, folder in ((rows[0], "max-0"), (rows[1], "max-0/round-1")):
        model = load(out / "runs" / folder / "model", device="cpu")
        assert model.spec.supervision == row["supervision"]
        given = EvaluateOptions(source=source, truth=source.parent / "truth", split="val")
        val = evaluation_bags(given, model.classes)
        found = evaluate_segmenter(model, val, progress=False).to_json()["mean_iu"]
        assert found == pytest.approx(row["mean_iu"]["refined"])
    text = (out / "compare.md").read_text()
    assert "| max, round 1 | " in text
    assert "| top-k(k=2), seed 1 | 0.001 | " in text
    values = [row["mean_iu"]["plain"] for row in rows if row["rule"] == "max" and row["round"] == 0]
    assert f"| max | {np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f}) |" in text
    assert (out / "compare.png").stat().st_size > 1000


def test_resume_trains_only_what_is_missing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compare(options(source, rules=("max",)), progress=False)
    with pytest.raises(UserError, match="already holds files"):
        compare(options(source), progress=False)
    calls = []
    import milseg.experiments.compare as module

    real = module.fit
    monkeypatch.setattr(module, "fit", lambda *a, **k: calls.append(a[2].rule) or real(*a, **k))
    both = compare(options(source, resume=True), progress=False)
    assert calls == ["top-k(k=2)"]
    assert both[0] == first[0]
    with pytest.raises(UserError, match=r"made with other settings \(batch_size\)"):
        compare(options(source, resume=True, batch_size=3), progress=False)


def test_the_oracle_and_class_activation_maps_say_what_masks_they_used(source: Path) -> None:
    rows = compare(options(source, rules=("oracle", "cam"), rounds=1), progress=False)
    assert [(row["rule"], row["round"]) for row in rows] == [("oracle", 0), ("cam", 0)]
    assert rows[0]["supervision"] == "pixel masks"
    assert rows[1]["supervision"] == "image tags (tag file); threshold tuned on the masks that score it"
    assert rows[1]["threshold"] in THRESHOLDS
    assert rows[1]["mean_iu"]["refined"] is None


def test_the_learning_rate_is_chosen_by_tags(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import milseg.experiments.compare as module

    precision = iter([30.0, 70.0])
    real = module.score_tags
    monkeypatch.setattr(
        module, "score_tags", lambda *a, **k: replace(real(*a, **k), mean_average_precision=next(precision))
    )
    (row,) = compare(options(source, rules=("max",), learning_rates=(1e-3, 1e-2)), progress=False)
    assert (row["learning_rate"], row["tag_average_precision"]) == (1e-2, 70.0)
    assert "tried for every rule: 0.001, 0.01" in (source.parent / "out" / "compare.md").read_text()


def test_the_oracle_is_chosen_by_held_out_masks_and_has_the_steps_of_the_rounds(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import milseg.experiments.compare as module

    values, steps = iter([20.0, 60.0, 40.0]), []
    real, train = module.evaluate_model, module.fit

    def scored(model: FCN, bags: BagSet, **given: Any) -> dict[str, Any]:
        assert all(bag.mask is not None for bag in bags.bags)
        return {"scores": replace(real(model, bags, **given)["scores"], mean_iu=next(values))}

    monkeypatch.setattr(module, "evaluate_model", scored)
    monkeypatch.setattr(
        module, "fit", lambda *a, **k: steps.append((a[2].max_steps, a[2].augment)) or train(*a, **k)
    )
    given = options(
        source, rules=("oracle",), learning_rates=(1e-3, 1e-2, 1e-1), rounds=1, max_steps=8, batch_size=2
    )
    (row,) = compare(given, progress=False)
    assert row["learning_rate"] == 1e-2
    assert steps == [(13, "flip,scale(most=1.5)")] * 3  # 8 of the rule, 5 of a round


def test_without_masks_there_are_tag_scores_alone(source: Path) -> None:
    (row,) = compare(options(source, truth=None, val_split=None, rules=("max",)), progress=False)
    assert set(row["mean_iu"].values()) == {None}
    assert "| max | - | - | - | - |" in markdown([row], options(source))
    with pytest.raises(UserError, match="cam: its threshold is tuned on true masks"):
        compare(options(source, truth=None, val_split=None, rules=("cam",)), progress=False)


def test_several_options_of_a_rule_survive_the_commas_between_rules(source: Path) -> None:
    typed = ("em-adapt(background=0.4", "foreground=0.2)", "max")  # as the command line splits them
    rows = compare(options(source, rules=typed, max_steps=1), progress=False)
    assert [row["rule"] for row in rows] == ["em-adapt(background=0.4,foreground=0.2)", "max"]


def test_photos_to_score_must_not_be_learned_from(source: Path) -> None:
    with pytest.raises(UserError, match="8 photos to score are learned from too, such as p0"):
        compare(options(source, val_split="train"), progress=False)


def test_digits_need_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import milseg.experiments.compare_tasks as module

    untrained = build_fcn("tiny", 10, output_stride=4)
    monkeypatch.setattr(module, "pretrain", lambda *_, **__: untrained)  # its own tests train it
    given = options(tmp_path / "photos", truth=None, split=None, val_split=None)
    given = replace(given, source=Path("digits"), rules=("weighted-pooling",), scenes=24, max_steps=1)
    (row,) = compare(given, progress=False)
    assert row["photos"] == 6
    assert row["mean_iu"]["refined"] is not None


def test_unknown_rules_end_before_anything_starts(source: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'max'"):
        compare(options(source, rules=("maxx",)), progress=False)
    assert not (source.parent / "out").exists()


def test_activation_maps_of_found_classes_have_a_background_below_the_threshold() -> None:
    """Two places: the cat's map falls to 0.3 of its height, so a threshold of 0.4 makes the second background."""
    scores = torch.tensor([[[0.0, 0.0]], [[10.0, 3.0]], [[-1.0, -2.0]]])
    maps = activation_maps(scores)
    assert maps[0].flatten().tolist() == pytest.approx([1.0, 0.3])
    assert not maps[1].any()
    evaluation = Evaluation(("background", "cat", "dog"))
    full = torch.cat([torch.full((1, 1, 2), 0.4), maps])
    evaluation.update(full.argmax(dim=0).numpy(), [[1, 0]])
    assert evaluation.compute().per_class_iu["cat"] == 100.0


def test_a_voc_tree_whose_tag_file_names_its_photos_otherwise(small_voc: SmallVoc) -> None:
    """The tag file calls photos by their path, the tree's sets by their number: they are the same photos."""
    tags = {"t0": "cat", "t1": "dog", "t2": "cat", "t3": "dog", "v0": "cat"}
    rows = [f"VOC2012/JPEGImages/{name}.jpg,{tag},train\n" for name, tag in tags.items()]
    tag_file = small_voc.root / "VOCdevkit" / "tags.csv"
    tag_file.write_text("image,tags,split\n" + "".join(rows[:4]))
    given = options(
        small_voc.root / "VOCdevkit",
        tags=tag_file,
        truth=None,
        out=small_voc.root / "out",
        rules=("oracle",),
        max_steps=1,
    )
    (row,) = compare(given, progress=False)
    assert (row["photos"], row["supervision"]) == (2, "pixel masks")
    tag_file.write_text("image,tags,split\n" + "".join(rows))  # v0 is to be scored as well
    with pytest.raises(UserError, match="1 photos to score are learned from too, such as v0"):
        compare(replace(given, overwrite=True), progress=False)


def test_tags_elsewhere_are_read_for_the_photos_to_score_too(source: Path) -> None:
    tags = (source / "tags.csv").rename(source.parent / "elsewhere.csv")
    (row,) = compare(options(source, tags=tags, rules=("oracle",), max_steps=1), progress=False)
    assert (row["photos"], row["supervision"]) == (4, "pixel masks")


@pytest.mark.parametrize("how", ["labels", "values"])
def test_the_oracle_learns_from_the_masks_as_they_are_numbered(
    source: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The same masks, dog before cat: what the oracle is taught must be the same."""
    import milseg.experiments.compare as module

    taught: list[list[list[int]]] = []
    train = module.fit

    def fit(model: FCN, bags: BagSet, *given: Any, **more: Any) -> Any:
        taught.append([np.unique(load_mask(bag, bags)).tolist() for bag in bags.bags])
        return train(model, bags, *given, **more)

    monkeypatch.setattr(module, "fit", fit)
    given = options(source, rules=("oracle",), max_steps=1)
    compare(given, progress=False)
    (source.parent / "truth" / "labels.json").unlink()
    for path in (source.parent / "truth").iterdir():
        mask = np.array(Image.open(path))
        write_mask(path, np.array([0, 2, 1], dtype=np.uint8)[mask])
    labels = source.parent / "other.json"
    labels.write_text('{"classes": ["background", "dog", "cat"]}')
    named: dict[str, Any] = (
        {"truth_labels": str(labels)}
        if how == "labels"
        else {"truth_values": ("0=background", "2=cat", "1=dog")}
    )
    compare(replace(given, out=source.parent / "again", **named), progress=False)
    assert taught[0] == taught[1]
    assert sorted({tuple(values) for values in taught[0]}) == [(0, 1), (0, 2)]
    with pytest.raises(UserError, match="the masks do not show what the tags say: of 8 photos with one tag"):
        compare(replace(given, out=source.parent / "no"), progress=False)


def test_nothing_held_out(source: Path) -> None:
    (row,) = compare(options(source, rules=("max",), hold_out=0.0), progress=False)
    assert row["tag_average_precision"] is None
    assert row["mean_iu"]["prior"] is None
    assert row["mean_iu"]["refined"] is not None
    text = (source.parent / "out" / "compare.md").read_text()
    assert "- No photo was held out: there is no tag AP, and no prior" in text
    several = options(source, hold_out=0.0, learning_rates=(1e-3, 1e-2), overwrite=True)
    with pytest.raises(UserError, match=r"--learning-rates 0\.001,0\.01: .* --hold-out 0 of 8 photos"):
        compare(several, progress=False)


def test_single_photos_are_told_beside_mean_iu(source: Path) -> None:
    (row,) = compare(options(source, rules=("max",)), progress=False)
    assert set(row["by_photo"]) == set(row["mean_iu"])
    assert row["by_photo"]["refined"]["nearly_empty"]["of"] == 4
    text = (source.parent / "out" / "compare.md").read_text()
    assert (
        "| Rule | photos with a nearly empty mask | tags without a pixel | clean photos with a mask |" in text
    )
    count = row["by_photo"]["refined"]["tags_without_pixel"]["count"]
    assert f"| {count} of 4 ({25 * count:.1f} %) | - |" in text


def test_one_bad_photo_ends_no_comparison(source: Path) -> None:
    for name in ("p1.png", "p9.png"):  # of the training and of the validation split
        (source / name).write_bytes(b"nothing")
    (row,) = compare(options(source, rules=("max",)), progress=False)
    assert row["photos"] == 3
    assert [note for note in row["notes"] if "cannot be read left out, such as p" in note] == [
        "1 photos that cannot be read left out, such as p1",
        "1 photos that cannot be read left out, such as p9",
    ]


def test_rounds_beside_an_oracle_whose_masks_are_numbered_one_by_one(source: Path) -> None:
    """Pseudo-labels have the classes' own numbers, whatever the true masks of the same photos have."""
    (source.parent / "truth" / "labels.json").unlink()
    for path in (source.parent / "truth").iterdir():
        write_mask(path, np.array([0, 100, 200], dtype=np.uint8)[np.array(Image.open(path))])
    values = ("0=background", "100=cat", "200=dog")
    given = options(source, rules=("oracle", "max"), rounds=1, max_steps=1, truth_values=values)
    rows = compare(given, progress=False)
    assert [(row["rule"], row["round"]) for row in rows] == [("oracle", 0), ("max", 0), ("max", 1)]
