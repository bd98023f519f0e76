"""Figures: the file is there, has the right size, and the right colours are in the right places."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from milseg.data.image import UInt8, open_photo
from milseg.figures import curves, figure1, loss_map_figure, mask_picture, score_bars

CLASSES = ["background", "cat", "dog", "horse"]
CAT, DOG, HORSE = (230, 159, 0), (86, 180, 233), (0, 158, 115)  # Okabe's and Ito's first three


def count(picture: UInt8, colour: tuple[int, int, int]) -> int:
    return int((picture == colour).all(axis=-1).sum())


def scene(number: int, height: int = 60, width: int = 80) -> tuple[UInt8, UInt8, UInt8]:
    photo = np.full((height, width, 3), (10, 200, 240), dtype=np.uint8)
    truth = np.zeros((height, width), dtype=np.uint8)
    truth[10:50, 20:60] = 255
    truth[15:45, 25:55] = number
    return photo, truth, np.where(truth == 255, 0, truth).astype(np.uint8)


def test_mask_picture_stripes_void() -> None:
    picture = mask_picture(np.array([[0, 1, 255, 255, 255, 255]], dtype=np.uint8), CLASSES)
    assert picture[0, :2].tolist() == [[0, 0, 0], list(CAT)]
    assert {tuple(pixel) for pixel in picture[0, 2:].tolist()} == {(255, 255, 255), (190, 190, 190)}


def test_figure1_columns_colours_and_legend(tmp_path: Path) -> None:
    path = tmp_path / "figure1.png"
    figure1([scene(1), scene(2)], CLASSES, path)
    picture = open_photo(path)
    third = picture.shape[1] // 3
    photos, truths, outputs = picture[:, :third], picture[:, third : 2 * third], picture[:, 2 * third :]
    assert count(photos, (10, 200, 240)) > 100_000
    assert count(truths, (10, 200, 240)) == count(outputs, (10, 200, 240)) == 0
    for column in (truths, outputs):
        assert count(column, CAT) > 10_000
        assert count(column, DOG) > 10_000
    # Void is in the truth column (besides its legend patch, which is small).
    assert count(truths, (190, 190, 190)) > 3_000 > count(outputs, (190, 190, 190))
    # Rows in the order given: the cat above the dog.
    assert np.argwhere((truths == CAT).all(-1))[0, 0] < np.argwhere((truths == DOG).all(-1))[0, 0]
    # The legend, below the pictures, has the classes that appear and no others.
    strip = picture[-70:]
    assert count(strip, CAT) > 50
    assert count(strip, DOG) > 50
    assert count(strip, HORSE) == 0


def test_figure1_with_more_columns_and_mixed_sizes(tmp_path: Path) -> None:
    rows = [
        (*scene(1), scene(2)[2]),
        (*scene(3, 90, 50), scene(1, 90, 50)[2]),
        (*scene(2, 1 + 60, 1 + 60), scene(2, 61, 61)[2]),
    ]
    figure1(rows, CLASSES, tmp_path / "a.png", titles=("input", "ground truth", "MIL-FCN", "oracle"))
    figure1(rows[:1], CLASSES, tmp_path / "b.png", titles=("input", "ground truth", "MIL-FCN", "oracle"))
    large, small = open_photo(tmp_path / "a.png"), open_photo(tmp_path / "b.png")
    assert large.shape[1] == small.shape[1] == round(150 * (4 * (2.4 + 0.08) + 0.08))
    assert large.shape[0] > 2.5 * small.shape[0]
    with pytest.raises(ValueError, match="rows of 3 pictures"):
        figure1(rows, CLASSES, tmp_path / "c.png")
    with pytest.raises(ValueError, match="got rows of"):
        figure1([], CLASSES, tmp_path / "c.png")
    assert not (tmp_path / "c.png").exists()


def test_figure1_keeps_many_long_names_inside(tmp_path: Path) -> None:
    names = ["background", *(f"a rather long class name {i}" for i in range(12))]
    truth = np.repeat(np.arange(13, dtype=np.uint8), 10)[None].repeat(40, axis=0)
    figure1([(np.zeros((40, 130, 3), np.uint8), truth, truth)], names, tmp_path / "a.png")
    picture = open_photo(tmp_path / "a.png")
    for edge in (picture[:, :4], picture[:, -4:], picture[:3], picture[-3:]):
        assert (edge == 255).all()


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        figure1([scene(1)], CLASSES, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def records(steps: int, loss: float = 1.0) -> list[dict[str, Any]]:
    return [
        {"step": i, "loss": loss / (1 + i), "learning_rate": 1e-3, "images_per_second": 5.0}
        for i in range(steps)
    ]


BLUE, ORANGE = (31, 119, 180), (255, 127, 14)


def test_curves_of_one_run_and_of_two(tmp_path: Path) -> None:
    curves(records(300), tmp_path / "one.png", title="digits")
    curves({"MIL-FCN": records(300), "oracle": records(200, 2.0)}, tmp_path / "two.png")
    one, two = open_photo(tmp_path / "one.png"), open_photo(tmp_path / "two.png")
    assert one.shape == two.shape == (750, 1050, 3)
    assert count(one, BLUE) > 500
    assert count(one, ORANGE) == 0
    assert count(two, BLUE) > 300
    assert count(two, ORANGE) > 300


@pytest.mark.parametrize(
    "metrics",
    [
        [],
        records(1),
        {"empty": []},
        [
            {"step": 0, "loss": math.nan},
            {"step": 1, "loss": math.inf},
            {"step": 2, "loss": None},
            {"event": "saved"},
        ],
        [{"step": i, "loss": math.nan if i % 50 == 0 else 1.0, "learning_rate": 0.0} for i in range(200)],
    ],
)
@pytest.mark.filterwarnings("error")
def test_curves_of_odd_records(tmp_path: Path, metrics: Any) -> None:
    curves(metrics, tmp_path / "a.png")
    assert open_photo(tmp_path / "a.png").std() > 1


def maps() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    loss_map = np.random.default_rng(0).random((4, 3, 4)).astype(np.float32)
    weights = np.zeros_like(loss_map)
    weights[0, 0, 0] = weights[2, 2, 3] = 0.5
    return loss_map, weights


@pytest.mark.filterwarnings("error")
def test_loss_map_figure_draws_the_taught_classes_and_marks_the_places(tmp_path: Path) -> None:
    loss_map, weights = maps()
    photo = np.full((60, 80, 3), (200, 60, 220), dtype=np.uint8)
    loss_map_figure(photo, loss_map, weights, CLASSES, tmp_path / "two.png")
    weights[3] = 0.1
    weights[3, 1] = -0.1
    loss_map_figure(photo, loss_map, weights, CLASSES, tmp_path / "three.png")
    two, three = open_photo(tmp_path / "two.png"), open_photo(tmp_path / "three.png")
    assert two.shape[1] < three.shape[1]
    # On the photo the mark of dog is green and lies in the last cell: right of the middle, below it.
    where = np.argwhere((two == DOG).all(-1))
    inside = np.argwhere((two == (200, 60, 220)).all(-1))
    assert len(where) > 20
    assert (where.mean(axis=0) > inside.mean(axis=0)).all()
    assert count(three, (255, 0, 0)) > 20
    assert count(two, (255, 0, 0)) == 0


@pytest.mark.filterwarnings("error")
def test_loss_map_figure_without_weights_and_with_infinite_losses(tmp_path: Path) -> None:
    loss_map, weights = maps()
    photo = np.full((60, 80, 3), (200, 60, 220), dtype=np.uint8)
    loss_map_figure(photo, loss_map, np.zeros_like(weights), CLASSES, tmp_path / "a.png")
    assert count(open_photo(tmp_path / "a.png"), (200, 60, 220)) > 50_000
    loss_map[0, 1, 1] = math.inf
    loss_map_figure(photo, loss_map, weights, CLASSES, tmp_path / "b.png")
    with pytest.raises(ValueError, match="expected loss map"):
        loss_map_figure(photo, loss_map[:2], weights, CLASSES, tmp_path / "c.png")


@pytest.mark.filterwarnings("error")
def test_score_bars_are_as_long_as_the_scores(tmp_path: Path) -> None:
    rows = [("baseline", 10.0), ("mil-fcn", 20.0), ("oracle", 40.0), ("vgg16", math.nan)]
    score_bars(rows, tmp_path / "a.png")
    blue = (open_photo(tmp_path / "a.png") == BLUE).all(-1)
    lengths = sorted({int(n) for n in blue.sum(axis=1)} - {0})
    assert len(lengths) == 3
    assert lengths[2] / lengths[0] == pytest.approx(4, rel=0.03)
    assert lengths[1] / lengths[0] == pytest.approx(2, rel=0.03)
    score_bars(rows, tmp_path / "b.png", paper={"mil-fcn": 25.05, "unknown": 1.0}, title="digits")
    assert count(open_photo(tmp_path / "b.png"), (127, 127, 127)) > 100
    score_bars([], tmp_path / "c.png")


def test_no_global_plotting_state() -> None:
    code = "import sys, milseg.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
