from __future__ import annotations

import numpy as np
import pytest
import torch

from milseg.config import TrainConfig
from milseg.data.bags import ABSENT, PRESENT, UNKNOWN, VOID, Bag, BagSet, load_batch
from milseg.data.image import normalise
from milseg.data.transforms import Zoom, window, zoomed_mask, zoomed_photo, zoomed_size
from milseg.errors import UserError
from milseg.training.schedule import zooms_at


def test_no_zoom_is_the_photo_at_its_training_size() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    assert np.array_equal(zoomed_photo(photo, (30, 40), Zoom()), photo)
    assert zoomed_photo(photo, (15, 20), Zoom()).shape == (15, 20, 3)


def test_a_window_of_twice_the_size_holds_the_pixels_of_its_corner_twice() -> None:
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3)
    right_bottom = zoomed_mask(mask, (2, 3), Zoom(2.0, down=1.0, across=1.0))
    assert right_bottom.tolist() == [[4, 5, 5], [4, 5, 5]]
    assert zoomed_mask(mask, (2, 3), Zoom(2.0, down=0.0, across=0.0)).tolist() == [[0, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize("factor", [0.01, 0.5, 0.73, 1.0, 1.37, 4.0])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (240, 320)])
def test_photo_and_mask_stay_alike_and_within_the_size(size: tuple[int, int], factor: float) -> None:
    for place in (0.0, 0.3, 1.0):
        zoom = Zoom(factor, place, 1 - place)
        rows, columns = window(size, zoom)
        whole = zoomed_size(size, zoom)
        assert 0 <= rows.start < rows.stop <= whole[0]
        assert 0 <= columns.start < columns.stop <= whole[1]
        photo = zoomed_photo(np.zeros((*size, 3), np.uint8), size, zoom)
        assert photo.shape[:2] == zoomed_mask(np.zeros(size, np.uint8), size, zoom).shape
        assert photo.shape[0] <= size[0]
        assert photo.shape[1] <= size[1]


def test_photo_and_mask_show_the_same_window() -> None:
    """A photo whose colours are its mask's classes: after the same zoom the two still say the same."""
    mask = np.kron(np.array([[0, 1], [2, 3]], np.uint8), np.ones((20, 30), np.uint8))
    photo = np.repeat(mask[..., None] * 60, 3, axis=2)
    for zoom in (Zoom(1.7, 0.2, 0.9), Zoom(0.6), Zoom(3.0, 0.5, 0.5)):
        seen = zoomed_photo(photo, (40, 60), zoom)[..., 0] / 60
        assert np.mean(np.abs(seen - zoomed_mask(mask, (40, 60), zoom)) < 0.2) > 0.85


def test_what_a_window_does_not_show_becomes_unknown() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[:5, :5] = 1  # a cat in the corner
    photo = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    bag = Bag(name="a", photo=photo, tags=(PRESENT, PRESENT, ABSENT), mask=mask)
    bags = BagSet(name="toy", classes=("background", "cat", "dog"), bags=(bag,), tags_from="tag file")
    away, near = Zoom(2.0, 1.0, 1.0), Zoom(2.0, 0.0, 0.0)
    for zoom, cat in ((away, UNKNOWN), (near, PRESENT), (Zoom(0.5), PRESENT)):
        batch = load_batch(bags, [0], with_masks=True, zooms=[zoom])
        assert batch.tags.tolist() == [[PRESENT, cat, ABSENT]]
    batch = load_batch(bags, [0], with_masks=True, flips=[True], zooms=[near])
    assert torch.equal(batch.images[0], normalise(zoomed_photo(photo, (20, 20), near)[:, ::-1]))
    assert batch.masks is not None
    assert (batch.masks == VOID).sum() == 0


def test_sizes_are_keyed_by_the_position_of_the_bag() -> None:
    config = TrainConfig(zoom=1.5, batch_size=50)
    first = zooms_at(0, config)
    assert first == zooms_at(0, config)
    assert first != zooms_at(1, config)
    assert first[25:] == zooms_at(1, TrainConfig(zoom=1.5, batch_size=25))
    factors = [zoom.factor for zoom in first]
    assert 1 / 1.5 <= min(factors) < 0.8 < 1.25 < max(factors) <= 1.5
    assert {zoom.factor for zoom in zooms_at(0, TrainConfig())} == {1.0}
    with pytest.raises(UserError, match=r"zoom is 0\.5; expected 1 to 4"):
        TrainConfig(zoom=0.5)
