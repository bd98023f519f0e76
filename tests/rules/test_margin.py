import pytest
import torch

from milseg.data.bags import UNKNOWN
from milseg.rules.margin import max_margin
from tests.rules import equations as eq
from tests.rules.cases import random_case, slow


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("margin", [0.5, 1.0, 4.0])
def test_equals_the_slow_equation(seed, margin):
    scores, tags, valid = random_case(seed)
    tags[2, 3] = UNKNOWN
    expected = slow(lambda bag: eq.max_margin(bag, margin), scores, tags, valid)
    torch.testing.assert_close(max_margin(scores, tags, valid, margin=margin), expected)


def test_the_gradient_falls_on_the_top_place_of_classes_within_the_margin():
    scores = torch.tensor([[[[5.0, 0.0]], [[0.5, 0.2]], [[-0.5, -9.0]], [[-4.0, -3.0]]]], requires_grad=True)
    max_margin(scores, torch.tensor([[1, 1, 0, 0]]), torch.ones(1, 1, 2, dtype=torch.bool)).sum().backward()
    assert scores.grad[0].tolist() == [[[0, 0]], [[-0.25, 0]], [[0.25, 0]], [[0, 0]]]


def test_ties_go_to_one_place():
    scores = torch.zeros(1, 1, 2, 2, requires_grad=True)
    max_margin(scores, torch.tensor([[1]]), torch.ones(1, 2, 2, dtype=torch.bool)).sum().backward()
    assert sorted(scores.grad.flatten().tolist()) == [-1, 0, 0, 0]
