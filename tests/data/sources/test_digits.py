"""Digit scenes: the generator is frozen, and what it promises holds."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

import milseg.data.sources.digits as digits
from milseg.data.bags import ABSENT, PRESENT
from milseg.data.sources.digits import CLASSES, make_scene, make_single, read_digits, read_singles
from milseg.errors import UserError

# SHA-256 over the first 20 scenes (each photo, then its mask). Figures of different versions compare only
# while these hold: a change here is a new data set and needs a new name.
SCENES = {
    ("train", 0): "1527bab4886da0720182365b3ed9c4be525b0e85368093fdcc53e778c40669fc",
    ("train", 1): "d1a3a1b0831b880e247e9e977894a82e75bfea9759ba14c8a7c10f506da44ebc",
    ("val", 0): "805175392f228ed219a6079c21103d62742140fd746331b6cbef27487907a348",
    ("val", 1): "e67750367f619429eb969f8b38b0038f31ad5500c78bb759b9f993bfe9bfb196",
}
# SHA-256 over the first 20 single pictures, then their digits as bytes.
SINGLES = {
    0: "99e6484399ab80a90644c1be1702f68a8e4a28af57b4a40d80250883d452aaee",
    1: "6838cee5341cd9e1e6976c9726ee1cc726b99c7194c5bf252b81858e94887e5a",
}


@pytest.mark.parametrize(("split", "seed"), list(SCENES))
def test_scenes_are_frozen(split: str, seed: int) -> None:
    found = hashlib.sha256()
    for index in range(20):
        for part in make_scene(seed, split, index):
            found.update(np.ascontiguousarray(part).tobytes())
    assert found.hexdigest() == SCENES[split, seed]


@pytest.mark.parametrize("seed", list(SINGLES))
def test_single_pictures_are_frozen(seed: int) -> None:
    pictures, labels = read_singles(20, seed=seed)
    found = hashlib.sha256(pictures.tobytes() + labels.astype(np.uint8).tobytes())
    assert found.hexdigest() == SINGLES[seed]


def test_settings_are_frozen() -> None:
    assert (digits.HEIGHT, digits.WIDTH, digits.SINGLE) == (64, 128, 48)
    assert (digits.FACTORS, digits._INK) == ((4, 5, 6), 4)
    assert CLASSES == ("background", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9")


@pytest.mark.parametrize("split", ["train", "val"])
def test_scenes_have_one_to_three_digits_and_tags_that_agree_with_the_masks(split: str) -> None:
    bags = read_digits(split, 60)
    assert (bags.name, bags.classes, bags.tags_from) == (f"digits {split}", CLASSES, "generator")
    counts = set()
    for bag in bags.bags:
        photo, mask = bag.photo, bag.mask
        assert isinstance(photo, np.ndarray)
        assert isinstance(mask, np.ndarray)
        assert (photo.shape, photo.dtype) == ((64, 128, 3), np.uint8)
        assert (mask.shape, mask.dtype) == ((64, 128), np.uint8)
        seen = set(np.unique(mask).tolist())
        assert 0 in seen
        assert seen <= set(range(11))
        assert bag.tags == tuple(PRESENT if c in seen else ABSENT for c in range(11))
        counts.add(len(seen) - 1)
    # Three digits rarely find room; twice the same digit is one tag.
    assert {1, 2} <= counts <= {1, 2, 3}
    assert all(count > 0 for count in bags.tag_counts().values())


def test_the_same_seed_gives_the_same_scenes_whatever_the_count() -> None:
    few, many = read_digits("train", 3, seed=5), read_digits("train", 6, seed=5)
    for a, b in zip(few.bags, many.bags, strict=False):
        assert (a.name, a.tags) == (b.name, b.tags)
        np.testing.assert_array_equal(a.photo, b.photo)
        np.testing.assert_array_equal(a.mask, b.mask)
    assert len({bag.name for bag in many.bags}) == 6
    pictures, labels = read_singles(4, seed=5)
    np.testing.assert_array_equal(pictures[:2], read_singles(2, seed=5)[0])
    np.testing.assert_array_equal(pictures[3], make_single(5, 3)[0])
    assert labels.dtype == np.int64


def test_no_two_scenes_of_splits_and_seeds_are_alike() -> None:
    scenes = [
        make_scene(seed, split, i)[0] for seed in (0, 1) for split in ("train", "val") for i in range(8)
    ]
    assert len({scene.tobytes() for scene in scenes}) == 32


def test_train_and_val_share_no_handwriting() -> None:
    train, val = digits._pool("train"), digits._pool("val")
    images, labels = digits._handwriting()
    assert not set(train.tolist()) & set(val.tolist())
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(len(labels)))
    assert len(val) == len(labels) // 4
    for pool in (train, val):
        assert set(labels[pool].tolist()) == set(range(10))
    # Neither under another number: no picture comes twice.
    assert not {images[i].tobytes() for i in train} & {images[i].tobytes() for i in val}


@pytest.mark.parametrize(("split", "low", "high"), [("train", 0, 256), ("val", 256, 512)])
def test_each_split_draws_from_its_own_half_of_the_textures(
    monkeypatch: pytest.MonkeyPatch, split: str, low: int, high: int
) -> None:
    """Textures are replaced by ramps whose value is the column."""
    ramp = np.broadcast_to(np.arange(512, dtype=np.int64), (512, 512))
    monkeypatch.setattr(digits, "_textures", lambda: (ramp, ramp, ramp))
    monkeypatch.setattr(np.random, "RandomState", WhiteTint)
    for index in range(40):
        random = np.random.RandomState([0, index])
        columns = digits._ground(random, split, 64, 96)
        assert columns.shape == (64, 96, 3)
        assert low <= columns.min() <= columns.max() < high


class WhiteTint(np.random.RandomState):
    """The random stream, with a tint that changes nothing."""

    def randint(self, *args, **given):  # type: ignore[no-untyped-def]
        drawn = super().randint(*args, **given)
        return np.full(3, 255) if given.get("size") == 3 else drawn


@pytest.mark.parametrize("split", ["train", "val"])
def test_scenes_draw_from_their_own_pool(monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    """Handwriting of the other split is taken away: the scenes stay the same."""
    expected = [make_scene(3, split, index) for index in range(10)]
    images, labels = digits._handwriting()
    other = digits._pool("val" if split == "train" else "train")
    spoilt, wrong = images.copy(), labels.copy()
    spoilt[other], wrong[other] = 16, 99
    monkeypatch.setattr(digits, "_handwriting", lambda: (spoilt, wrong))
    for index, (photo, mask) in enumerate(expected):
        again = make_scene(3, split, index)
        np.testing.assert_array_equal(again[0], photo)
        np.testing.assert_array_equal(again[1], mask)
    if split == "train":
        single = make_single(3, 0)
        monkeypatch.undo()
        np.testing.assert_array_equal(single[0], make_single(3, 0)[0])


def test_a_single_picture_shows_its_digit_whole() -> None:
    pictures, labels = read_singles(30, seed=2)
    assert pictures.shape == (30, 48, 48, 3)
    assert pictures.dtype == np.uint8
    assert labels.min() >= 0
    assert labels.max() <= 9
    assert len(set(labels.tolist())) >= 8


@pytest.mark.parametrize("factor", [4, 5, 6])
def test_enlarging_keeps_values_and_corners(factor: int) -> None:
    ink = np.random.RandomState(0).randint(0, 17, (8, 8))
    large = digits._enlarge(ink, factor)
    assert large.shape == (8 * factor, 8 * factor)
    assert large.dtype == np.int64
    assert 0 <= large.min() <= large.max() <= 16
    assert [large[0, 0], large[0, -1], large[-1, 0], large[-1, -1]] == [
        *(ink[0, 0], ink[0, 7]),
        *(ink[7, 0], ink[7, 7]),
    ]
    assert (digits._enlarge(np.full((8, 8), 9), factor) == 9).all()


def test_mask_pixels_are_where_the_ink_is() -> None:
    photo, mask = make_scene(0, "train", 0)
    inside, outside = photo[mask > 0].astype(int), photo[mask == 0].astype(int)
    assert abs(inside.mean(axis=0) - outside.mean(axis=0)).sum() > 60


def test_an_unknown_split_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="unknown split of digits 'vall'; did you mean 'val'"):
        read_digits("vall", 1)
