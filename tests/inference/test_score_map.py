"""From coarse scores to masks: exact interpolation, and the two readings of the paper's sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from milseg.data.image import resize_photo
from milseg.errors import UserError
from milseg.inference.score_map import (
    ScoreMap,
    interpolation_matrix,
    upsample,
)
from milseg.inference.segmenter import Segmenter, segment, unnamed_spec
from milseg.models.backbones import build_fcn
from milseg.models.fcn import FCN

LIKE = torch.zeros(1, dtype=torch.float64)


def score_map(scores: torch.Tensor, *, stride: float, offset: float, size: tuple[int, int]) -> ScoreMap:
    return ScoreMap(scores=scores, stride=stride, offset=offset, input_size=size)


def random_map(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def model() -> FCN:
    """Random weights whose classes all appear somewhere."""
    net = build_fcn("tiny", 3, seed=0).eval()
    with torch.no_grad():
        net.score_layer.weight.normal_(generator=torch.Generator().manual_seed(0))
    return net


@pytest.mark.parametrize("places", [(1, 1), (2, 3), (5, 4)])
@pytest.mark.parametrize("stride", [2, 4, 5, 32])
def test_centred_places_are_torchs_unaligned_corners(places: tuple[int, int], stride: int) -> None:
    scores = random_map(2, 3, *places)
    size = (stride * places[0], stride * places[1])
    expected = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
    found = upsample(scores, size, stride=stride, offset=(stride - 1) / 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_offset_zero_gives_each_place_its_own_pixel_exactly() -> None:
    scores = random_map(1, 2, 3, 4)
    found = upsample(scores, (9, 13), stride=4, offset=0.0)
    assert torch.equal(found[:, :, ::4, ::4], scores)
    # Half-way between two places lies their mean.
    torch.testing.assert_close(found[:, :, 0, 2], scores[:, :, 0, :2].mean(dim=-1), rtol=0, atol=1e-12)


def test_a_hand_worked_row() -> None:
    # Places on pixels 1 and 5: pixels 0 and 1 are the first, 5 to 7 the second, a quarter a pixel in between.
    found = interpolation_matrix(8, 2, 4.0, 1.0, like=LIKE)
    assert found[:, 1].tolist() == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert found[:, 0].tolist() == [1, 1, 0.75, 0.5, 0.25, 0, 0, 0]


def test_beyond_the_outermost_centres_the_nearest_place_holds() -> None:
    scores = random_map(1, 1, 2, 2)
    found = upsample(scores, (12, 12), stride=4, offset=3.0)
    assert torch.equal(found[..., :4, :4], scores[..., :1, :1].expand(1, 1, 4, 4))
    assert torch.equal(found[..., 7:, 7:], scores[..., 1:, 1:].expand(1, 1, 5, 5))
    # VGG's conv1 pad 100 puts the first places outside the photo.
    outside = interpolation_matrix(4, 3, 32.0, -30.0, like=LIKE)
    torch.testing.assert_close(outside[0, :2], torch.tensor([2 / 32, 30 / 32], dtype=torch.float64))


@pytest.mark.parametrize(("pixels", "places"), [(1, 1), (1, 7), (7, 1), (33, 5), (64, 3)])
@pytest.mark.parametrize("offset", [-9.0, 0.0, 1.5, 40.0])
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
def test_rows_sum_to_one_and_are_never_negative(
    pixels: int, places: int, offset: float, scale: float
) -> None:
    matrix = interpolation_matrix(pixels, places, 4.0, offset, like=LIKE, scale=scale)
    assert matrix.shape == (pixels, places)
    assert float(matrix.min()) >= 0
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(pixels, dtype=torch.float64))
    assert int((matrix > 0).sum(dim=1).max()) <= 2


def test_a_constant_map_stays_constant() -> None:
    found = upsample(torch.full((1, 2, 3, 3), 7.0), (29, 31), stride=16, offset=3.5, input_size=(14, 15))
    assert torch.equal(found, torch.full((1, 2, 29, 31), 7.0))


def test_input_size_is_where_the_network_saw_the_photo() -> None:
    # A photo of 8 pixels shown as 4: output pixel x lies on input pixel (x + 0.5) / 2 - 0.5.
    found = interpolation_matrix(8, 4, 1.0, 0.0, like=LIKE, scale=0.5)
    assert found[:3].tolist() == [[1, 0, 0, 0], [0.75, 0.25, 0, 0], [0.25, 0.75, 0, 0]]
    scores = random_map(1, 3, 4, 6)
    found = upsample(scores, (8, 18), stride=1, offset=0.0, input_size=(4, 6))
    torch.testing.assert_close(
        found, F.interpolate(scores, size=(8, 18), mode="bilinear"), rtol=0, atol=1e-12
    )
    same = upsample(scores, (8, 12), stride=2, offset=0.5, input_size=(8, 12))
    assert torch.equal(same, upsample(scores, (8, 12), stride=2, offset=0.5))


def test_the_two_readings_differ_where_one_place_is_surer() -> None:
    """Two places 4 pixels apart: background by 1 at the first, the class by 9 at the second.

    The scores' difference class - background runs -1, 1.5, 4, 6.5, 9: only pixel 0 is background. The one-hot
    labels cross half-way, where they tie, and a tie is background.
    """
    found = score_map(torch.tensor([[[1.0, 0.0]], [[0.0, 9.0]]]), stride=4, offset=0.0, size=(1, 5))
    assert found.argmax_mask((1, 5)).tolist() == [[0, 1, 1, 1, 1]]
    assert found.argmax_mask((1, 5), reading="labels").tolist() == [[0, 0, 0, 1, 1]]


def test_the_scores_reading_can_show_a_class_that_tops_no_place() -> None:
    # The middle class is second at both places and first between them.
    scores = torch.tensor([[[5.0, 0.0]], [[4.0, 4.0]], [[0.0, 5.0]]])
    found = score_map(scores, stride=4, offset=0.0, size=(1, 5))
    assert found.argmax_mask((1, 5)).tolist() == [[0, 1, 1, 1, 2]]
    assert found.argmax_mask((1, 5), reading="labels").tolist() == [[0, 0, 0, 2, 2]]


def test_ties_go_to_the_background() -> None:
    found = score_map(torch.zeros(5, 2, 2), stride=4, offset=0.0, size=(7, 7))
    for reading in ("scores", "labels"):
        mask = found.argmax_mask((7, 7), reading=reading)
        assert mask.dtype == np.uint8
        assert mask.shape == (7, 7)
        assert not mask.any()


def test_an_unknown_reading_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="unknown reading 'score'; did you mean 'scores'"):
        score_map(torch.zeros(2, 1, 1), stride=1, offset=0.0, size=(2, 2)).argmax_mask(
            (2, 2), reading="score"
        )


@pytest.mark.parametrize("reading", ["scores", "labels"])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (33, 50), (64, 64)])
def test_a_mask_has_the_photos_own_size(model: FCN, size: tuple[int, int], reading: str) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = segment(model, photo, reading=reading)
    assert mask.dtype == np.uint8
    assert mask.shape == size
    assert mask.max() < 3


def test_longest_side_makes_what_the_network_sees_smaller_but_not_the_mask(model: FCN) -> None:
    photo = np.random.default_rng(1).integers(0, 256, (45, 91, 3), dtype=np.uint8)
    segmenter = Segmenter(model, unnamed_spec(model, longest_side=40))
    found = segmenter.score_map(photo)
    assert found.input_size == (20, 40)
    assert tuple(found.scores.shape[-2:]) == model.map_size(20, 40)
    mask = segment(model, photo, longest_side=40)
    assert mask.shape == (45, 91)
    # The same map as for the small photo, laid over the large one.
    assert torch.equal(segmenter.score_map(resize_photo(photo, (20, 40))).scores, found.scores)
    fine = upsample(found.scores, (45, 91), stride=model.stride, offset=model.offset, input_size=(20, 40))
    np.testing.assert_array_equal(mask, fine.argmax(dim=0).numpy())
    # A photo that is small already is shown as it is.
    np.testing.assert_array_equal(segment(model, photo, longest_side=91), segment(model, photo))


def test_a_mask_is_the_scores_top_class_at_the_networks_own_geometry(model: FCN) -> None:
    photo = np.random.default_rng(2).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    found = Segmenter(model, unnamed_spec(model)).score_map(photo)
    assert found.input_size == (24, 32)
    mask = segment(model, photo)
    # Offset 0, stride 4: at every fourth pixel the mask is the coarse top class itself.
    np.testing.assert_array_equal(mask[::4, ::4], found.scores.argmax(dim=0).numpy())
    assert len(np.unique(mask)) > 1


@pytest.mark.parametrize(
    ("pixels", "rows", "numbers"), [(1, 1, 1), (200, 1, 2**24), (1, 7, 2**24), (1, 48, 3 * 90 * 5)]
)
def test_bands_of_any_height_give_the_same_mask(
    pixels: int, rows: int, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(pixels + rows)
    scores, size = torch.randn(3, 10, 12, generator=generator), (75, 90)
    found = score_map(scores, stride=8.0, offset=1.5, size=size)
    fine = upsample(scores, size, stride=8.0, offset=1.5)
    monkeypatch.setattr("milseg.inference.score_map.BAND_PIXELS", pixels)
    monkeypatch.setattr("milseg.inference.score_map.BAND_ROWS", rows)
    monkeypatch.setattr("milseg.inference.score_map.BAND_NUMBERS", numbers)
    mask = found.argmax_mask(size)
    np.testing.assert_array_equal(mask, fine.argmax(dim=0).numpy())
    # The probability of each pixel's class, though the whole is never held.
    expected = fine.softmax(dim=0).amax(dim=0)
    torch.testing.assert_close(found.probability_of(mask), expected)
    torch.testing.assert_close(found.probabilities_at(size).amax(dim=0), expected)
