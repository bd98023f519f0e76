"""What holds for every refiner of the table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from refine_scenes import coarse_probs, scene

from milseg.errors import UserError
from milseg.refine import REFINERS, find_refiner

EVERY = pytest.mark.parametrize("name", list(REFINERS))


@EVERY
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 17), (3, 5), (20, 31), (41, 64)])
@pytest.mark.parametrize("classes", [1, 2, 8, 21])
def test_probabilities_stay_probabilities(name: str, size: tuple[int, int], classes: int) -> None:
    probs = coarse_probs(classes, *size)
    before = probs.clone()
    found = find_refiner(name)(scene(*size), probs)
    assert found.shape == probs.shape
    assert found.dtype == torch.float32
    assert torch.equal(probs, before)
    assert bool((found >= 0).all())
    torch.testing.assert_close(found.sum(dim=0), torch.ones(size), atol=1e-5, rtol=0)


@EVERY
def test_uniform_stays_uniform(name: str) -> None:
    for photo in (np.full((24, 30, 3), 77, np.uint8), scene(24, 30)):
        found = find_refiner(name)(photo, torch.full((4, 24, 30), 0.25))
        torch.testing.assert_close(found, torch.full((4, 24, 30), 0.25), atol=1e-5, rtol=0)


@EVERY
def test_classes_may_be_in_any_order(name: str) -> None:
    photo, probs = scene(33, 40), coarse_probs(9, 33, 40)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    refine = find_refiner(name)
    torch.testing.assert_close(refine(photo, probs[order]), refine(photo, probs)[order], atol=1e-5, rtol=0)


@EVERY
def test_the_photo_may_be_turned(name: str) -> None:
    """Left and right, up and down are alike; the lattice is not quite, so labels are compared."""
    photo, probs = scene(48, 64, grain=2), coarse_probs(3, 48, 64)
    refine = find_refiner(name)
    plain = refine(photo, probs).argmax(dim=0)
    turned = refine(photo[::-1, ::-1], probs.flip(1, 2)).argmax(dim=0).flip(0, 1)
    assert float((plain == turned).float().mean()) > 0.9


@EVERY
def test_noise_is_smoothed_within_edges(name: str) -> None:
    """Two halves of different colour and labels that are wrong at 15 % of the pixels: far fewer afterwards."""
    photo = np.full((60, 80, 3), 60, np.uint8)
    photo[:, 37:] = (180, 170, 40)
    truth = torch.zeros(60, 80, dtype=torch.int64)
    truth[:, 37:] = 1
    wrong = torch.rand(60, 80, generator=torch.Generator().manual_seed(0)) < 0.15
    seen = torch.where(wrong, 1 - truth, truth)
    probs = torch.where(torch.stack((seen == 0, seen == 1)), 0.7, 0.3)
    found = find_refiner(name)(photo, probs).argmax(dim=0)
    assert float((found != truth).float().mean()) < 0.01


def test_options_reach_the_function() -> None:
    photo, probs = scene(20, 30), coarse_probs(3, 20, 30)
    clipped = find_refiner("crf(iterations=0)")(photo, probs)
    torch.testing.assert_close(clipped, probs, atol=1e-4, rtol=0)
    assert not torch.equal(
        find_refiner("crf(bilateral-weight=4)")(photo, probs), find_refiner("crf")(photo, probs)
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cfr", "unknown refiner 'cfr'; did you mean 'crf'"),
        ("crf(iteration=5)", "did you mean 'iterations'. Known: bilateral_sigma_rgb, bilateral_sigma_xy"),
        ("pamr(scale=2)", "unknown option of refiner pamr 'scale'. Known: iterations"),
        ("crf(iterations=2.5)", "expected a whole number"),
        ("crf(5)", "expected option=value"),
        ("crf(iterations=1000000)", "refiner crf: iterations is 1000000; expected 0 to 100"),
        ("crf(spatial_sigma=0)", "spatial_sigma is 0; expected 0.01 to 10000"),
        ("superpixels(count=0)", "count is 0; expected 1 to 100000"),
    ],
)
def test_mistakes_name_the_known(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        find_refiner(text)
    assert words.replace("'. Known", "'? Known") in str(caught.value) or words in str(caught.value)


def test_every_row_has_words() -> None:
    assert all(row.about for row in REFINERS.values())
