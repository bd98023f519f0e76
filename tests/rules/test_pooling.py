import math

import pytest
import torch

from milseg.data.bags import UNKNOWN
from milseg.rules.pooling import average_scores, weighted_pooling, wildcat
from tests.rules import equations as eq
from tests.rules.cases import random_case, slow


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("sigmoid", "loss"), [(False, eq.competing), (True, eq.logistic)])
def test_average_scores_equals_the_slow_equation(seed, sigmoid, loss):
    scores, tags, valid = random_case(seed)
    tags[2, 3] = UNKNOWN
    expected = slow(lambda bag: eq.average_scores(bag, loss), scores, tags, valid)
    torch.testing.assert_close(average_scores(scores, tags, valid, sigmoid=sigmoid), expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("k", "alpha"), [(1.0, 0.0), (3.0, 0.7), (0.4, -0.5), (100.0, 1.0)])
def test_wildcat_equals_the_slow_equation(seed, k, alpha):
    scores, tags, valid = random_case(seed)
    tags[2, 3] = UNKNOWN
    for sigmoid, loss in ((False, eq.competing), (True, eq.logistic)):
        expected = slow(lambda bag, loss=loss: eq.wildcat(bag, k, alpha, loss), scores, tags, valid)
        got = wildcat(scores, tags, valid, k=k, alpha=alpha, sigmoid=sigmoid)
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("power", "floor"), [(1.0, 1.0), (2.0, 0.1)])
def test_weighted_pooling_equals_the_slow_equation(seed, power, floor):
    scores, tags, valid = random_case(seed)
    tags[2, 3] = UNKNOWN
    expected = slow(lambda bag: eq.weighted_pooling(bag, power, floor), scores, tags, valid)
    torch.testing.assert_close(weighted_pooling(scores, tags, valid, power=power, floor=floor), expected)


def test_weighted_pooling_is_the_sources_for_a_network_whose_background_score_is_1():
    scores, tags, valid = random_case(3)
    scores[:, 0] = 1.0
    tags[:] = torch.tensor([1, 1, 0, 1])
    p = scores.softmax(dim=1) * valid[:, None]
    y = (scores * p).sum((2, 3)) / (1 + p.sum((2, 3)))
    area = p.sum((2, 3)) / valid.sum((1, 2))[:, None]
    z = y + (1 - area) ** 3 * torch.log(0.01 + area)
    expected = torch.nn.functional.multilabel_soft_margin_loss(
        z[:, 1:], tags[:, 1:].double(), reduction="none"
    )
    torch.testing.assert_close(weighted_pooling(scores, tags, valid), expected)


def test_the_penalty_weighs_on_small_areas():
    big, small = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    big[:, 1, :, :2], big[:, 0, :, 2:] = 9.0, 9.0
    small[:, 1, 0, 0], small[:, 0].view(-1)[1:] = 9.0, 9.0
    tags, valid = torch.tensor([[1, 1]]), torch.ones(1, 4, 4, dtype=torch.bool)
    gap = weighted_pooling(small, tags, valid) - weighted_pooling(big, tags, valid)
    without = weighted_pooling(small, tags, valid, floor=1.0) - weighted_pooling(big, tags, valid, floor=1.0)
    assert float(gap) > 4 * float(without)
    assert math.isfinite(float(gap))
