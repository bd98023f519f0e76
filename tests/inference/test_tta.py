from __future__ import annotations

import numpy as np
import pytest
import torch

from milseg.data.image import normalise, resize_photo
from milseg.inference.affinity import photo_transition_matrix
from milseg.inference.score_map import ScoreMap, upsample
from milseg.inference.tta import tta_score_map
from milseg.models.backbones import build_fcn
from milseg.models.fcn import FCN
from milseg.refine.random_walk import transition_matrix


@pytest.fixture(scope="module")
def model() -> FCN:
    network = build_fcn("tiny", 3, seed=1).eval()
    network.replace_score_layer(3, std=0.5, generator=torch.Generator().manual_seed(2))
    return network


def photo_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_one_view_is_the_networks_own_map(model: FCN) -> None:
    photo = photo_of(45, 60)
    found = tta_score_map(model, photo, longest_side=40)
    with torch.inference_mode():
        scores = model(normalise(resize_photo(photo, (30, 40)))[None])
    torch.testing.assert_close(found.scores, scores[0])
    assert (found.stride, found.offset, found.input_size) == (model.stride, model.offset, (30, 40))


def test_a_mirrored_photo_gives_the_mirrored_map(model: FCN) -> None:
    # 41 wide: the grid of half a stride, 0, 2, ..., 40, is its own mirror image.
    photo = photo_of(29, 41)
    found = tta_score_map(model, photo, flip=True)
    mirrored = tta_score_map(model, photo[:, ::-1].copy(), flip=True)
    assert found.stride == 2
    assert found.scores.shape == (3, 15, 21)
    torch.testing.assert_close(found.scores, mirrored.scores.flip(2), rtol=1e-4, atol=1e-4)


def test_views_are_averaged_as_probabilities_at_the_same_pixels(model: FCN) -> None:
    """Against a slow way: every view's map interpolated to the pixels, then read off at the grid's."""
    photo = photo_of(33, 49)
    found = tta_score_map(model, photo, scales=(1.0, 1.5))
    total = torch.zeros(3, 33, 49)
    for size in ((33, 49), (round(33 * 1.5), round(49 * 1.5))):
        with torch.inference_mode():
            scores = model(normalise(resize_photo(photo, size))[None])
        fine = upsample(scores, (33, 49), stride=model.stride, offset=model.offset, input_size=size)
        total += fine[0].softmax(dim=0)
    expected = (total / 2)[:, ::2, ::2]
    assert model.offset == 0
    torch.testing.assert_close(found.scores.exp(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5)])
def test_small_photos_have_a_map(model: FCN, size: tuple[int, int]) -> None:
    found = tta_score_map(model, photo_of(*size), scales=(0.5, 1.0), flip=True)
    assert torch.isfinite(found.scores).all()
    torch.testing.assert_close(found.scores.exp().sum(dim=0), torch.ones_like(found.scores[0]))


def test_likeness_is_that_of_inner_maps_at_the_maps_own_places(model: FCN) -> None:
    """A photo of two halves: on the map each half's places are alike, whatever the views' sizes."""
    photo = np.full((30, 60, 3), 40, dtype=np.uint8)
    photo[:, 30:] = (220, 60, 200)
    found = tta_score_map(model, photo, longest_side=40, scales=(1.0, 1.5), flip=True)
    step = photo_transition_matrix(model, photo, found)
    height, width = found.scores.shape[-2:]
    assert step.shape == (height * width, height * width)
    torch.testing.assert_close(step.sum(dim=1), torch.ones(height * width))
    middle = step.view(height, width, height, width)[height // 2]
    left, right = middle[width // 4, :, : width // 2].sum(), middle[3 * width // 4, :, width // 2 :].sum()
    assert min(float(left), float(right)) > 0.85


def test_inner_maps_are_read_where_their_places_lie() -> None:
    """Against the features interpolated to the pixels of their view, then read off pixel by pixel."""
    network = build_fcn("mobilenet_v2", 3, output_stride=16, seed=0).eval()
    photo = photo_of(40, 56)
    found = ScoreMap(scores=torch.zeros(3, 5, 7), stride=8.0, offset=0.0, input_size=(40, 56))
    with torch.inference_mode():
        maps = network.features(normalise(resize_photo(photo, (60, 84)))[None])
    assert [(m.values.shape[1], m.stride) for m in maps] == [(32, 8), (96, 16), (320, 16)]
    read = []
    for values, stride, offset in maps:
        fine = upsample(values, (400, 560), stride=stride, offset=offset, input_size=(60, 84))[0]
        # Pixel i of 40 has its middle at 10 i + 4.5 of 400: between two of these.
        rows, columns = (torch.arange(n) * 80 + 4 for n in (5, 7))
        corners = [fine[:, rows + i][:, :, columns + j] for i in (0, 1) for j in (0, 1)]
        read.append(sum(corners) / 4)
    transition = photo_transition_matrix(network, photo, found)
    torch.testing.assert_close(transition, transition_matrix(read), rtol=2e-3, atol=1e-5)


def test_a_walk_leaves_the_geometry() -> None:
    scores = torch.randn(3, 2, 2)
    scores[1] = -torch.inf
    found = ScoreMap(scores=scores, stride=8.0, offset=1.0, input_size=(16, 16))
    after = found.random_walk(torch.eye(4), steps=3)
    assert (after.stride, after.offset, after.input_size) == (8.0, 1.0, (16, 16))
    assert (after.scores[1] == -torch.inf).all()  # a class that is ruled out stays so
    kept = [0, 2]
    expected = (3 * scores[kept].log_softmax(dim=0)).log_softmax(dim=0)
    torch.testing.assert_close(after.scores[kept], expected)
