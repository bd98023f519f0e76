"""Masks looked at as a set: what no single mask shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from milseg.data.image import UInt8
from milseg.data.mask_survey import smooth_changes
from milseg.data.masks import palette, write_mask
from milseg.errors import UserError
from milseg.evaluation.folders import evaluate_folder

CLASSES = ("background", "cat", "dog")
NAMED = {0: "background", 1: "cat", 2: "dog"}


def scene(number: int, *, cat: int = 1, dog: int = 2) -> UInt8:
    """A square, cat or dog in turn, on background."""
    mask = np.zeros((40, 60), dtype=np.uint8)
    top, left = 3 + number, 5 + 2 * number
    mask[top : top + 20, left : left + 20] = (cat, dog)[number % 2]
    return mask


def write(folder: Path, masks: Sequence[UInt8], palettes: Sequence[Sequence[int]] = ()) -> Path:
    folder.mkdir(parents=True)
    for number, mask in enumerate(masks):
        image = Image.fromarray(mask)
        if palettes:
            image.putpalette(palettes[number % len(palettes)])
        image.save(folder / f"m{number}.png")
    return folder


@pytest.fixture
def predicted(tmp_path: Path) -> Path:
    folder = tmp_path / "pred"
    folder.mkdir()
    for number in range(6):
        write_mask(folder / f"m{number}.png", np.zeros((40, 60), dtype=np.uint8))
    (folder / "labels.json").write_text(json.dumps({"classes": CLASSES}))
    return folder


def score(predicted: Path, truth: Path, **given: Any) -> Any:
    return evaluate_folder(predicted, truth, **given)


def test_sound_masks_pass_without_a_word(predicted: Path, tmp_path: Path) -> None:
    scores = score(predicted, write(tmp_path / "truth", [scene(n) for n in range(6)]))
    assert scores.notes == ()
    assert scores.by_photo.nearly_empty == scores.by_photo.with_things == 6


def test_0_and_255_alone_are_no_background_and_void(predicted: Path, tmp_path: Path) -> None:
    """All background would score 100: the things would be void."""
    masks = [scene(n, cat=255, dog=255) for n in range(5)]
    truth = write(tmp_path / "truth", [*masks, np.zeros((40, 60), np.uint8)])
    with pytest.raises(UserError, match=r"truth: the 6 masks hold 0 and 255 alone.*Two values cannot tell 2"):
        score(predicted, truth)
    (predicted / "labels.json").write_text('{"classes": ["background", "cat"]}')
    with pytest.raises(UserError, match=r"If 255 is a class, say so: --truth-values 0=background,255=cat$"):
        score(predicted, truth)
    scores = score(predicted, truth, truth_classes={0: "background", 255: "cat"})
    assert scores.per_class_iu["cat"] == 0.0
    assert scores.mean_iu < 50
    with pytest.raises(
        UserError, match=r"the 6 masks hold 0 and 255 alone.*--pred-values 0=background,255=cat"
    ):
        score(truth, predicted, classes=("background", "cat"), truth_classes=NAMED)
    perfect = score(
        truth, truth, classes={0: "background", 255: "cat"}, truth_classes={0: "background", 255: "cat"}
    )
    assert perfect.mean_iu == 100.0


@pytest.mark.parametrize("value", [0, 1, 255])
def test_one_answer_everywhere_is_no_truth(predicted: Path, tmp_path: Path, value: int) -> None:
    truth = write(tmp_path / "truth", [np.full((40, 60), value, np.uint8)] * 6)
    words = "every pixel of the 6 masks is 255" if value == 255 else f"show {CLASSES[value]} alone"
    with pytest.raises(UserError, match=words):
        score(predicted, truth)
    if value == 0:
        scores = score(predicted, truth, truth_classes=NAMED)
        assert scores.notes[0].startswith("The true masks show background alone")
        assert scores.by_photo.clean == 6


def test_void_that_makes_the_score_mean_little_is_told(predicted: Path, tmp_path: Path) -> None:
    masks = [scene(n) for n in range(6)]
    for mask in masks:
        mask[:15] = 255
    truth = write(tmp_path / "truth", masks)
    assert score(predicted, truth).notes == (
        "37.5 % of the true pixels are void: the score speaks of the rest alone.",
    )
    strangers = score(predicted, truth, truth_classes=("background", "zebra", "dog"))
    assert "void (with zebra, which the classes lack)" in strangers.notes[0]
    outside = [np.where(mask == 0, 255, mask).astype(np.uint8) for mask in masks]
    with pytest.raises(UserError, match=r"show no background, and .* --truth-values 255=background,1=cat"):
        score(predicted, write(tmp_path / "outside", outside))


def test_values_without_a_name_are_counted_over_the_set(predicted: Path, tmp_path: Path) -> None:
    truth = write(tmp_path / "truth", [scene(n, dog=7) for n in range(6)])
    with pytest.raises(
        UserError, match=r"m1\.png: holds the value 7.*1 values have no name \(7\), in 3 of 6 masks"
    ):
        score(predicted, truth)
    spread = write(tmp_path / "spread", [scene(n, cat=127, dog=255) for n in range(6)])
    with pytest.raises(UserError, match=r"say so: --truth-values 0=background,127=cat,255=dog$"):
        score(predicted, spread)
    assert score(predicted, spread, truth_classes={0: "background", 127: "cat", 255: "dog"}).photos == 6


@pytest.mark.parametrize("how", ["resized", "jpeg"])
def test_smoothed_edges(predicted: Path, tmp_path: Path, how: str) -> None:
    masks = [Image.fromarray(scene(n, cat=8, dog=12)) for n in range(6)]
    if how == "resized":
        small = [mask.resize((30, 20), Image.Resampling.NEAREST) for mask in masks]
        masks = [mask.resize((60, 40), Image.Resampling.BICUBIC) for mask in small]
        names: dict[str, Any] = {"truth_classes": "voc"}  # every value in between is a class of VOC
        words = r"\d+ % of the steps from class to class .* resized by nearest neighbour.*--truth-values"
    else:
        for number, mask in enumerate(masks):
            Image.fromarray(np.asarray(mask) * 20).save(tmp_path / f"{number}.jpg", quality=30)
            masks[number] = Image.open(tmp_path / f"{number}.jpg")
        names = {}
        words = r"hold \d+ values that are no class .* JPEG"
    truth = write(tmp_path / "truth", [np.asarray(mask) for mask in masks])
    with pytest.raises(UserError, match=words):
        score(predicted, truth, **names)
    if how == "resized":
        with pytest.raises(UserError, match=r"pred: .* of the steps from class to class"):
            score(
                write(tmp_path / "x" / "pred", [np.asarray(mask) for mask in masks]),
                truth,
                classes="voc",
                truth_classes=dict(enumerate(["background", *"abcdefghijklmnop"])) | {8: "cat", 12: "dog"},
            )


def test_thin_sharp_things_are_not_smoothed_edges() -> None:
    """A line of one pixel between two classes whose numbers lie around its own goes up twice, at few places."""
    mask = np.zeros((50, 50), dtype=np.uint8)
    mask[10:30, 20:] = 2
    mask[10:12, 19] = 1
    mask[:, 40] = 255  # void has no place in the order
    assert smooth_changes(mask) == (22, 2)


def test_each_mask_with_a_palette_of_its_own(predicted: Path, tmp_path: Path) -> None:
    voc = palette()[:3].ravel().tolist()
    other = [0, 0, 0, 0, 128, 0, 128, 0, 0]
    truth = write(tmp_path / "truth", [scene(2 * n) for n in range(6)], [voc, other])
    with pytest.raises(
        UserError, match=r"the number 1 is drawn \(128, 0, 0\) in .*m0\.png and \(0, 128, 0\) in"
    ):
        score(predicted, truth)
    assert "The number 1 is drawn" in score(predicted, truth, truth_classes=NAMED).notes[0]


def test_colours_that_say_otherwise_than_the_numbers(predicted: Path, tmp_path: Path) -> None:
    swapped = [0, 0, 0, 0, 128, 0, 128, 0, 0]  # 1 in the colour of 2
    truth = write(tmp_path / "truth", [scene(n) for n in range(6)], [swapped])
    with pytest.raises(UserError, match="by its number 1 is cat, by its colour, VOC's 2, it is dog"):
        score(predicted, truth)
    assert len(score(predicted, truth, truth_classes=NAMED).notes) == 1
    # The colours of VOC's own cat and dog, renumbered by names that agree with them; and colours of no meaning.
    agreeing = [*palette()[[0, 8, 12]].ravel().tolist()]
    assert score(predicted, write(tmp_path / "voc", [scene(n) for n in range(6)], [agreeing])).notes == ()
    anything = [1, 2, 3, 40, 50, 60, 7, 8, 9]
    assert score(predicted, write(tmp_path / "any", [scene(n) for n in range(6)], [anything])).notes == ()


def test_one_bit_masks_cannot_show_two_classes(predicted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "truth"
    folder.mkdir()
    for number in range(6):
        Image.fromarray(scene(number, dog=1) * np.uint8(255)).convert("1").save(folder / f"m{number}.png")
    (note,) = score(predicted, folder).notes
    assert note.startswith("6 of 6 masks have one bit a pixel: their 1 is read as cat, and no other of the 3")
