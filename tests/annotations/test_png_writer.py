"""masks/ and overlays/."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from milseg.annotations.png import PngWriter
from milseg.data.image import open_mask, open_photo
from milseg.data.overlay import overlay
from milseg.errors import UserError

from .helpers import CLASSES, blobs, mask_of, prediction, save_photo


def test_the_tree_of_the_photos_is_kept(tmp_path: Path) -> None:
    with PngWriter(tmp_path, CLASSES) as writer:
        for name in ("a", "x/a", "x/y/a.b"):
            writer.add(prediction(name, mask_of([0, 1, 255])))
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("a*.*"))
    assert found == [
        "masks/a.png", "masks/x/a.png", "masks/x/y/a.b.png",
        "overlays/a.jpg", "overlays/x/a.jpg", "overlays/x/y/a.b.jpg",
    ]  # fmt: skip
    assert open_mask(tmp_path / "masks" / "x" / "a.png").tolist() == [[0, 1, 255]]
    assert writer.close() == [tmp_path / "masks", tmp_path / "overlays"]


def test_the_overlay_is_that_of_masks_overlay(tmp_path: Path) -> None:
    mask = blobs(30, 40, 3)
    photo = save_photo(tmp_path / "in" / "a.png", 30, 40)
    with PngWriter(tmp_path, CLASSES, overlay_suffix=".png") as writer:
        writer.add(prediction("a", mask, photo=None, photo_path=photo, photo_file="a.png"))
    shown = open_photo(tmp_path / "overlays" / "a.png")
    np.testing.assert_array_equal(shown, overlay(open_photo(photo), mask, CLASSES))


def test_a_jpeg_overlay_is_near_it(tmp_path: Path) -> None:
    with PngWriter(tmp_path, CLASSES) as writer:
        writer.add(prediction("a", np.full((32, 32), 1, dtype=np.uint8)))
    # Grey 100 and red (128, 0, 0), half each.
    middle = open_photo(tmp_path / "overlays" / "a.jpg")[16, 16].astype(int)
    assert np.abs(middle - [165, 130, 50]).max() <= 4


def test_overlays_can_be_left_out(tmp_path: Path) -> None:
    with PngWriter(tmp_path, CLASSES, overlays=False) as writer:
        writer.add(prediction("a", mask_of([1]), photo=None))
    assert not (tmp_path / "overlays").exists()
    with Image.open(tmp_path / "masks" / "a.png") as image:
        assert image.mode == "P"


def test_a_photo_over_the_limit_is_refused(tmp_path: Path) -> None:
    photo = save_photo(tmp_path / "a.png", 20, 20)
    with PngWriter(tmp_path / "out", CLASSES, max_pixels=399) as writer:
        one = prediction("a", np.zeros((20, 20), dtype=np.uint8), photo=None, photo_path=photo)
        with pytest.raises(UserError, match="more than the limit of 399"):
            writer.add(one)
        assert not writer.done


def test_an_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="overlay suffix"):
        PngWriter(tmp_path, CLASSES, overlay_suffix=".jpeg")


def test_a_jpeg_overlay_has_quality_90(tmp_path: Path) -> None:
    with PngWriter(tmp_path, CLASSES) as writer:
        writer.add(prediction("a", mask_of([1, 0])))
    Image.new("RGB", (8, 8)).save(tmp_path / "wanted.jpg", quality=90)
    with Image.open(tmp_path / "overlays" / "a.jpg") as image, Image.open(tmp_path / "wanted.jpg") as wanted:
        assert image.quantization == wanted.quantization
