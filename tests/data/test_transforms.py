from __future__ import annotations

import numpy as np
import pytest
from torchvision.transforms import v2

from milseg.config import TrainConfig
from milseg.data.bags import ABSENT, PRESENT, UNKNOWN, Bag, BagSet
from milseg.data.image import UInt8
from milseg.data.loader import BagBatch, Loader
from milseg.data.transform_table import TRANSFORMS
from milseg.data.transforms import Sample, apply, find_transforms, scale_crop
from milseg.errors import UserError


def sample_of(photo: UInt8, mask: UInt8 | None = None, tags: tuple[int, ...] = (1,)) -> Sample:
    points = None if mask is None else np.argwhere(mask == 3).astype(np.float64)
    return Sample(photo=photo, size=(photo.shape[0], photo.shape[1]), tags=tags, mask=mask, points=points)


def noise(height: int = 30, width: int = 40, seed: int = 0) -> UInt8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def mask_of(sample: Sample) -> UInt8:
    assert sample.mask is not None
    return sample.mask


def test_a_factor_of_1_is_the_photo_at_its_training_size() -> None:
    photo = noise()
    assert np.array_equal(scale_crop(sample_of(photo), 1.0).photo, photo)
    assert Sample(photo=photo, size=(15, 20), tags=(1,)).resized().photo.shape == (15, 20, 3)


def test_a_window_of_twice_the_size_holds_the_pixels_of_its_corner_twice() -> None:
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3)
    sample = sample_of(noise(2, 3), mask, tags=(1,) * 6)
    assert mask_of(scale_crop(sample, 2.0, 1.0, 1.0)).tolist() == [[4, 5, 5], [4, 5, 5]]
    assert mask_of(scale_crop(sample, 2.0, 0.0, 0.0)).tolist() == [[0, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize("factor", [0.01, 0.5, 0.73, 1.0, 1.37, 4.0])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (240, 320)])
def test_photo_and_mask_stay_alike_and_within_the_size(size: tuple[int, int], factor: float) -> None:
    for place in (0.0, 0.3, 1.0):
        sample = sample_of(np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8))
        found = scale_crop(sample, factor, place, 1 - place)
        assert found.photo.shape[:2] == mask_of(found).shape == found.size
        assert 1 <= found.size[0] <= size[0]
        assert 1 <= found.size[1] <= size[1]


def test_photo_mask_and_points_show_the_same_window() -> None:
    """Of a photo whose colours are its mask's classes, each transform keeps colours, classes and points together."""
    mask = np.kron(np.array([[0, 1], [2, 3]], np.uint8), np.ones((20, 30), np.uint8))
    photo = np.repeat(mask[..., None] * 60, 3, axis=2)
    sample = sample_of(photo, mask, tags=(1,) * 4)
    [flip] = find_transforms("flip")
    found = [scale_crop(sample, *zoom) for zoom in ((1.7, 0.2, 0.9), (0.6,), (3.0, 0.5, 0.5))]
    found += [flip(sample, seed=0, position=position) for position in range(8)]
    assert any(not np.array_equal(one.photo, photo) for one in found[3:])
    for one in found:
        assert np.mean(np.abs(one.photo[..., 0] / 60 - mask_of(one)) < 0.2) > 0.85
        assert one.points is not None
        assert len(one.points)
        rows, columns = (one.points.round().astype(int).clip(0, np.array(one.size) - 1)).T
        assert np.mean(mask_of(one)[rows, columns] == 3) > 0.9


def test_what_a_window_does_not_show_becomes_unknown() -> None:
    mask = np.zeros((20, 20), np.uint8)
    mask[:5, :5] = 1  # a cat in the corner
    sample = sample_of(noise(20, 20), mask, tags=(PRESENT, PRESENT, ABSENT))
    for zoom, cat in (((2.0, 1.0, 1.0), UNKNOWN), ((2.0, 0.0, 0.0), PRESENT), ((0.5,), PRESENT)):
        assert scale_crop(sample, *zoom).tags == (PRESENT, cat, ABSENT)


def test_without_a_mask_a_photo_is_never_cut() -> None:
    """Nobody knows what a window shows of its tags."""
    [scale] = find_transforms("scale(most=2)")
    photo = np.zeros((20, 20, 3), np.uint8)
    photo[0, 0] = photo[-1, -1] = 255
    found = [scale(sample_of(photo), seed=0, position=position) for position in range(30)]
    assert 5 < sum(one.size == (20, 20) for one in found) < 25
    assert all(one.photo[0, 0, 0] > 20 and one.photo[-1, -1, 0] > 20 for one in found)


def test_sizes_are_as_likely_by_factors_and_keyed_by_the_position() -> None:
    [scale] = find_transforms("scale(most=1.5)")
    sample = sample_of(np.zeros((100, 100, 3), np.uint8))
    sizes = [scale(sample, seed=0, position=position).size[0] for position in range(100)]
    assert sizes == [scale(sample, seed=0, position=position).size[0] for position in range(100)]
    assert sizes != [scale(sample, seed=1, position=position).size[0] for position in range(100)]
    assert 67 <= min(sizes) < 75
    assert 30 < sizes.count(100) < 70


@pytest.mark.parametrize("text", ["jitter", "grey(probability=1)", "blur(probability=1,most=3)"])
def test_colours_change_and_nothing_moves(text: str) -> None:
    mask = np.zeros((30, 40), np.uint8)
    sample = sample_of(noise(), mask)
    found = apply(find_transforms(text), sample, seed=3, position=1)
    assert found.photo.shape == sample.photo.shape
    assert found.photo.dtype == np.uint8
    assert not np.array_equal(found.photo, sample.photo)
    assert found.mask is mask
    if text.startswith("grey"):
        assert (found.photo == found.photo[..., :1]).all()


def test_one_more_augmentation_changes_no_draw_of_another() -> None:
    assert len({row.stream for row in TRANSFORMS.values()}) == len(TRANSFORMS)
    mask = np.zeros((30, 40), np.uint8)
    alone, beside = (
        [
            apply(find_transforms(text), sample_of(noise(), mask), seed=0, position=position).size
            for position in range(20)
        ]
        for text in ("scale(most=3)", "blur,flip,scale(most=3),jitter")
    )
    assert alone == beside


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flop", "augmentation.*'flop'.*did you mean 'flip'"),
        ("flip,flip", "augmentation flip is given twice"),
        ("scale(most=9)", r"augmentation scale: most is 9\.0; expected 1 to 4"),
        ("scale(least=1)", "option of augmentation scale"),
        ("flip(k=1)", "augmentation flip has no options"),
        ("jitter(hue=0.9)", r"hue is 0\.9; expected 0 to 0\.5"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_transforms(text)


# in the loader


def batches(**settings: object) -> list[BagBatch]:
    bags = tuple(
        Bag(
            name=f"b{i}",
            photo=noise(20 + i, 24, i),
            tags=(1, i % 2),
            mask=np.full((20 + i, 24), i % 2, np.uint8),
        )
        for i in range(5)
    )
    bag_set = BagSet(name="toy", classes=("background", "cat"), bags=bags, tags_from="generator")
    config = TrainConfig(batch_size=3, max_steps=4, augment=str(settings.pop("augment", "none")))
    start = int(str(settings.pop("start", 0)))
    loader = Loader(bag_set, config, rows=slice(0, 3), with_masks=True, **settings)  # type: ignore[arg-type]
    found = list(loader.batches(start))
    assert all(isinstance(batch, BagBatch) for batch in found)
    return [batch for batch in found if isinstance(batch, BagBatch)]


def assert_equal(one: BagBatch, other: BagBatch) -> None:
    assert one.names == other.names
    for name in ("images", "sizes", "tags", "masks"):
        assert getattr(one, name).equal(getattr(other, name)), name


@pytest.mark.parametrize("transform", [None, v2.Compose([v2.RandomHorizontalFlip(), v2.RandomRotation(30)])])
def test_a_batch_made_again_by_itself_is_the_same(transform: object) -> None:
    augment = "none" if transform else "scale,flip,jitter"
    whole = batches(augment=augment, transform=transform)
    later = batches(augment=augment, transform=transform, start=2)
    assert len(whole) == 4
    for one, other in zip(whole[2:], later, strict=True):
        assert_equal(one, other)


def test_torchvisions_transforms_move_photo_and_mask_alike() -> None:
    plain, mirrored = batches(), batches(transform=v2.RandomHorizontalFlip(p=1.0))
    for one, other in zip(plain, mirrored, strict=True):
        for row, (height, width) in enumerate(one.sizes.tolist()):
            assert other.images[row, :, :height, :width].equal(one.images[row, :, :height, :width].flip(2))
            assert one.masks is not None
            assert other.masks is not None
            assert other.masks[row, :height, :width].equal(one.masks[row, :height, :width].flip(1))


def test_a_photo_that_cannot_be_read_is_told_at_its_batch() -> None:
    bags = tuple(Bag(name=f"b{i}", photo=noise(), tags=(1, 0)) for i in range(4))
    bag_set = BagSet(name="toy", classes=("background", "cat"), bags=bags, tags_from="generator")
    loader = Loader(bag_set, TrainConfig(batch_size=4, max_steps=2), rows=slice(0, 4), with_masks=True)
    found = list(loader.batches(0))
    assert [type(one) for one in found] == [UserError, UserError]
    assert "has no mask" in str(found[0])
