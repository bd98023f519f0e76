from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import milseg.data.bags
import milseg.data.image
from milseg.data.bags import (
    ABSENT,
    PRESENT,
    UNKNOWN,
    VOID,
    Bag,
    BagSet,
    load_mask,
    make_tags,
    mask_values_for,
)
from milseg.data.loader import Example, collate, load_batch
from milseg.errors import UserError

CLASSES = ("background", "cat", "dog")
MASK = np.array([[0, 1, 2], [255, 1, 0]], dtype=np.uint8)


def photo(height: int, width: int, value: int = 100) -> np.ndarray:
    return np.full((height, width, 3), value, dtype=np.uint8)


def one(
    mask: np.ndarray | Path | None, *, values: np.ndarray | None = None, size: tuple[int, int] = (2, 3)
) -> BagSet:
    bag = Bag(name="a", photo=photo(*size), tags=(1, 1, 0), mask=mask)
    return BagSet(name="set", classes=CLASSES, bags=(bag,), tags_from="tag file", mask_values=values)


def test_make_tags() -> None:
    assert make_tags(["dog"], CLASSES) == (PRESENT, ABSENT, PRESENT)
    assert make_tags([], CLASSES) == (PRESENT, ABSENT, ABSENT)
    assert make_tags(["dog"], CLASSES, unknown=["cat", "dog"]) == (PRESENT, UNKNOWN, PRESENT)
    # Scenes whose tags name everything have no background class.
    assert make_tags(["sky"], ["sky", "grass"]) == (PRESENT, ABSENT)


def test_set_counts_and_takes() -> None:
    bags = tuple(
        Bag(name=n, photo=photo(1, 1), tags=t)
        for n, t in (("a", (1, 1, 0)), ("b", (1, -1, 0)), ("c", (1, 1, 1)))
    )
    bag_set = BagSet(name="set", classes=CLASSES, bags=bags, tags_from="tag file", notes=("odd",))
    assert len(bag_set) == 3
    assert bag_set.tag_counts() == {"background": 3, "cat": 2, "dog": 1}
    part = bag_set.take([2, 0])
    assert [bag.name for bag in part.bags] == ["c", "a"]
    assert part.notes == ("odd",)


def test_mask_values_send_other_classes_and_unused_values_to_void() -> None:
    table = mask_values_for(["background", "dog", "cat"], {0: "background", 7: "cat", 8: "sofa", 12: "dog"})
    assert table.dtype == np.uint8
    assert table.shape == (256,)
    assert {i: int(v) for i, v in enumerate(table) if v != VOID} == {0: 0, 7: 2, 12: 1}
    stored = np.array([[0, 7, 8], [12, 255, 99]], dtype=np.uint8)
    bag_set = one(stored, values=table)
    assert load_mask(bag_set.bags[0], bag_set).tolist() == [[0, 2, 255], [1, 255, 255]]


def test_load_mask_from_a_file_and_from_pixels(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(MASK).save(path)
    for mask in (MASK, path):
        bag_set = one(mask)
        np.testing.assert_array_equal(load_mask(bag_set.bags[0], bag_set, size=(2, 3)), MASK)


def test_load_mask_errors(tmp_path: Path) -> None:
    bag_set = one(None)
    with pytest.raises(UserError, match="a: has no mask"):
        load_mask(bag_set.bags[0], bag_set)
    bag_set = one(MASK + (MASK == 2))
    with pytest.raises(UserError, match=r"a: holds the value 3; expected class numbers 0 to 2, or 255"):
        load_mask(bag_set.bags[0], bag_set)
    path = tmp_path / "x.png"
    Image.fromarray(MASK).save(path)
    bag_set = one(path, size=(3, 2))
    with pytest.raises(UserError, match=r"x\.png: mask of 3 x 2 pixels for a photo of 2 x 3"):
        load_batch(bag_set, [0], with_masks=True)
    # Without masks the same set is read: the mask stays closed.
    assert load_batch(bag_set, [0]).masks is None


def test_collate_pads_at_the_right_and_the_bottom() -> None:
    images = [torch.ones(3, 2, 3), torch.full((3, 1, 4), 2.0)]
    masks = [MASK, np.array([[2, 2, 2, 2]], dtype=np.uint8)]
    tags = [(1, 0, -1), (1, 1, 0)]
    examples = [
        Example(name=name, image=image, tags=tag, mask=mask)
        for name, image, tag, mask in zip("ab", images, tags, masks, strict=True)
    ]
    batch = collate(examples)
    assert batch.images.shape == (2, 3, 2, 4)
    assert batch.images[0, 0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0]]
    assert batch.images[1, 2].tolist() == [[2, 2, 2, 2], [0, 0, 0, 0]]
    assert batch.sizes.tolist() == [[2, 3], [1, 4]]
    assert batch.tags.tolist() == [[1, 0, -1], [1, 1, 0]]
    assert batch.tags.dtype == torch.int8
    assert batch.masks is not None
    assert batch.masks[0].tolist() == [[0, 1, 2, 255], [255, 1, 0, 255]]
    assert batch.masks[1].tolist() == [[2, 2, 2, 2], [255, 255, 255, 255]]
    assert batch.names == ("a", "b")
    moved = batch.to(torch.device("cpu"))
    assert moved.masks is not None
    assert moved.names == batch.names


def test_longest_side_makes_smaller_and_keeps_class_numbers() -> None:
    bag = Bag(name="a", photo=photo(40, 80), tags=(1, 1, 0), mask=np.full((40, 80), 2, dtype=np.uint8))
    bag_set = BagSet(name="set", classes=CLASSES, bags=(bag,), tags_from="masks")
    batch = load_batch(bag_set, [0], longest_side=20, with_masks=True)
    assert batch.sizes.tolist() == [[10, 20]]
    assert batch.masks is not None
    assert batch.masks.unique().tolist() == [2]
    assert load_batch(bag_set, [0], longest_side=500).sizes.tolist() == [[40, 80]]


def test_reading_photos_and_tags_never_opens_a_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(milseg.data.bags, "open_mask", refuse)
    monkeypatch.setattr(milseg.data.image, "open_mask", refuse)
    bag_set = one(tmp_path / "x.png")
    assert load_batch(bag_set, [0]).tags.tolist() == [[1, 1, 0]]
    with pytest.raises(AssertionError, match="was opened"):
        load_batch(bag_set, [0], with_masks=True)
