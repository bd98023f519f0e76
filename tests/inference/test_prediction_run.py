from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import milseg.inference.prediction_run as prediction_run
from milseg.cli import main
from milseg.config import InferenceConfig, PredictOptions
from milseg.data.image import open_mask, open_photo
from milseg.data.sources.photo_inputs import find_photos
from milseg.errors import UserError
from milseg.inference.model_folder import ModelSpec, save_model
from milseg.inference.prediction_files import COLUMNS
from milseg.inference.prediction_run import parse_class_bias, predict_run
from milseg.inference.segmenter import Segmenter, load
from milseg.models.backbones import build_fcn

CLASSES = ("background", "cat", "dog")
FORMATS = ("png", "coco", "labelstudio", "cvat", "yolo", "npz")


def blocks(seed: int, height: int = 33, width: int = 41) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return np.kron(pixels, np.ones((8, 8, 1), dtype=np.uint8))[:height, :width]


def write_model(folder: Path, *, seed: int = 5) -> Path:
    torch.manual_seed(seed)
    model = build_fcn("tiny", len(CLASSES))
    with torch.no_grad():
        model.score_layer.weight.normal_(std=0.3)
    save_model(folder, model, ModelSpec(backbone="tiny", classes=CLASSES, longest_side=32))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five photos of several sizes in a nested tree."""
    names = ("a.jpg", "b.png", "in/a.png", "in/deep/c.JPG", "in/deep/d.webp")
    for i, name in enumerate(names):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(blocks(i, 30 + i, 40 - i)).save(path)
    return tmp_path / "photos"


def predict(model: Path, *inputs: Path | str, out: str = "out", **changes: Any) -> dict[str, int]:
    options = PredictOptions(
        inputs=tuple(map(str, inputs)), model=model, out=model.parent / out, device="cpu", **changes
    )
    return predict_run(options, progress=False)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`milseg.cli.main` whose marks on this process are taken back."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    return lambda *words: main([str(word) for word in words])


def table(out: Path, name: str = "predictions.csv") -> list[dict[str, str]]:
    with (out / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file a user opens; archives by what is in them."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name.startswith(".parts"):
            continue
        if path.suffix in (".zip", ".npz"):
            with zipfile.ZipFile(path) as archive:
                found |= {f"{name}/{part}": archive.read(part) for part in sorted(archive.namelist())}
        else:
            found[name] = path.read_bytes()
    return found


# from end to end


def test_a_folder_of_photos_in_every_format(
    photos: Path, model: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = model.parent / "out"
    assert command("predict", photos, "--model", model, "--out", out, "--format", ",".join(FORMATS)) == 0
    assert "5 photos segmented into" in capsys.readouterr().out
    files = files_below(out)
    names = ("a", "b", "in/a", "in/deep/c", "in/deep/d")
    for name in names:
        for part in (f"masks/{name}.png", f"overlays/{name}.jpg", f"scores/{name}.npz/scores.npy"):
            assert part in files, part
    for part in ("coco.json", "labelstudio.json", "labels.json", "predictions.csv", "yolo/data.yaml"):
        assert part in files, part
    assert any(name.startswith("cvat.zip/") for name in files)
    assert "failed.csv" not in files
    assert json.loads(files["labels.json"]) == {"classes": list(CLASSES)}
    assert len(json.loads(files["coco.json"])["images"]) == 5
    assert len(json.loads(files["labelstudio.json"])) == 5

    segmenter = load(model)
    for photo in find_photos([str(photos)]):
        pixels = open_photo(photo.path)
        mask = open_mask(out / "masks" / f"{photo.name}.png")
        assert mask.shape == pixels.shape[:2]
        assert np.array_equal(mask, segmenter.segment(pixels).mask)
        assert np.array(Image.open(out / "overlays" / f"{photo.name}.jpg")).shape == pixels.shape


def test_the_table_lists_the_least_certain_first(photos: Path, model: Path) -> None:
    predict(model, photos)
    rows = table(model.parent / "out")
    assert list(rows[0]) == list(COLUMNS)
    assert sorted(row["photo"] for row in rows) == [
        "a.jpg",
        "b.png",
        "in/a.png",
        "in/deep/c.JPG",
        "in/deep/d.webp",
    ]
    assert {row["review"] for row in rows} <= {"", "shows nothing"}
    confidences = [float(row["confidence"]) for row in rows]
    assert [(row["review"] == "", number) for row, number in zip(rows, confidences, strict=True)] == sorted(
        (row["review"] == "", number) for row, number in zip(rows, confidences, strict=True)
    )
    assert len(set(confidences)) == 5
    segmenter = load(model)
    for row in rows:
        found = segmenter.segment(photos / row["photo"])
        assert (model.parent / "out" / row["mask"]).is_file()
        assert float(row["confidence"]) == pytest.approx(found.confidence, abs=1e-6)
        assert row["tags"] == ";".join(name for name, _ in found.tags)
        assert row["areas"] == ";".join(f"{name}={share:.4f}" for name, share in found.areas.items())
        assert row["tags_given"] == "no"


def test_masks_that_are_surely_wrong_come_before_the_uncertain_ones(photos: Path, model: Path) -> None:
    """However sure the network is: a mask without a tag that was given, or without anything."""
    tags = model.parent / "known.csv"
    tags.write_text("image,tags\na.jpg,cat\nb.png,\nin/a.png,dog\n")
    predict(model, photos, tags=tags, class_bias="cat=-100,dog=100")
    rows = {row["photo"]: row["review"] for row in table(model.parent / "out")}
    assert rows == {
        "a.jpg": "lacks cat",
        "b.png": "",
        "in/a.png": "",
        "in/deep/c.JPG": "",
        "in/deep/d.webp": "",
    }
    assert next(iter(rows)) == "a.jpg"
    predict(model, photos, tags=tags, out="none", class_bias="cat=-100,dog=-100")
    rows = {row["photo"]: row["review"] for row in table(model.parent / "none")}
    assert rows["in/deep/c.JPG"] == rows["in/deep/d.webp"] == "shows nothing"
    assert rows["in/a.png"] == "lacks dog"
    assert list(rows.items())[-1] == ("b.png", "")  # said to show nothing, and shows nothing


def test_adjusting_a_class_from_the_command_line(photos: Path, model: Path) -> None:
    predict(model, photos, out="more", class_bias="dog=100")
    assert {row["areas"] for row in table(model.parent / "more")} == {"dog=1.0000"}
    predict(model, photos, out="less", class_bias="dog=-100, cat=-100")
    assert {row["areas"] for row in table(model.parent / "less")} == {"background=1.0000"}
    with pytest.raises(UserError, match="unknown class 'dgo'; did you mean 'dog'"):
        predict(model, photos, out="none", class_bias="dgo=1")
    for wrong in ("dog", "dog=", "=1", "dog=x", "dog:1"):
        with pytest.raises(UserError, match="expected CLASS=NUMBER"):
            parse_class_bias(wrong)
    assert parse_class_bias(None) == parse_class_bias("") == {}


def test_an_unknown_format_is_told(photos: Path, model: Path) -> None:
    with pytest.raises(UserError, match="unknown format 'cocoo'; did you mean 'coco'"):
        predict(model, photos, format=("cocoo",))
    assert not (model.parent / "out").exists()


# which photos


def found(*inputs: Path | str) -> list[str]:
    return [photo.below for photo in find_photos(map(str, inputs))]


def test_files_folders_and_patterns(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "notes.txt").write_text("no photo")
    (photos / "._a.jpg").write_text("a shadow")
    (photos / ".hidden").mkdir()
    Image.fromarray(blocks(0)).save(photos / ".hidden" / "h.png")
    everything = ["a.jpg", "b.png", "in/a.png", "in/deep/c.JPG", "in/deep/d.webp"]
    assert found(photos) == everything
    assert found(photos / "in") == ["a.png", "deep/c.JPG", "deep/d.webp"]
    assert found(photos / "in" / "deep" / "c.JPG", photos / "b.png") == ["c.JPG", "b.png"]
    assert found(photos / "*") == ["a.jpg", "b.png"]
    assert sorted(found(photos / "**" / "*")) == everything
    assert found(photos / "in" / "*" / "*.webp") == ["deep/d.webp"]
    monkeypatch.chdir(photos)
    assert found("*.jpg") == found("./*.jpg") == ["a.jpg"]
    assert found("in/../*.png") == ["b.png"]
    assert found(".") == everything
    # Each photo once, however often it is given.
    assert found(".", photos / "b.png", "*.png", "in/../b.png") == everything


def test_inputs_that_hold_no_photo(photos: Path, model: Path, command: Callable[..., int]) -> None:
    (photos / "empty").mkdir()
    (photos / "empty" / "._a.jpg").write_text("a shadow")
    (photos / "notes.txt").write_text("no photo")
    with pytest.raises(UserError, match=r"empty: no photo in this folder; expected files ending in \.jpg"):
        found(photos, photos / "empty")
    for missing in ("none.jpg", "*.tif", "*.txt"):
        with pytest.raises(UserError, match="no such photo or folder, and no photo matches it"):
            found(photos / missing)
    assert command("predict", photos / "none.jpg", "--model", model, "--out", photos / "x") == 2


def test_a_name_that_looks_like_a_pattern(photos: Path) -> None:
    Image.fromarray(blocks(0)).save(photos / "a[1].png")
    assert found(photos / "a[1].png") == ["a[1].png"]


def test_photos_that_would_share_a_mask_are_refused(photos: Path, model: Path) -> None:
    """The same stem in two folders is fine in a tree; with two extensions, or without the tree, it is not."""
    assert len(find_photos([str(photos)])) == 5  # a.jpg and in/a.png
    Image.fromarray(blocks(0)).save(photos / "in" / "a.jpg")
    with pytest.raises(UserError, match=r"in/a\.jpg and in/a\.png: both would be written as 'in/a'"):
        predict(model, photos)
    with pytest.raises(UserError, match=r"a\.jpg and .*in/a\.jpg: both would be written as 'a'"):
        predict(model, photos / "a.jpg", photos / "in" / "a.jpg")
    assert not (model.parent / "out").exists()


# photos that are odd or broken


def test_a_broken_photo_is_named_and_the_others_go_on(
    photos: Path, model: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    cut = (photos / "b.png").read_bytes()[:-60]
    (photos / "b.png").write_bytes(cut)
    (photos / "in" / "empty.jpg").write_bytes(b"")
    Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(photos / "bomb.png")
    out = model.parent / "out"
    assert command("predict", photos, "--model", model, "--out", out, "--max-pixels", 9_999) == 0
    told = capsys.readouterr()
    assert "4 photos segmented" in told.out
    assert "3 left out" in told.out
    assert {row["photo"]: row["reason"].partition(": ")[2][:20] for row in table(out, "failed.csv")} == {
        "b.png": "damaged or cut short",
        "bomb.png": "100 x 100 = 10,000 p",
        "in/empty.jpg": "an empty file, not a",
    }
    assert "b.png: damaged" in told.err
    assert [row["photo"] for row in table(out) if row["photo"] in ("b.png", "bomb.png", "in/empty.jpg")] == []
    assert len(table(out)) == 4
    assert (photos / "b.png").read_bytes() == cut

    # Once it is mended, the same command with --resume does it, and nothing is left to tell.
    Image.fromarray(blocks(1)).save(photos / "b.png")
    (photos / "in" / "empty.jpg").unlink()
    (photos / "bomb.png").unlink()
    counts = predict(model, photos, max_pixels=9_999, resume=True)
    assert counts == {"photos": 5, "done": 1, "earlier": 4, "failed": 0}
    assert not (out / "failed.csv").exists()
    assert len(table(out)) == 5


def test_a_bomb_is_refused_before_it_is_decoded(
    photos: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    load_image = Image.Image.load
    monkeypatch.setattr(
        "PIL.ImageFile.ImageFile.load", lambda image: decoded.append(image.size) or load_image(image)
    )
    with pytest.raises(UserError, match=r"none of 1 photos could be read.*limit of 100; not decoded"):
        predict(model, photos / "b.png", max_pixels=100)
    assert decoded == []


def test_where_nothing_can_be_read_the_status_is_2(
    photos: Path, model: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("x.jpg", "y.jpg"):
        (photos / name).write_bytes(b"no photo")
    out = model.parent / "out"
    assert command("predict", photos / "x.jpg", photos / "y.jpg", "--model", model, "--out", out) == 2
    assert "none of 2 photos could be read; the first: " in capsys.readouterr().err
    assert len(table(out, "failed.csv")) == 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "animated"])
def test_odd_pixel_modes(tmp_path: Path, model: Path, mode: str) -> None:
    image = Image.fromarray(blocks(1))
    suffix = {"CMYK": ".jpg", "animated": ".gif"}.get(mode, ".png")
    path = tmp_path / f"photo{suffix}"
    if mode == "I;16":
        Image.fromarray(blocks(1)[..., 0].astype(np.uint16) * 257).save(path)
    elif mode == "animated":
        image.save(path, save_all=True, append_images=[Image.fromarray(blocks(2))])
    else:
        image.convert(mode).save(path)
    assert predict(model, path)["done"] == 1
    mask = open_mask(model.parent / "out" / "masks" / "photo.png")
    assert mask.shape == (33, 41)
    assert np.array_equal(mask, load(model).segment(open_photo(path)).mask)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_mask_stands_as_the_photo_is_shown(tmp_path: Path, model: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(blocks(1)).save(tmp_path / "a.png", exif=exif)
    predict(model, tmp_path / "a.png")
    upright = open_photo(tmp_path / "a.png")
    mask = open_mask(model.parent / "out" / "masks" / "a.png")
    assert mask.shape == upright.shape[:2] == ((33, 41) if orientation < 5 else (41, 33))
    assert np.array_equal(mask, load(model).segment(upright).mask)


# known tags


def test_known_tags_rule_out_the_others_and_are_recorded(
    photos: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tags = model.parent / "tags.csv"
    tags.write_text("image,tags\na.jpg,cat\nphotos/in/a.png,dog\nc,\nelsewhere/e,cat\n")
    predict(model, photos, tags=tags, format=("npz",))
    rows = {row["photo"]: row for row in table(model.parent / "out")}
    assert {name: row["tags_given"] for name, row in rows.items()} == {
        "a.jpg": "yes",
        "b.png": "no",
        "in/a.png": "yes",
        "in/deep/c.JPG": "yes",
        "in/deep/d.webp": "no",
    }
    assert "2 photos have no row" in capsys.readouterr().err
    allowed = {
        "a.jpg": {"background", "cat"},
        "in/a.png": {"background", "dog"},
        "in/deep/c.JPG": {"background"},
    }
    for name, classes in allowed.items():
        assert {part.partition("=")[0] for part in rows[name]["areas"].split(";")} <= classes
    free = load(model).segment(photos / "b.png")
    assert rows["b.png"]["tags"] == ";".join(name for name, _ in free.tags)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a.jpg,cta\n", "line 2: unknown tag 'cta'; did you mean 'cat'"),
        ("zebra.jpg,cat\n", "no row for any of the photos; its rows are like 'zebra.jpg'"),
        ("deep/c,cat\nx/deep/c,dog\n", "no row|"),
    ],
)
def test_known_tags_that_do_not_fit(photos: Path, model: Path, text: str, told: str) -> None:
    tags = model.parent / "tags.csv"
    tags.write_text("image,tags\n" + text)
    if told == "no row|":
        assert predict(model, photos, tags=tags)["done"] == 5
        return
    with pytest.raises(UserError) as caught:
        predict(model, photos, tags=tags)
    assert told in str(caught.value)
    assert not (model.parent / "out").exists()


def test_known_tags_as_columns_leave_the_unknown_open(
    photos: Path, model: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """dog is blank for a: masked as if cat alone were ruled out; c is said to be empty; b has no row."""
    tags, out = model.parent / "tags.csv", model.parent / "out"
    tags.write_text("image,cat,dog\na,0,\nc,0,0\n")
    words = ("predict", photos, "--model", model, "--out", out, "--tags", tags)
    assert command(*words) == 0
    assert "3 photos have no row in" in capsys.readouterr().err
    rows = {row["photo"]: row for row in table(out)}
    assert [name for name, row in rows.items() if row["tags_given"] == "yes"] == sorted(
        ["a.jpg", "in/deep/c.JPG"], key=list(rows).index
    )
    segmenter = load(model)
    for name, allowed in (("a", ["dog"]), ("in/deep/c", []), ("b", None)):
        photo = next(photo for photo in photos.rglob("*") if photo.with_suffix("") == photos / name)
        expected = segmenter.segment(photo, tags=allowed).mask
        assert np.array_equal(open_mask(out / "masks" / f"{name}.png"), expected)
    assert rows["in/deep/c.JPG"]["areas"] == "background=1.0000"
    assert "dog" in rows["a.jpg"]["areas"]

    assert command(*words, "--resume", "--tags-are", "partial") == 2
    assert "the run to resume had other classes or options" in capsys.readouterr().err
    tags.write_text("image,tags\na,cat zebra\n")
    assert command(*words, "--overwrite") == 2
    assert "line 2: unknown tag 'zebra'" in capsys.readouterr().err
    assert command(*words, "--overwrite", "--ignore-unknown-tags") == 0


def test_rows_of_one_photo_add_up(photos: Path, model: Path) -> None:
    """The path deep/c ends in c, so both rows speak of one photo; with the first alone, dog is ruled out."""
    tags = model.parent / "tags.csv"
    found = {}
    for out, text in (("one", "c,cat\n"), ("both", "c,cat\ndeep/c,dog\n")):
        tags.write_text("image,tags\n" + text)
        predict(model, photos, out=out, tags=tags)
        found[out] = open_mask(model.parent / out / "masks" / "in" / "deep" / "c.png")
    expected = load(model).segment(photos / "in" / "deep" / "c.JPG", tags=["cat", "dog"]).mask
    assert np.array_equal(found["both"], expected)
    assert not np.array_equal(found["one"], expected)


def test_a_row_that_two_photos_answer_to(photos: Path, model: Path) -> None:
    tags = model.parent / "tags.csv"
    (photos / "in" / "two").mkdir()
    Image.fromarray(blocks(0)).save(photos / "in" / "two" / "c.png")
    tags.write_text("image,tags\nc,cat\n")
    with pytest.raises(UserError, match=r"line 2: 'c' may be in/deep/c\.JPG or in/two/c\.png below"):
        predict(model, photos, tags=tags)


# the output folder


def test_a_folder_that_holds_files_is_refused(photos: Path, model: Path) -> None:
    out = model.parent / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"out: already holds files; --resume .*--overwrite"):
        predict(model, photos)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert predict(model, photos, overwrite=True)["done"] == 5
    assert predict(model, photos, overwrite=True)["done"] == 5
    assert (out / "mine.txt").read_text() == "mine"
    (model.parent / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        predict(model, photos, out="file")


def test_overwriting_leaves_no_mask_of_an_earlier_run(
    photos: Path, model: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Other photos, fewer formats: the folder is then that of a run into an empty one, but for what is not ours."""
    (photos / "in" / "cut.jpg").write_bytes(b"no photo")
    predict(model, photos, format=FORMATS)
    out = model.parent / "out"
    assert (out / "failed.csv").exists()
    mine = {
        "mine.txt": b"1",
        "masks/in/corrected.png": b"2",
        "overlays/in/deep/note.jpg": b"3",
        "scores/x": b"4",
    }
    for name, data in mine.items():
        (out / name).write_bytes(data)
    Image.fromarray(blocks(9)).save(photos / "z.png")
    words = ("predict", photos / "z.png", photos / "b.png", "--model", model)
    assert command(*words, "--out", out) == 2
    assert "already holds files" in capsys.readouterr().err
    assert (out / "masks" / "a.png").exists()
    assert command(*words, "--out", out, "--overwrite", "--format", "coco") == 0
    assert command(*words, "--out", model.parent / "new", "--format", "coco") == 0
    files = files_below(out)
    assert {name: files.pop(name) for name in mine} == mine
    assert files == files_below(model.parent / "new")
    assert sorted(path.name for path in (out / ".parts").iterdir()) == [
        "coco.jsonl",
        "png.jsonl",
        "predictions.jsonl",
    ]


def test_overwriting_never_removes_the_photos_themselves(photos: Path, model: Path) -> None:
    """Masks of an earlier run that are photos of this one stay, as what is to be predicted."""
    predict(model, photos / "a.jpg")
    masks = model.parent / "out" / "masks"
    assert predict(model, masks, overwrite=True)["done"] == 1
    # The mask that was the photo is now the mask of that photo: both are called a.
    assert open_mask(masks / "a.png").shape == (30, 40)


def test_a_mistake_is_found_before_anything_is_removed(photos: Path, model: Path) -> None:
    predict(model, photos)
    before = files_below(model.parent / "out")
    for changes in ({"class_bias": "dgo=1"}, {"tags": model.parent / "none.csv"}, {"format": ("cocoo",)}):
        with pytest.raises(UserError):
            predict(model, photos / "b.png", overwrite=True, **changes)
    assert files_below(model.parent / "out") == before


# stop and go on


def test_a_run_that_was_stopped_skips_what_is_done(
    photos: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after the third photo, in the middle of its formats; the files are those of a run in one go."""
    predict(model, photos, out="whole", format=FORMATS)
    row_of = prediction_run._row
    written: list[str] = []

    def stopping(photo: Any, segmentation: Any, present: Any) -> Any:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(photo.name)
        return row_of(photo, segmentation, present)

    monkeypatch.setattr(prediction_run, "_row", stopping)
    with pytest.raises(KeyboardInterrupt):
        predict(model, photos, out="cut", format=FORMATS)
    monkeypatch.setattr(prediction_run, "_row", row_of)
    cut = model.parent / "cut"
    assert not (cut / "predictions.csv").exists()
    before = {path: path.stat().st_mtime_ns for path in (cut / "masks").rglob("*.png")}
    assert len(before) == 3
    counts = predict(model, photos, out="cut", format=FORMATS, resume=True)
    assert counts == {"photos": 5, "done": 3, "earlier": 2, "failed": 0}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert files_below(cut) == files_below(model.parent / "whole")
    assert predict(model, photos, out="cut", format=FORMATS, resume=True)["done"] == 0
    assert files_below(cut) == files_below(model.parent / "whole")


def test_resume_adds_photos_and_formats(photos: Path, model: Path) -> None:
    predict(model, photos / "in", out="out", format=("png",))
    counts = predict(model, photos / "in", photos / "b.png", out="out", format=("png", "coco"), resume=True)
    assert counts == {"photos": 4, "done": 4, "earlier": 0, "failed": 0}
    assert len(json.loads((model.parent / "out" / "coco.json").read_text())["images"]) == 4
    assert len(table(model.parent / "out")) == 4


@pytest.mark.parametrize("change", ["model", "class_bias", "tags"])
def test_resuming_with_another_model_or_settings_is_refused(photos: Path, model: Path, change: str) -> None:
    predict(model, photos)
    changes: dict[str, Any] = {}
    if change == "model":
        write_model(model, seed=6)
    elif change == "class_bias":
        changes["class_bias"] = "cat=1"
    else:
        changes["tags"] = model.parent / "tags.csv"
        changes["tags"].write_text("image,tags\na,cat\n")
    with pytest.raises(UserError, match="the run to resume had other classes or options"):
        predict(model, photos, resume=True, **changes)


def test_killed_and_resumed(tmp_path: Path, model: Path) -> None:
    """A real process, killed at a random place; nothing is lost, done twice or different."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(150):
        Image.fromarray(blocks(i)).save(photos / f"{i:03}.png")
    words = [sys.executable, "-m", "milseg", "predict", photos, "--model", model, "--device", "cpu"]
    words += ["--format", "coco,npz"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = tmp_path / "out"
    with subprocess.Popen([*words, "--out", out], env=environment, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while time.monotonic() < end and len(list(out.glob("masks/*.png"))) < 20:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    done = len(list(out.glob("masks/*.png")))
    assert 20 <= done < 150
    (out / "overlays" / ".020.4711-0123abcd.tmp.jpg").write_bytes(b"half")  # as a kill may leave it
    counts = predict(model, photos, format=("coco", "npz"), resume=True)
    assert counts["done"] + counts["earlier"] == 150
    assert done - 2 <= counts["earlier"] <= done + 1
    predict(model, photos, out="whole", format=("coco", "npz"))
    assert files_below(out) == files_below(tmp_path / "whole")


# memory

MEASURE = """
import resource, sys
from pathlib import Path
from milseg.config import PredictOptions
from milseg.inference.prediction_run import predict_run
photos, model, out = map(Path, sys.argv[1:])
predict_run(PredictOptions(inputs=(str(photos),), model=model, out=out, device="cpu"), progress=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_stays_flat(tmp_path: Path, model: Path) -> None:
    """`benchmarks/bench_predict_memory.py` goes from 1,000 to 10,000 photos; here it is 300 to 1,500."""
    peaks = []
    data = tmp_path / "photo.png"
    Image.fromarray(blocks(0)).save(data)
    for count in (300, 1_500):
        photos = tmp_path / str(count)
        photos.mkdir()
        for i in range(count):
            os.link(data, photos / f"{i:05}.png")
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, photos, model, tmp_path / f"out-{count}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.05 * peaks[0], peaks


def test_refiner_and_scales_in_place_of_the_models_own(photos: Path, model: Path) -> None:
    predict(model, photos / "a.jpg", out="plain")
    predict(model, photos / "a.jpg", out="refined", refine="crf(iterations=2)", scales=(1.0, 1.5))
    plain, spec = load(model), load(model).spec
    changed = Segmenter(
        plain.model, spec, inference=InferenceConfig(refine="crf(iterations=2)", scales=(1.0, 1.5))
    )
    found = open_mask(model.parent / "refined" / "masks" / "a.png")
    assert np.array_equal(found, changed.segment(photos / "a.jpg").mask)
    assert not np.array_equal(found, open_mask(model.parent / "plain" / "masks" / "a.png"))
    with pytest.raises(UserError, match="unknown refiner 'crv'"):
        predict(model, photos / "a.jpg", out="other", refine="crv")
    assert not (model.parent / "other").exists()
    with pytest.raises(UserError):
        predict(model, photos / "a.jpg", out="refined", resume=True)  # other settings than before


def test_a_walk_in_place_of_the_models_own(photos: Path, model: Path) -> None:
    predict(model, photos / "a.jpg", out="walked", random_walk=2)
    loaded = load(model)
    changed = Segmenter(loaded.model, loaded.spec, inference=replace(loaded.inference, random_walk=2))
    found = open_mask(model.parent / "walked" / "masks" / "a.png")
    assert np.array_equal(found, changed.segment(photos / "a.jpg").mask)
    assert not np.array_equal(found, loaded.segment(photos / "a.jpg").mask)
    with pytest.raises(UserError, match="random_walk is -1; expected a whole number from 0 to 100"):
        predict(model, photos / "a.jpg", out="other", random_walk=-1)
    with pytest.raises(UserError):
        predict(model, photos / "a.jpg", out="walked", resume=True)  # other settings than before


def test_outputs_and_leftovers_are_not_predicted(tmp_path: Path) -> None:
    """Reliability case 55."""
    for name in (
        "cat/a.png",
        "cat/._a.png",
        "@eaDir/a.png",
        "masks/masks/a.png",
        "masks/overlays/a.png",
        "out/x.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "masks" / "predictions.csv").touch()
    for given in (str(tmp_path), f"{tmp_path}/**/*.png"):
        assert [p.below for p in find_photos([given], leave_out=[tmp_path / "out"])] == ["cat/a.png"]
        assert [p.below for p in find_photos([given])] == ["cat/a.png", "out/x.png"]
    # What is asked for by name is taken.
    assert len(find_photos([f"{tmp_path}/masks/overlays"])) == 1
