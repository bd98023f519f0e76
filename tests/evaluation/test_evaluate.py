"""Scores against numbers worked by hand and a slow loop."""

import json
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from milseg.data.masks import write_mask
from milseg.data.sources.mask_names import read_labels
from milseg.errors import UserError
from milseg.evaluation.confusion import Evaluation, PhotoCounts, Scores, confusion, scores_from
from milseg.evaluation.folders import evaluate_folder

CLASSES = ["background", "cat", "dog"]
# One void pixel in the truth, one in the prediction.
TRUTH = [[0, 0, 1], [1, 2, 255]]
PREDICTION = [[0, 1, 1], [255, 1, 2]]


def slow_confusion(prediction: NDArray[np.int64], truth: NDArray[np.int64], classes: int) -> list[list[int]]:
    counts = [[0] * (classes + 1) for _ in range(classes)]
    for p, t in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if t != 255:
            counts[t][classes if p == 255 else p] += 1
    return counts


def slow_iu(prediction: NDArray[np.int64], truth: NDArray[np.int64], c: int) -> float:
    intersection = union = 0
    for p, t in zip(prediction.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if t == 255:
            continue
        intersection += p == c and t == c
        union += p == c or t == c
    return 100.0 * intersection / union if union else math.nan


def random_masks(
    seed: int, classes: int, shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    generator = np.random.default_rng(seed)
    values = np.array([*range(classes), 255])
    return generator.choice(values, shape), generator.choice(values, shape)


def test_two_by_three_by_hand() -> None:
    matrix = confusion(PREDICTION, TRUTH, 3)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[1, 1, 0, 0], [0, 1, 0, 1], [0, 1, 0, 0]]
    scores = scores_from(matrix, CLASSES, photos=1)
    # background: 1 of a union of 2. cat: 1 right; true 2, predicted 3, union 4. dog: 0 of 1 (the void pixel
    # where dog is predicted does not count).
    assert scores.per_class_iu == {"background": 50.0, "cat": 25.0, "dog": 0.0}
    assert scores.mean_iu == 25.0
    assert scores.pixel_accuracy == 40.0
    assert scores.mean_accuracy == pytest.approx((50 + 50 + 0) / 3)
    assert scores.frequency_weighted_iu == pytest.approx((2 * 50 + 2 * 25 + 1 * 0) / 5)
    assert scores.predicted_share == {"background": 20.0, "cat": 60.0, "dog": 0.0}
    assert scores.photos == 1


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_slow_loops(seed: int) -> None:
    prediction, truth = random_masks(seed, 5, (2, 9, 11))
    matrix = confusion(prediction, truth, 5)
    assert matrix.tolist() == slow_confusion(prediction, truth, 5)
    scores = scores_from(matrix, "abcde", photos=2)
    for c, name in enumerate("abcde"):
        assert scores.per_class_iu[name] == pytest.approx(slow_iu(prediction, truth, c))


@pytest.mark.parametrize("length", [1, 9, 40])
@pytest.mark.parametrize("block", [50, 1 << 20])
def test_runs_of_equal_pixels_agree_with_slow_loops(
    length: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Runs are counted as one where they are long, and may go on from one block to the next.
    monkeypatch.setattr("milseg.evaluation.confusion._BLOCK", block)
    prediction, truth = (np.repeat(part, length)[7:] for part in random_masks(length, 5, (60,)))
    truth = np.roll(truth, 3)
    assert confusion(prediction, truth, 5).tolist() == slow_confusion(prediction, truth, 5)
    truth[-1] = 17
    with pytest.raises(UserError, match="truth: holds the value 17"):
        confusion(prediction, truth, 5)


@given(
    parts=st.lists(st.tuples(st.integers(0, 99), st.integers(1, 6), st.integers(1, 6)), max_size=5),
    classes=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_merged_parts_equal_one_pass_and_the_pure_functions(
    parts: list[tuple[int, int, int]], classes: int
) -> None:
    names = [str(c) for c in range(classes)]
    whole, merged = Evaluation(names), Evaluation(names)
    pairs = [random_masks(seed, classes, (height, width)) for seed, height, width in parts]
    for prediction, truth in pairs:
        whole.update(prediction, truth)
        part = Evaluation(names)
        part.update(prediction, truth)
        merged.merge(part)
    joined = [np.concatenate([pair[i].ravel() for pair in pairs] or [np.zeros(0, np.int64)]) for i in (0, 1)]
    pure = confusion(joined[0], joined[1], classes)
    np.testing.assert_array_equal(whole.matrix, pure)
    np.testing.assert_array_equal(merged.matrix, pure)
    assert repr(merged.compute()) == repr(whole.compute())
    assert repr(replace(whole.compute(), by_photo=None)) == repr(scores_from(pure, names, len(parts)))


@given(seed=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_void_pixels_change_nothing_and_the_truth_scores_100(seed: int) -> None:
    prediction, truth = random_masks(seed, 4, (5, 6))
    other = np.where(truth == 255, random_masks(seed + 1, 4, (5, 6))[0], prediction)
    np.testing.assert_array_equal(confusion(prediction, truth, 4), confusion(other, truth, 4))
    perfect = scores_from(confusion(truth, truth, 4), "abcd", 1)
    assert perfect.mean_iu == perfect.pixel_accuracy == perfect.frequency_weighted_iu == 100.0


def test_an_absent_class_is_nan_and_its_false_positives_score_0() -> None:
    clean = scores_from(confusion([0, 0, 0, 1], [0, 0, 0, 1], 3), CLASSES, photos=1)
    assert math.isnan(clean.per_class_iu["dog"])
    assert clean.mean_iu == 100
    scores = scores_from(confusion([0, 0, 2, 1], [0, 0, 0, 1], 3), CLASSES, photos=1)
    assert scores.per_class_iu["dog"] == 0
    assert scores.per_class_iu["background"] == pytest.approx(200 / 3)
    assert scores.mean_iu == pytest.approx((200 / 3 + 100 + 0) / 3)
    assert scores.mean_accuracy == pytest.approx((200 / 3 + 100) / 2)


def test_all_void_is_undefined_not_zero() -> None:
    evaluation = Evaluation(CLASSES)
    evaluation.update(np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8))
    scores = evaluation.compute()
    assert scores.photos == 1
    values = (scores.mean_iu, scores.pixel_accuracy, scores.mean_accuracy, scores.frequency_weighted_iu)
    assert all(math.isnan(value) for value in (*values, *scores.per_class_iu.values()))


def test_mean_iu_is_of_the_whole_set_not_of_each_photo() -> None:
    evaluation = Evaluation(["background", "cat"])
    evaluation.update([[1]], [[1]])
    evaluation.update([[0, 0, 0]], [[1, 1, 0]])
    # cat: 1 of 3; background: 1 of 3.
    assert evaluation.compute().mean_iu == pytest.approx(100 / 3)


def test_what_single_photos_show() -> None:
    """A tenth of ten pixels is enough; a tenth of twenty is two. Void counts for nothing."""
    evaluation = Evaluation(CLASSES)
    ten, twenty = [1] * 10 + [0] * 5, [2] * 20
    evaluation.update([1] + [0] * 14, ten)  # one of ten: not nearly empty
    evaluation.update([2] + [0] * 19, twenty)  # one of twenty: nearly empty, but no tag without a pixel
    evaluation.update([2] * 10 + [0] * 5, ten)  # the wrong class: not empty, and no pixel of the cat
    evaluation.update([0, 0, 1], [0, 0, 0])  # a clean photo with a mask
    evaluation.update([0, 255, 1], [0, 0, 255])  # a clean photo without one
    evaluation.update([1], [255])  # nothing is known of it
    counts = evaluation.compute().by_photo
    assert counts == PhotoCounts(
        with_things=3, nearly_empty=1, tags=3, tags_without_pixel=1, clean=2, false_alarms=1
    )
    assert counts is not None
    assert counts.to_json() == {
        "nearly_empty": {"count": 1, "of": 3, "share": pytest.approx(100 / 3)},
        "tags_without_pixel": {"count": 1, "of": 3, "share": pytest.approx(100 / 3)},
        "false_alarms": {"count": 1, "of": 2, "share": 50.0},
    }
    table = evaluation.compute().table()
    assert "| photos with a nearly empty mask (1 of 3) | 33.33 |" in table
    assert "| tags without a pixel (1 of 3) | 33.33 |" in table
    assert "| clean photos with a mask (1 of 2) | 50.00 |" in table
    assert Evaluation(CLASSES).compute().to_json()["by_photo"]["false_alarms"]["share"] is None


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.int64])
def test_integer_types_and_tensors(kind: type[np.integer]) -> None:
    expected = confusion(PREDICTION, TRUTH, 3).tolist()
    assert confusion(np.array(PREDICTION, dtype=kind), np.array(TRUTH, dtype=kind), 3).tolist() == expected
    assert confusion(torch.tensor(PREDICTION), torch.tensor(TRUTH), 3).tolist() == expected


def test_255_classes_and_no_pixels() -> None:
    values = np.arange(256, dtype=np.uint8)
    assert np.trace(confusion(values, values, 255)) == 255
    assert confusion(np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.uint8), 2).tolist() == [
        [0, 0, 0],
        [0, 0, 0],
    ]


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        ([[3]], [[0]], "prediction: holds the value 3"),
        ([[0]], [[7]], "truth: holds the value 7"),
        ([[3]], [[255]], "prediction: holds the value 3"),
        ([[-1]], [[0]], "prediction: holds values from -1"),
        ([[0]], [[300]], "truth: holds values from 300"),
        ([[0.5]], [[0]], "float64"),
        ([[0, 1]], [[0], [1]], "differ in shape"),
    ],
)
def test_wrong_values_are_named(prediction: list[list[int]], truth: list[list[int]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        confusion(prediction, truth, 3)


def test_memory_stays_bounded_on_a_big_photo() -> None:
    mask = np.zeros((5000, 4000), dtype=np.uint8)  # 20 MB; as int64 it would be 160 MB
    tracemalloc.start()
    matrix = confusion(mask, mask, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert matrix[0, 0] == mask.size
    assert peak < 40_000_000


def test_evaluations_of_other_classes_do_not_merge() -> None:
    with pytest.raises(ValueError, match="different classes"):
        Evaluation(["a"]).merge(Evaluation(["b"]))
    with pytest.raises(ValueError, match=r"expected a matrix \[2, 3\]"):
        scores_from(np.zeros((2, 2), np.int64), ["a", "b"], 0)
    with pytest.raises(UserError, match="each once"):
        Evaluation(["a", "a"])
    assert Evaluation(["a"]).matrix.shape == (1, 2)
    assert Evaluation([str(number) for number in range(255)]).matrix.shape == (255, 256)
    with pytest.raises(UserError, match="0 classes"):
        Evaluation([])


def test_json_and_table() -> None:
    scores = Scores(
        mean_iu=25.051,
        per_class_iu={"background": 50.0, "cat": math.nan},
        pixel_accuracy=70.0,
        mean_accuracy=60.0,
        frequency_weighted_iu=math.nan,
        predicted_share={"background": 90.0, "cat": 10.0},
        photos=3,
        notes=("One note.",),
    )
    data = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert data["per_class_iu"] == {"background": 50.0, "cat": None}
    assert data["frequency_weighted_iu"] is None
    assert (data["mean_iu"], data["photos"], data["notes"]) == (25.051, 3, ["One note."])
    lines = scores.table().splitlines()
    assert lines[:4] == ["| | % |", "|---|---:|", "| background | 50.00 |", "| cat | - |"]
    assert lines[4:9] == [
        "| **mean IU** | 25.05 |",
        "| pixel accuracy | 70.00 |",
        "| mean accuracy | 60.00 |",
        "| frequency-weighted IU | - |",
        "",
    ]
    assert lines[-2:] == ["3 photos.", "One note."]


def put(folder: Path, name: str, rows: list[list[int]]) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mask(path, np.array(rows, dtype=np.uint8))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    predictions, truth = tmp_path / "out" / "masks", tmp_path / "truth"
    put(predictions, "a.png", PREDICTION)
    put(truth, "a.png", TRUTH)
    put(predictions, "sub/a.png", [[2, 2]])
    put(truth, "sub/a.png", [[2, 0]])
    (predictions.parent / "labels.json").write_text(json.dumps({"classes": CLASSES}))
    return predictions, truth


def scores_alone(*folders: Path, **given: Any) -> Scores:
    """What the confusion matrix of the set gives."""
    return replace(evaluate_folder(*folders, **given), by_photo=None)


def test_folder_agrees_with_the_pure_functions(folders: tuple[Path, Path]) -> None:
    matrix = confusion(PREDICTION, TRUTH, 3) + confusion([[2, 2]], [[2, 0]], 3)
    assert scores_alone(*folders) == scores_from(matrix, CLASSES, 2)
    assert scores_alone(*folders, classes=CLASSES, names=["a"]) == scores_from(
        confusion(PREDICTION, TRUTH, 3),
        CLASSES,
        1,
        notes=["1 predictions without a true mask were left out."],
    )


def test_folder_matches_classes_by_name(folders: tuple[Path, Path]) -> None:
    predictions, truth = folders
    # VOC's numbers: cat 8, dog 12, person 15, which the predictions do not know.
    put(truth, "a.png", [[0, 0, 8], [8, 12, 255]])
    put(truth, "sub/a.png", [[12, 15]])
    scores = evaluate_folder(predictions, truth, truth_classes="voc")
    expected = confusion(PREDICTION, TRUTH, 3) + confusion([[2, 2]], [[2, 255]], 3)
    assert scores.per_class_iu == scores_from(expected, CLASSES, 2).per_class_iu
    assert len(scores.notes) == 1
    assert scores.notes[0].startswith("Scored as void, as the predictions do not know them: aeroplane")


def test_folder_reads_the_truths_own_labels(folders: tuple[Path, Path]) -> None:
    predictions, truth = folders
    labels = {"classes": ["background", "dog", "cat"]}
    put(truth, "a.png", [[0, 0, 2], [2, 1, 255]])
    put(truth, "sub/a.png", [[1, 0]])
    (truth / "labels.json").write_text(json.dumps(labels))
    expected = confusion(PREDICTION, TRUTH, 3) + confusion([[2, 2]], [[2, 0]], 3)
    assert scores_alone(predictions, truth) == scores_from(expected, CLASSES, 2)
    assert scores_alone(predictions, truth, truth_classes=labels["classes"]) == scores_from(
        expected, CLASSES, 2
    )


def test_folder_notes_a_class_that_the_truth_lacks(folders: tuple[Path, Path]) -> None:
    scores = evaluate_folder(*folders, classes=[*CLASSES, "zebra"], truth_classes=CLASSES)
    assert math.isnan(scores.per_class_iu["zebra"])
    put(folders[0], "a.png", [[3, 0, 1], [0, 1, 1]])
    scores = evaluate_folder(*folders, classes=[*CLASSES, "zebra"], truth_classes=CLASSES)
    assert math.isnan(scores.per_class_iu["zebra"])
    assert scores.notes == ("Never scored, as the truth does not know them: zebra.",)


def test_hidden_files_and_other_files_are_left_alone(folders: tuple[Path, Path]) -> None:
    before = evaluate_folder(*folders)
    for folder in folders:
        (folder / ".a.1-2.tmp.png").write_bytes(b"half")
        (folder / "notes.txt").write_text("x")
    assert evaluate_folder(*folders) == before


def test_missing_predictions(folders: tuple[Path, Path]) -> None:
    put(folders[1], "b/c.png", [[0]])
    put(folders[1], "b/d.png", [[0]])
    with pytest.raises(UserError, match=r"2 of 4 true masks have no prediction, the first is b/c"):
        evaluate_folder(*folders)


def test_masks_of_different_sizes(folders: tuple[Path, Path]) -> None:
    put(folders[0], "sub/a.png", [[0, 0, 0]])
    with pytest.raises(UserError, match=r"masks/sub/a\.png: 3 x 1 pixels, but .*truth/sub/a\.png has 2 x 1"):
        evaluate_folder(*folders)


@pytest.mark.parametrize("which", [0, 1])
def test_a_value_without_a_name(folders: tuple[Path, Path], which: int) -> None:
    put(folders[which], "sub/a.png", [[0, 9]])
    with pytest.raises(UserError, match=r"sub/a\.png: holds the value 9, but only 3 classes"):
        evaluate_folder(*folders)


def test_empty_and_missing_folders(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no PNG masks"):
        evaluate_folder(folders[0], tmp_path / "empty")
    with pytest.raises(UserError, match="empty: holds no PNG masks"):
        evaluate_folder(tmp_path / "empty", folders[1], classes=CLASSES)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        evaluate_folder(folders[0], tmp_path / "nowhere")
    with pytest.raises(UserError, match="1 of the 2 masks to score are not there, the first is z"):
        evaluate_folder(*folders, names=["a", "z"])


def test_two_masks_of_one_name(folders: tuple[Path, Path]) -> None:
    put(folders[1], "a.png", TRUTH)
    (folders[1] / "a.PNG").write_bytes((folders[1] / "a.png").read_bytes())
    if len(list(folders[1].iterdir())) < 3:
        pytest.skip("this disk does not tell a.png from a.PNG")
    with pytest.raises(UserError, match="two masks named a"):
        evaluate_folder(*folders)


def test_a_damaged_mask_is_named(folders: tuple[Path, Path]) -> None:
    (folders[0] / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"masks/a\.png"):
        evaluate_folder(*folders)


def test_without_names_or_with_none_in_common(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="share no name besides background"):
        evaluate_folder(*folders, truth_classes=["background", "zebra"])
    (folders[0].parent / "labels.json").unlink()
    with pytest.raises(UserError, match=r"no labels\.json"):
        evaluate_folder(*folders)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a JSON file"),
        ("[]", "expected"),
        ('{"classes": []}', "expected"),
        ('{"classes": ["a", 1]}', "expected"),
        ('{"classes": ["a", "a"]}', "each once"),
    ],
)
def test_damaged_labels(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_labels(path)
    with pytest.raises(UserError, match="no such file"):
        read_labels(tmp_path / "none.json")
