from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from milseg.errors import UserError
from milseg.refine.permutohedral import LANES, build_lattice


def slow(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Adams et al., sections 3.1 to 3.3, a point at a time, corners in a dict; features [N, d], values [N, C]."""
    dims = features.shape[1]
    size = dims + 1
    corners: dict[tuple[int, ...], np.ndarray] = {}
    touched = []
    for feature, value in zip(features.astype(float), values.astype(float), strict=True):
        scaled = [f * size * math.sqrt(2 / 3) / math.sqrt((i + 1) * (i + 2)) for i, f in enumerate(feature)]
        place = [sum(scaled[i:]) - (i * scaled[i - 1] if i else 0) for i in range(size)]
        assert sum(place) == pytest.approx(0, abs=1e-9)
        nearest = [size * round(x / size) for x in place]
        order = sorted(range(size), key=lambda i: nearest[i] - place[i])  # largest difference first
        for _ in range(abs(sum(nearest)) // size):  # one multiple at a time back into the plane
            if sum(nearest) > 0:
                order.insert(0, i := order.pop())
                nearest[i] -= size
            else:
                order.append(i := order.pop(0))
                nearest[i] += size
        ahead = [(place[i] - nearest[i]) / size for i in order]
        mine = []
        for remainder in range(size):
            key = [x + remainder for x in nearest]
            for i in order[size - remainder :]:
                key[i] -= size
            last = size - remainder
            weight = 1 + ahead[-1] - ahead[0] if remainder == 0 else ahead[last - 1] - ahead[last]
            assert sum(key) == 0
            assert weight > -1e-9
            mine.append((tuple(key), weight))
            corners[tuple(key)] = corners.get(tuple(key), 0) + weight * value
        touched.append(mine)
    for axis in range(size):
        blurred = {}
        for key, value in corners.items():
            blurred[key] = value.copy()
            for sign in (1, -1):
                near = tuple(k + sign * (1 - size * (i == axis)) for i, k in enumerate(key))
                blurred[key] += 0.5 * corners.get(near, 0)
        corners = blurred
    return np.array([sum(weight * corners[key] for key, weight in mine) for mine in touched])


@pytest.mark.parametrize("dims", [1, 2, 3, 5])
@pytest.mark.parametrize("spread", [0.3, 3.0, 30.0])
def test_it_is_the_slow_loop(dims: int, spread: float) -> None:
    random = np.random.default_rng(dims)
    features = (spread * random.normal(size=(60, dims))).astype(np.float32)
    values = random.random((60, 4)).astype(np.float32)
    found = build_lattice(torch.from_numpy(features.T.copy())).filter(torch.from_numpy(values))
    np.testing.assert_allclose(found, slow(features, values), rtol=2e-4, atol=2e-4)


def test_it_is_nearly_a_gaussian() -> None:
    """On a line, from a point in the middle, up to a constant and the lattice's own error of a few hundredths."""
    x = torch.linspace(-4, 4, 161)
    values = torch.zeros(161, 1)
    values[80] = 1
    found = build_lattice(x[None]).filter(values)[:, 0]
    gaussian = torch.exp(-x.square() / 2)
    assert float((found / found.sum() - gaussian / gaussian.sum()).abs().max()) < 0.1 * float(
        (gaussian / gaussian.sum()).max()
    )


def test_wide_values_in_parts_are_as_in_one() -> None:
    """Points so far apart that corners outnumber them are filtered a few columns at a time."""
    features = 50 * torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    lattice = build_lattice(features)
    values = torch.rand(40, 2 * LANES + 3)
    assert len(lattice.splat.starts) > 40
    columns = [lattice.filter(values[:, i : i + 1].contiguous()) for i in range(values.shape[1])]
    torch.testing.assert_close(lattice.filter(values), torch.cat(columns, dim=1))


def test_scaled_multiplies_before_and_after() -> None:
    features, factor = torch.randn(2, 30), torch.rand(30)
    lattice, values = build_lattice(features), torch.rand(30, 2)
    expected = factor[:, None] * lattice.filter(factor[:, None] * values)
    torch.testing.assert_close(lattice.scaled(factor).filter(values), expected)


@pytest.mark.parametrize(
    ("far", "words"), [(1e9, "1e.09 sigmas from 0"), (5e4, "too far"), (math.nan, "nan")]
)
def test_features_too_far_apart_are_refused(far: float, words: str) -> None:
    with pytest.raises(UserError, match=words):
        build_lattice(torch.tensor([[0.0, far]] * 5))
