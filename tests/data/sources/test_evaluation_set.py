"""A model scored on every kind of source: the same photos and masks give the same matrix."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from milseg.config import EvaluateOptions
from milseg.data.bags import BagSet, load_mask
from milseg.data.image import open_photo
from milseg.data.masks import write_mask
from milseg.data.source_table import SOURCES
from milseg.data.sources import evaluation_set
from milseg.errors import UserError
from milseg.evaluation.confusion import Evaluation
from milseg.evaluation.evaluate import evaluate_model
from milseg.inference.segmenter import segment
from milseg.models.backbones import build_fcn
from milseg.models.fcn import FCN

from .test_same_bags import WRITERS, Tagged

CLASSES = ("background", "cat", "dog")
STORED = ("background", "zebra", "dog", "cat")  # of the masks: other numbers, one more class


def evaluation_bags(source: Path, classes: Sequence[str], **given: Any) -> BagSet:
    return evaluation_set.evaluation_bags(EvaluateOptions(source=source, **given), classes)


@pytest.fixture(scope="module")
def model() -> FCN:
    torch.manual_seed(3)
    model = build_fcn("tiny", len(CLASSES)).eval()
    with torch.no_grad():
        model.score_layer.weight.normal_(std=0.3)
    return model


@pytest.fixture
def photos(tmp_path: Path) -> Tagged:
    """Six photos with masks in tmp_path/truth; one shows what the model does not know, and nothing else."""
    random = np.random.default_rng(0)
    found = {}
    for i, tags in enumerate((("cat",), ("dog",), ("cat", "dog"), ("zebra",), ("dog", "zebra"), ("cat",))):
        size = (20 + i, 33 - i)
        path = tmp_path / "made" / f"p{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*size, 3)).astype(np.uint8)).save(path)
        (tmp_path / "truth").mkdir(exist_ok=True)
        mask = random.choice([0, *(STORED.index(tag) for tag in tags), 255], size).astype(np.uint8)
        write_mask(tmp_path / "truth" / f"p{i}.png", mask)
        found[path.name] = (path.read_bytes(), tags)
    (tmp_path / "truth" / "labels.json").write_text(json.dumps({"classes": STORED}))
    return found


def by_hand(model: FCN, tmp_path: Path, photos: Tagged) -> Evaluation:
    evaluation = Evaluation(CLASSES)
    table = np.full(256, 255, dtype=np.uint8)
    table[[0, 2, 3]] = (0, 2, 1)
    for name in photos:
        truth = np.array(Image.open(tmp_path / "truth" / name))
        evaluation.update(segment(model, open_photo(tmp_path / "made" / name)), table[truth])
    return evaluation


@pytest.mark.parametrize("form", WRITERS)
def test_every_kind_of_source(tmp_path: Path, model: FCN, photos: Tagged, form: str) -> None:
    source = WRITERS[form][1](tmp_path / "source", photos)
    bags = evaluation_bags(source, CLASSES, truth=tmp_path / "truth")
    assert bags.classes == CLASSES
    assert sorted(bag.name.rpartition("/")[2] for bag in bags.bags) == [f"p{i}" for i in range(6)]
    assert "Scored as void, as the predictions do not know them: zebra." in bags.notes
    scores = evaluate_model(model, bags, progress=False)["scores"]
    expected = by_hand(model, tmp_path, photos).compute()
    assert scores == expected
    assert scores.photos == 6
    assert scores.mean_iu > 0


def test_every_source_with_a_file_can_be_read_for_photos_at_hand() -> None:
    assert {kind for kind, row in SOURCES.items() if row.needs_file} == {
        *("table", "coco", "cvat", "datumaro", "label_studio")
    }
    assert all(callable(row.load()) for row in SOURCES.values())


def test_a_class_that_the_truth_lacks_is_not_scored(tmp_path: Path, model: FCN, photos: Tagged) -> None:
    source = WRITERS["commas"][1](tmp_path / "source", photos)
    truth = ("0=background", "1=x", "2=y", "3=cat")
    bags = evaluation_bags(source, CLASSES, truth=tmp_path / "truth", truth_values=truth)
    scores = evaluate_model(model, bags, progress=False)["scores"]
    assert scores.predicted_share["dog"] > 0
    assert math.isnan(scores.per_class_iu["dog"])
    assert scores.mean_iu == pytest.approx(
        (scores.per_class_iu["background"] + scores.per_class_iu["cat"]) / 2
    )


def test_a_split_of_a_table(tmp_path: Path, photos: Tagged) -> None:
    source = WRITERS["commas"][1](tmp_path / "source", photos)
    text = (source / "tags.csv").read_text(encoding="utf-8-sig").splitlines()
    lines = [text[0], *(line.replace("train", ("val", "train")[i % 2]) for i, line in enumerate(text[1:]))]
    (source / "tags.csv").write_text("\n".join(lines))
    truth = tmp_path / "truth"
    names = [bag.name for bag in evaluation_bags(source, CLASSES, truth=truth, split="val").bags]
    assert names == ["p0", "p2", "p4"]
    every = evaluation_bags(source, CLASSES, truth=truth)
    assert len(every) == 6
    assert any("all splits taken together: train (3), val (3)" in note for note in every.notes)


def test_tags_and_kind_can_be_named(tmp_path: Path, photos: Tagged) -> None:
    source = WRITERS["commas"][1](tmp_path / "source", photos)
    tags = (source / "tags.csv").rename(tmp_path / "elsewhere.csv")
    found = evaluation_bags(source, CLASSES, truth=tmp_path / "truth", tags=tags)
    assert len(found) == 6
    with pytest.raises(UserError, match="the kind 'folder' is a folder and takes no file of tags"):
        evaluation_bags(source, CLASSES, truth=tmp_path / "truth", tags=tags, kind="folder")
    with pytest.raises(UserError, match="--year and --sbd are for PASCAL VOC"):
        evaluation_bags(source, CLASSES, truth=tmp_path / "truth", tags=tags, year=2012)


def test_a_source_without_masks(tmp_path: Path, photos: Tagged) -> None:
    source = WRITERS["columns"][1](tmp_path / "source", photos)
    with pytest.raises(
        UserError, match=r"table\.csv: 6 photos and no true masks; give a folder .* with --truth"
    ):
        evaluation_bags(source, CLASSES)


def test_a_tree_in_vocs_layout_brings_its_masks(tmp_path: Path, model: FCN, photos: Tagged) -> None:
    """Not PASCAL VOC itself: no lists. Masks are VOC's numbers; a photo without one is left out, with a note."""
    known = {
        name: (data, tuple(tag for tag in tags if tag != "zebra")) for name, (data, tags) in photos.items()
    }
    source = WRITERS["voc"][1](tmp_path / "source", known)
    home = source / "VOCdevkit" / "VOC2012"
    (home / "SegmentationClass").mkdir()
    numbers = np.full(256, 255, dtype=np.uint8)
    numbers[[0, 2, 3]] = (0, 12, 8)
    for i in range(5):
        truth = np.array(Image.open(tmp_path / "truth" / f"p{i}.png"))
        write_mask(home / "SegmentationClass" / f"p{i}.png", numbers[truth])
    bags = evaluation_bags(source, CLASSES)
    assert "1 photos without a true mask left out" in bags.notes
    some = {name: row for name, row in photos.items() if name != "p5.png"}
    assert evaluate_model(model, bags, progress=False)["scores"] == by_hand(model, tmp_path, some).compute()
    with pytest.raises(UserError, match="its masks show VOC's classes, and the model has none of these"):
        evaluation_bags(source, ("background", "daisy"))


def test_a_tag_file_for_photos_of_a_voc_tree_leaves_it_its_masks(tmp_path: Path, photos: Tagged) -> None:
    """The tree itself has no tags; the file says which photos there are."""
    root = tmp_path / "tree"
    home = root / "VOC2012"
    for part in ("JPEGImages", "SegmentationClass"):
        (home / part).mkdir(parents=True)
    rows = ["image,tags,split"]
    for name, (data, _) in photos.items():
        (home / "JPEGImages" / name).write_bytes(data)
        rows.append(f"{name},cat,{'val' if name < 'p4' else 'train'}")
        if name != "p1.png":
            mask = np.full(open_photo(home / "JPEGImages" / name).shape[:2], 8, dtype=np.uint8)
            mask[-1] = 0
            write_mask(home / "SegmentationClass" / name, mask)
    tags = tmp_path / "tags.csv"
    tags.write_text("\n".join(rows))
    bags = evaluation_bags(root, CLASSES, tags=tags, split="val")
    assert [bag.photo.stem for bag in bags.bags if isinstance(bag.photo, Path)] == ["p0", "p2", "p3"]
    assert {int(load_mask(bag, bags)[0, 0]) for bag in bags.bags} == {CLASSES.index("cat")}
    assert "1 photos without a true mask left out" in bags.notes
    with pytest.raises(UserError, match="no true masks"):
        evaluation_bags(root, ("background", "daisy"), tags=tags)


def test_a_model_without_background_keeps_every_photo(tmp_path: Path, photos: Tagged) -> None:
    source = WRITERS["json lines"][1](tmp_path / "source", photos)
    bags = evaluation_bags(source, ("dog", "cat"), truth=tmp_path / "truth")
    assert len(bags) == 6
    stored = np.array(Image.open(tmp_path / "truth" / "p2.png"))
    expected = np.full(256, 255)
    expected[[2, 3]] = (0, 1)
    bag = next(bag for bag in bags.bags if bag.name.endswith("p2"))
    assert np.array_equal(load_mask(bag, bags), expected[stored])


def test_a_background_of_another_spelling_is_told(tmp_path: Path, photos: Tagged) -> None:
    source = WRITERS["commas"][1](tmp_path / "source", photos)
    with pytest.raises(UserError, match="expected 'background', where there is one, to come first"):
        evaluation_bags(source, ("Background", "cat"), truth=tmp_path / "truth")


def test_true_masks_need_no_tags(tmp_path: Path, model: FCN, photos: Tagged) -> None:
    """Photos alone; below folders of a split; and with tags that cannot be read, which is told."""
    found = evaluation_bags(tmp_path / "made", CLASSES, truth=tmp_path / "truth")
    assert [bag.name for bag in found.bags] == [f"p{i}" for i in range(6)]
    expected = by_hand(model, tmp_path, photos).compute()
    assert evaluate_model(model, found, progress=False)["scores"] == expected
    assert found.notes[0] == "Scored as void, as the predictions do not know them: zebra."
    assert found.notes[1].endswith(
        "% of the true pixels are void (with zebra, which the classes lack): the score speaks of the rest alone."
    )
    for i in range(6):
        folder = tmp_path / "split" / ("val" if i < 2 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"p{i}.png").write_bytes((tmp_path / "made" / f"p{i}.png").read_bytes())
    val = evaluation_bags(tmp_path / "split", CLASSES, truth=tmp_path / "truth", split="val")
    assert [bag.name for bag in val.bags] == ["val/p0", "val/p1"]
    (tmp_path / "made" / "tags.csv").write_text("image,tags\np0.png,cat\np0.png,dog,bird\n")
    found = evaluation_bags(tmp_path / "made", CLASSES, truth=tmp_path / "truth")
    assert len(found) == 6
    assert any("every photo is taken, as the tags cannot be read (" in note for note in found.notes)
    with pytest.raises(UserError, match=r"tags\.csv, line 3"):
        evaluation_bags(tmp_path / "made", CLASSES)


def test_masks_of_another_size_are_told_before_anything_is_predicted(tmp_path: Path, photos: Tagged) -> None:
    for i in (1, 4):
        write_mask(tmp_path / "truth" / f"p{i}.png", np.ones((9, 7), dtype=np.uint8))
    with pytest.raises(UserError, match=r"p1\.png: mask of 7 x 9 pixels for a photo of .* 2 of 6 masks have"):
        evaluation_bags(tmp_path / "made", CLASSES, truth=tmp_path / "truth")


def test_a_damaged_true_mask_is_left_out_and_named(tmp_path: Path, photos: Tagged) -> None:
    (tmp_path / "truth" / "p2.png").write_bytes(b"nothing")
    found = evaluation_bags(tmp_path / "made", CLASSES, truth=tmp_path / "truth")
    assert [bag.name for bag in found.bags] == ["p0", "p1", "p3", "p4", "p5"]
    assert any(
        "1 photos whose true mask cannot be read left out" in note and "p2.png" in note
        for note in found.notes
    )


def test_tags_that_the_masks_contradict(tmp_path: Path) -> None:
    """Cats tagged cat, numbered as dogs: nobody said how the values are numbered."""
    rows = ["image,tags"]
    for i in range(6):
        Image.new("RGB", (20, 20)).save(make_folder(tmp_path / "photos") / f"p{i}.png")
        mask = np.zeros((20, 20), dtype=np.uint8)
        mask[5:15, 5:15] = 2 - i % 2
        write_mask(make_folder(tmp_path / "masks") / f"p{i}.png", mask)
        rows.append(f"p{i}.png,{('cat', 'dog')[i % 2]}")
    (tmp_path / "photos" / "tags.csv").write_text("\n".join(rows))
    with pytest.raises(
        UserError, match=r"of 6 photos with one tag .* 0 agree; 3 photos tagged cat show dog.*labels"
    ):
        evaluation_bags(tmp_path / "photos", CLASSES, truth=tmp_path / "masks")
    found = evaluation_bags(
        tmp_path / "photos",
        CLASSES,
        truth=tmp_path / "masks",
        truth_values=("0=background", "2=cat", "1=dog"),
    )
    assert found.notes == ()


def make_folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return path


def test_photos_that_cannot_be_read_are_left_out_and_counted(
    tmp_path: Path, model: FCN, photos: Tagged, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "made" / "p1.png").write_bytes(b"nothing")
    bags = evaluation_bags(tmp_path / "made", CLASSES, truth=tmp_path / "truth")
    scores = evaluate_model(model, bags, progress=False)["scores"]
    assert scores.photos == 5
    assert scores.notes[0].startswith("1 photos that cannot be read left out, such as ")
    assert "left out: " in capsys.readouterr().err
    for path in (tmp_path / "made").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="none of its 6 photos can be read"):
        evaluate_model(model, bags, progress=False)


def test_masks_that_are_no_png(tmp_path: Path, photos: Tagged) -> None:
    for i in range(3):
        Image.new("L", (4, 4)).save(make_folder(tmp_path / "jpegs") / f"p{i}.jpg")
    with pytest.raises(
        UserError, match=r"holds no PNG masks, but 3 \.jpg files, which changes class numbers"
    ):
        evaluation_bags(tmp_path / "made", CLASSES, truth=tmp_path / "jpegs")
