from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from milseg.data.bags import UNKNOWN
from milseg.inference.prior import Prior, apply_prior, fit_prior, tag_evidence

CLASSES = ("background", "cat", "dog")


def test_evidence_is_the_log_odds_of_the_most_probable_place() -> None:
    p = torch.tensor([[0.5, 0.1], [0.3, 0.1], [0.2, 0.8]])  # [C, places]
    found = tag_evidence(p.log().view(3, 1, 2))
    expected = [math.log(0.5 / 0.5), math.log(0.3 / 0.7), math.log(0.8 / 0.2)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert torch.isfinite(tag_evidence(torch.tensor([[[200.0]], [[0.0]]]))).all()


def test_a_prior_multiplies_each_class_by_its_probability() -> None:
    prior = Prior(slope=(0.0, 1.0, 2.0), intercept=(math.inf, 0.5, -1.0))
    scores = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    evidence = tag_evidence(scores)
    cat = 1 / (1 + math.exp(-(float(evidence[1]) + 0.5)))
    dog = 1 / (1 + math.exp(-(2 * float(evidence[2]) - 1.0)))
    p = scores.softmax(dim=0)
    expected = p * torch.tensor([1.0, cat, dog]).view(3, 1, 1)
    expected /= expected.sum(dim=0, keepdim=True)
    torch.testing.assert_close(apply_prior(scores, prior).softmax(dim=0), expected)
    squared = p * torch.tensor([1.0, cat**2, dog**2]).view(3, 1, 1)
    squared /= squared.sum(dim=0, keepdim=True)
    torch.testing.assert_close(apply_prior(scores, prior, 2.0).softmax(dim=0), squared)
    assert torch.equal(apply_prior(scores, prior, 0.0), scores)


def test_the_calibration_recovers_the_odds_that_made_the_tags() -> None:
    random = np.random.default_rng(0)
    evidence = random.normal(0, 3, (4000, 3))
    odds = np.stack([np.zeros(4000), 1.5 * evidence[:, 1] - 2.0, 0.5 * evidence[:, 2] + 1.0], axis=1)
    tags = (random.random((4000, 3)) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    found = fit_prior(evidence, tags, CLASSES)
    assert found.slope[1:] == pytest.approx((1.5, 0.5), abs=0.12)
    assert found.intercept[1:] == pytest.approx((-2.0, 1.0), abs=0.15)
    assert float(found.log_probability(torch.zeros(3))[0]) == 0.0


def test_classes_without_enough_to_go_by_are_left_alone() -> None:
    random = np.random.default_rng(1)
    evidence = random.normal(size=(40, 3))
    tags = np.zeros((40, 3), dtype=np.int64)
    tags[:4, 1] = 1  # four cats: one too few
    tags[:, 2] = UNKNOWN
    tags[:8, 2] = 1  # no dog is known to be absent
    found = fit_prior(evidence, tags, CLASSES)
    assert found.log_probability(torch.randn(3)).tolist() == [0.0, 0.0, 0.0]


def test_evidence_that_speaks_against_its_class_is_not_used() -> None:
    evidence = np.repeat(np.linspace(-3, 3, 60)[:, None], 3, axis=1)
    tags = np.zeros((60, 3), dtype=np.int64)
    tags[:30, 1] = 1  # cats where the evidence is low
    tags[30:, 2] = 1
    found = fit_prior(evidence, tags, CLASSES)
    assert found.slope[1] == 0
    assert found.slope[2] > 0


def test_evidence_that_is_always_the_same_says_nothing() -> None:
    tags = np.zeros((20, 3), dtype=np.int64)
    tags[:10, 1:] = 1
    found = fit_prior(np.full((20, 3), 0.5), tags, CLASSES)
    assert found.log_probability(torch.full((3,), 0.5)).tolist() == [0.0, 0.0, 0.0]


def test_few_bags_are_held_back_by_half_the_squared_slope() -> None:
    """Five bags with the tag at 1, five without at -1: 10 log(1 + exp(-s)) + s^2 / 2 is least at s (1 + exp s) = 10."""
    evidence = np.repeat(np.repeat([1.0, -1.0], 5)[:, None], 3, axis=1)
    tags = np.zeros((10, 3), dtype=np.int64)
    tags[:5, 1:] = 1
    slope = fit_prior(evidence, tags, CLASSES).slope[1]
    assert slope * (1 + np.exp(slope)) == pytest.approx(10.0, abs=0.02)


def test_the_evidence_of_a_certain_place_is_bounded() -> None:
    found = tag_evidence(torch.tensor([[[200.0]], [[0.0]]], dtype=torch.float64))
    assert found[1] == -30.0
    assert 15 < found[0] <= 30
