"""Overlays: the photo tinted by hand, and the names on it."""

from __future__ import annotations

import numpy as np
import pytest

from milseg.data.image import UInt8
from milseg.data.overlay import legend, mask_colours, name_centres, overlay

CLASSES = ("background", "cat", "dog")


def mask_of(rows: list[list[int]]) -> UInt8:
    return np.array(rows, dtype=np.uint8)


def test_overlay_by_hand() -> None:
    photo = np.full((1, 3, 3), 100, dtype=np.uint8)
    mask = mask_of([[0, 1, 255]])
    tinted = overlay(photo, mask, ["background", "cat"], alpha=0.5)
    assert tinted.dtype == np.uint8
    # 0.5 * 100 + 0.5 * (230, 159, 0) = (165, 129.5, 50); void: 0.5 * 100 + 0.5 * 255 = 177.5. Halves go to the even.
    assert tinted.tolist() == [[[100, 100, 100], [165, 130, 50], [178, 178, 178]]]
    assert overlay(photo, mask, ["cat", "dog"], alpha=1.0)[0, 0].tolist() == [230, 159, 0]
    np.testing.assert_array_equal(overlay(photo, mask, ["background", "cat"], alpha=0.0), photo)
    assert (photo == 100).all()


def test_overlay_refuses_what_does_not_fit() -> None:
    photo = np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(ValueError, match="differ"):
        overlay(photo, np.zeros((3, 2), np.uint8), ["background"])
    with pytest.raises(ValueError, match="alpha"):
        overlay(photo, np.zeros((2, 3), np.uint8), ["background"], alpha=1.5)


def test_legend_names_what_appears_in_any_mask() -> None:
    rows = legend([mask_of([[0, 255]]), mask_of([[2, 0]])], ["background", "cat", "dog"])
    assert rows == [(0, "background", (0, 0, 0)), (2, "dog", (86, 180, 233)), (255, "void", (255, 255, 255))]


def scene(height: int = 200, width: int = 300) -> tuple[UInt8, UInt8]:
    """A grey photo with a large cat, a small one, and a dog at the right edge."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[20:140, 20:160] = 1
    mask[170:180, 10:20] = 1
    mask[30:190, 240:] = 2
    return np.full((height, width, 3), 128, dtype=np.uint8), mask


def test_a_name_stands_inside_the_largest_region_of_its_class() -> None:
    photo, mask = scene()
    (cat, row, column), (dog, dog_row, dog_column) = name_centres(mask, CLASSES)
    assert (cat, dog) == ("cat", "dog")
    assert 60 <= row <= 100
    assert 60 <= column <= 120
    assert mask[dog_row, dog_column] == 2
    bare, named = overlay(photo, mask, CLASSES, names=False), overlay(photo, mask, CLASSES)
    changed = (bare != named).any(axis=2)
    assert {1, 2} <= set(mask[changed].tolist())
    # The background has no name, and nothing is written far from the regions' middles.
    assert not changed[:20].any()
    assert not changed[150:, :200].any()
    assert np.array_equal(photo, scene()[0])  # the photo itself stays as it is


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (99, 400)])
def test_a_small_photo_has_no_names(size: tuple[int, int]) -> None:
    photo, mask = np.full((*size, 3), 128, dtype=np.uint8), np.ones(size, dtype=np.uint8)
    assert np.array_equal(overlay(photo, mask, CLASSES), overlay(photo, mask, CLASSES, names=False))


@pytest.mark.parametrize("name", ["x" * 200, "Ünïçödé Кошка", "猫", "a\nb"])
def test_any_name_can_be_written(name: str) -> None:
    photo, mask = scene(120, 100)
    assert overlay(photo, mask[:120, :100], ("background", name, "dog")).shape == photo.shape


def test_without_a_background_the_first_class_has_a_colour() -> None:
    assert mask_colours(["cat", "dog"])[:2].tolist() == mask_colours(CLASSES)[1:3].tolist()
    assert len({tuple(colour) for colour in mask_colours(CLASSES).tolist()}) == 256
