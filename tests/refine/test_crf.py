from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from refine_scenes import coarse_probs, scene

from milseg.errors import UserError
from milseg.refine.crf import LEAST, dense_crf, joint_upsample, mean_field

# Made once by pydensecrf2 1.1: photo, probs, and q after 10 iterations with the defaults of dense_crf.
STORED = Path(__file__).parent / "pydensecrf.npz"


def reference(photo: np.ndarray, probs: torch.Tensor, iterations: int = 10) -> np.ndarray:
    densecrf = pytest.importorskip("pydensecrf.densecrf", reason="extra crf-test")
    from pydensecrf.utils import unary_from_softmax

    classes, height, width = probs.shape
    crf = densecrf.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(unary_from_softmax(probs.numpy()))
    crf.addPairwiseGaussian(sxy=3, compat=3)
    crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=np.ascontiguousarray(photo), compat=10)
    return np.asarray(crf.inference(iterations)).reshape(probs.shape)


@pytest.mark.parametrize("name", ["blocks", "noise"])
def test_it_is_what_pydensecrf_said(name: str) -> None:
    stored = np.load(STORED)
    found = dense_crf(stored[f"{name}_photo"], torch.from_numpy(stored[f"{name}_probs"]))
    np.testing.assert_allclose(found, stored[f"{name}_q"], atol=1e-4)


@pytest.mark.parametrize("classes", [3, 21])
def test_it_agrees_with_pydensecrf_on_a_photo(classes: int) -> None:
    photo, probs = scene(375, 500, seed=classes), coarse_probs(classes, 375, 500)
    expected = reference(photo, probs)
    found = dense_crf(photo, probs).numpy()
    assert (found.argmax(axis=0) == expected.argmax(axis=0)).mean() >= 0.999
    assert np.abs(found - expected).max() <= 1e-4


def test_points_on_the_border_of_simplices_fall_as_they_do_in_pydensecrf() -> None:
    """Colours are whole numbers, so there are many. In another order of products, q is off by 0.04 here."""
    photo, probs = scene(375, 500, seed=0), coarse_probs(3, 375, 500)
    found = dense_crf(photo, probs, iterations=1)
    np.testing.assert_allclose(found, reference(photo, probs, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (13, 18)])
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_it_agrees_with_pydensecrf_on_small_photos(size: tuple[int, int], iterations: int) -> None:
    photo, probs = scene(*size, grain=30), coarse_probs(4, *size)
    np.testing.assert_allclose(
        dense_crf(photo, probs, iterations=iterations), reference(photo, probs, iterations), atol=1e-4
    )


def test_points_far_apart_by_hand() -> None:
    """No point has a neighbour: k = 0 but for j = i, which normalises to 1, so q <- softmax(log p + w q)."""
    log_probs = torch.tensor([[0.7, 0.2], [0.3, 0.8]]).log()
    features = torch.tensor([[0.0, 1000.0]])
    expected = log_probs.exp()
    for _ in range(3):
        expected = (log_probs + 2.5 * expected).softmax(dim=0)
    torch.testing.assert_close(mean_field(log_probs, [(features, 2.5)], 3), expected)


def test_no_iterations_gives_back_the_clipped_probabilities() -> None:
    probs = torch.tensor([1.0, 0.0]).view(2, 1, 1)
    found = dense_crf(np.zeros((1, 1, 3), np.uint8), probs, iterations=0).flatten()
    torch.testing.assert_close(found, torch.tensor([1.0, LEAST]) / (1 + LEAST))


def test_weights_of_zero_leave_the_probabilities() -> None:
    probs = coarse_probs(3, 8, 9)
    found = dense_crf(scene(8, 9), probs, spatial_weight=0, bilateral_weight=0)
    torch.testing.assert_close(found, probs, atol=1e-4, rtol=0)


def test_a_read_only_photo_will_do() -> None:
    photo = scene(6, 7)
    photo.flags.writeable = False
    assert dense_crf(photo, coarse_probs(2, 6, 7)).shape == (2, 6, 7)


@pytest.mark.parametrize("scale", [2, 3, 50])
@pytest.mark.parametrize("size", [(1, 1), (41, 64), (40, 63)])
def test_at_a_smaller_scale_probabilities_stay_probabilities(scale: int, size: tuple[int, int]) -> None:
    found = dense_crf(scene(*size), coarse_probs(3, *size), scale=scale)
    assert found.shape == (3, *size)
    torch.testing.assert_close(found.sum(dim=0), torch.ones(size), atol=1e-5, rtol=0)


def test_at_half_scale_edges_stay_where_they_are() -> None:
    """An edge at an odd column: cells of the small photo hold both sides, the result does not."""
    photo = np.full((60, 80, 3), 40, np.uint8)
    photo[:, 37:] = (200, 190, 60)
    coarse = torch.full((60, 80), 0.8)
    coarse[:, 33:] = 0.2  # the network is four pixels off
    coarse[:, 44:] = 0.1
    found = dense_crf(photo, torch.stack((coarse, 1 - coarse)), scale=2).argmax(dim=0)
    expected = torch.zeros(60, 80, dtype=torch.int64)
    expected[:, 37:] = 1
    assert float((found == expected).float().mean()) > 0.995


def test_half_scale_says_nearly_the_same() -> None:
    photo, probs = scene(120, 160, grain=3), coarse_probs(3, 120, 160)
    whole, half = dense_crf(photo, probs), dense_crf(photo, probs, scale=2)
    assert float((whole.argmax(dim=0) == half.argmax(dim=0)).float().mean()) > 0.9


def test_large_photos_get_the_least_scale_that_fits() -> None:
    photo, probs = scene(60, 90), coarse_probs(2, 60, 90)
    limited = dense_crf(photo, probs, max_pixels=20 * 30)
    assert torch.equal(limited, dense_crf(photo, probs, scale=3))
    assert torch.equal(dense_crf(photo, probs, max_pixels=60 * 90), dense_crf(photo, probs))


def test_upsampling_a_flat_photo_is_bilinear() -> None:
    values = torch.rand(2, 5, 7)
    found = joint_upsample(values, torch.zeros(3, 5, 7), torch.zeros(3, 20, 21), 13.0)
    bilinear = torch.nn.functional.interpolate(values[None], size=(20, 21), mode="bilinear")[0]
    torch.testing.assert_close(found, bilinear)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"spatial_sigma": 0.0}, "sigma"),
        ({"bilateral_sigma_rgb": -1.0}, "sigma"),
        ({"iterations": -1}, "0 or more"),
        ({"scale": 0}, "1 or more"),
        ({"max_pixels": 0}, "1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        dense_crf(scene(4, 5), coarse_probs(2, 4, 5), **settings)


def test_a_photo_of_another_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"expected \[4, 6, 3\]"):
        dense_crf(scene(4, 5), coarse_probs(2, 4, 6))


NOISE = """
import numpy as np, torch
from milseg.refine.crf import dense_crf

torch.set_num_threads(1)

def resident(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

probs = torch.rand(21, 375, 500, generator=torch.Generator().manual_seed(0)).softmax(dim=0)
dense_crf(np.zeros((8, 8, 3), np.uint8), probs[:, :8, :8])
before = resident("VmRSS")
photo = np.random.default_rng(0).integers(0, 256, (375, 500, 3)).astype(np.uint8)
found = dense_crf(photo, probs, bilateral_sigma_rgb=SIGMA)
assert bool(found.isfinite().all())
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("sigma", ["13.0", "1.0"])
def test_memory_stays_bounded_on_pure_noise(sigma: str) -> None:
    """3.5 KB a pixel, copies of the probabilities included; with sigma 1 hardly two pixels share a corner."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", NOISE.replace("SIGMA", sigma)], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) * 2**20 < 3500 * 375 * 500
    assert time.monotonic() - began < 120
