from __future__ import annotations

import numpy as np
import pytest
import torch
from refine_scenes import coarse_probs, scene

from milseg.refine.superpixels import segment_means, superpixel_means, superpixels


def test_means_are_those_of_a_loop() -> None:
    probs = coarse_probs(4, 9, 11)
    segments = torch.randint(0, 6, (9, 11), generator=torch.Generator().manual_seed(0))
    found = segment_means(probs, segments)
    for number in range(6):
        inside = segments == number
        for row, expected in zip(found, probs, strict=True):
            torch.testing.assert_close(row[inside], expected[inside].mean().expand(int(inside.sum())))


def test_segments_follow_the_photo() -> None:
    photo = np.zeros((60, 80, 3), np.uint8)
    photo[:, 33:] = (200, 40, 40)
    segments = superpixels(photo, count=20)
    assert segments.shape == (60, 80)
    assert segments.dtype == torch.int64
    assert set(segments[:, :33].unique().tolist()).isdisjoint(segments[:, 33:].unique().tolist())
    assert segments.unique().tolist() == list(range(int(segments.max()) + 1))
    assert 8 <= int(segments.max()) + 1 <= 40


@pytest.mark.parametrize(("stride", "offset"), [(8, 3.5), (16, 0.0), (16, -2.0)])
def test_a_place_has_the_segment_at_its_centre(stride: int, offset: float) -> None:
    photo = scene(90, 121)
    fine = superpixels(photo, count=30)
    places = (-(-90 // stride), -(-121 // stride))
    coarse = superpixels(photo, places, stride=stride, offset=offset, count=30)
    assert coarse.shape == places
    number = {}
    for i in range(places[0]):
        for j in range(places[1]):
            y = min(max(round(offset + i * stride), 0), 89)
            x = min(max(round(offset + j * stride), 0), 120)
            assert number.setdefault(int(coarse[i, j]), int(fine[y, x])) == int(fine[y, x])
    assert sorted(number) == list(range(len(number)))


def test_places_without_a_stride_share_the_photo_evenly() -> None:
    photo = np.zeros((30, 60, 3), np.uint8)
    photo[:, 20:] = 255
    assert superpixels(photo, (1, 3), count=2).tolist() == [[0, 1, 1]]


def test_the_mean_holds_over_each_superpixel() -> None:
    photo, probs = scene(50, 60), coarse_probs(3, 50, 60)
    segments = superpixels(photo, count=12)
    found = superpixel_means(photo, probs, count=12)
    for number in segments.unique():
        inside = found[:, segments == number]
        torch.testing.assert_close(inside, inside[:, :1].expand_as(inside), rtol=0, atol=0)
    torch.testing.assert_close(found.sum(dim=(1, 2)), probs.sum(dim=(1, 2)))
