"""yolo/: the text files, and the masks that they draw."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from numpy.typing import NDArray

from milseg.annotations.yolo import YoloWriter
from milseg.data.image import UInt8

from .helpers import CLASSES, blobs, mask_of, masks, prediction
from .test_polygons import at_centres, by_pillow


def read(path: Path, size: tuple[int, int]) -> list[tuple[int, NDArray[np.float64]]]:
    """(class, points in pixels) of each line."""
    found = []
    for line in path.read_text().splitlines():
        first, *rest = line.split(" ")
        points = np.array([float(number) for number in rest]).reshape(-1, 2)
        assert ((points > 0) & (points < 1)).all()
        assert len(points) >= 3
        found.append((int(first), points * (size[1], size[0])))
    return found


def write(out: Path, mask: UInt8) -> list[tuple[int, NDArray[np.float64]]]:
    with YoloWriter(out, CLASSES) as writer:
        writer.add(prediction("x/a", mask))
    return read(out / "yolo" / "labels" / "x" / "a.txt", mask.shape)


def test_a_file_by_hand(tmp_path: Path) -> None:
    write(tmp_path, mask_of([0, 2], [255, 0]))
    # One pixel from (1, 0) to (2, 1), a 64th of a pixel inside, over a width and a height of 2.
    text = "1 0.5078125 0.0078125 0.9921875 0.0078125 0.9921875 0.4921875 0.5078125 0.4921875\n"
    assert (tmp_path / "yolo" / "labels" / "x" / "a.txt").read_text() == text


def test_data_yaml(tmp_path: Path) -> None:
    YoloWriter(tmp_path, ["background", 'the "cat": 猫', "no", "1"]).close()
    data = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text(encoding="utf-8"))
    names = {0: 'the "cat": 猫', 1: "no", 2: "1"}
    assert data == {"path": ".", "train": "images", "val": "images", "names": names}


def test_no_class_but_the_background(tmp_path: Path) -> None:
    YoloWriter(tmp_path, ["background"]).close()
    assert yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())["names"] == {}


@pytest.mark.parametrize("value", [0, 255])
def test_nothing_to_draw_is_an_empty_file(tmp_path: Path, value: int) -> None:
    assert write(tmp_path, np.full((3, 4), value, dtype=np.uint8)) == []


def test_small_regions_are_kept(tmp_path: Path) -> None:
    mask = np.zeros((9, 9), dtype=np.uint8)
    mask[::2, ::2] = 1
    assert [(number, len(points)) for number, points in write(tmp_path, mask)] == [(0, 4)] * 25


def agreement(lines: list[tuple[int, NDArray[np.float64]]], mask: UInt8, draw: object) -> float:
    """The lowest intersection over union of a class that the mask shows."""
    assert callable(draw)
    shares = [1.0]
    for number in (1, 2):
        true = mask == number
        drawn = draw([points for label, points in lines if label == number - 1], mask.shape)
        if true.any() or drawn.any():
            shares.append(float((true & drawn).sum() / (true | drawn).sum()))
    return min(shares)


@settings(deadline=None, max_examples=50)
@given(masks(side=16))
@pytest.mark.parametrize("draw", [at_centres, by_pillow])
def test_any_mask_is_drawn_again_exactly(draw: object, mask: UInt8) -> None:
    with TemporaryDirectory() as folder:
        assert agreement(write(Path(folder), mask), mask, draw) == 1.0


@pytest.mark.parametrize("size", [(375, 500), (99, 7001)])
@pytest.mark.parametrize("draw", [at_centres, by_pillow])
def test_masks_of_photos_are_drawn_again_exactly(tmp_path: Path, size: tuple[int, int], draw: object) -> None:
    mask = blobs(*size, 3, sigma=12)
    assert agreement(write(tmp_path, mask), mask, draw) == 1.0
