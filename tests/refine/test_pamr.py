from __future__ import annotations

import numpy as np
import pytest
import torch
from refine_scenes import coarse_probs, scene

from milseg.refine.pamr import pamr, pamr_photo


def slow(photo: np.ndarray, probs: np.ndarray, iterations: int, dilations: tuple[int, ...]) -> np.ndarray:
    """The equations of the docstring, a pixel at a time; photo [H, W, K], probs [C, H, W]."""
    height, width = photo.shape[:2]

    def inside(y: int, x: int) -> tuple[int, int]:
        return min(max(y, 0), height - 1), min(max(x, 0), width - 1)

    for _ in range(iterations):
        refined = np.zeros_like(probs)
        for y in range(height):
            for x in range(width):
                window = [(y + d * i, x + d * j) for d in dilations for i in (-1, 0, 1) for j in (-1, 0, 1)]
                spread = np.std([photo[inside(*place)] for place in window], axis=0, ddof=1)
                near = [inside(*place) for place in window if place != (y, x)]
                kernel = [-(np.abs(photo[y, x] - photo[at]) / (0.1 * spread + 1e-8)).mean() for at in near]
                weights = np.exp(np.array(kernel) - max(kernel))
                weights /= weights.sum()
                for at, weight in zip(near, weights, strict=True):
                    refined[:, y, x] += weight * probs[:, at[0], at[1]]
        probs = refined
    return probs


@pytest.mark.parametrize(
    ("size", "iterations", "dilations"), [((5, 7), 1, (1,)), ((6, 5), 3, (1, 2)), ((3, 4), 2, (1, 4, 7))]
)
def test_it_is_the_slow_loop(size: tuple[int, int], iterations: int, dilations: tuple[int, ...]) -> None:
    photos = np.random.default_rng(3).random((2, *size, 3))
    probs = torch.stack([coarse_probs(3, *size, seed=seed).double() for seed in (0, 1)])
    found = pamr(
        torch.from_numpy(photos).permute(0, 3, 1, 2), probs, iterations=iterations, dilations=dilations
    )
    for photo, one, result in zip(photos, probs, found, strict=True):
        np.testing.assert_allclose(result, slow(photo, one.numpy(), iterations, dilations), atol=1e-12)


def test_two_pixels_by_hand() -> None:
    """1 x 2, one channel, dilation 1. With the border repeated, 5 of the left pixel's 8 neighbours equal it.

    Its window holds six times 0 and three times 1: variance 9 (1/3)(2/3) / 8 = 1/4, so k = -1 / (0.1 / 2) = -20
    and the three share 3 e^-20 / (5 + 3 e^-20).
    """
    photos = torch.tensor([0.0, 1.0], dtype=torch.float64).view(1, 1, 1, 2)
    probs = torch.tensor([1.0, 0.0], dtype=torch.float64).view(1, 1, 1, 2)
    left = pamr(photos, probs, iterations=1, dilations=(1,))[0, 0, 0, 0]
    expected = 5 / (5 + 3 * np.exp(-20))
    assert float(left) == pytest.approx(expected, abs=1e-12)


def test_none_of_the_iterations_gives_back_what_came() -> None:
    probs = coarse_probs(3, 4, 5)
    assert torch.equal(pamr_photo(scene(4, 5), probs, iterations=0), probs)


def test_the_photo_may_be_in_any_unit() -> None:
    photos, probs = torch.rand(1, 3, 8, 9, dtype=torch.float64), coarse_probs(3, 8, 9)[None].double()
    torch.testing.assert_close(pamr(photos, probs), pamr(255 * photos, probs), atol=1e-5, rtol=0)
