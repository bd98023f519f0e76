import math

import pytest
import torch

from milseg.data.bags import UNKNOWN
from milseg.rules.ranking import rank_pooling
from tests.rules import equations as eq
from tests.rules.cases import random_case, slow


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("fg", "bg", "absent", "reference"), [(0.996, 0.999, 1.0, 1681.0), (0.5, 0.9, 0.3, 0.0), (0.9, 1, 0, 20)]
)
def test_equals_the_slow_equation(seed, fg, bg, absent, reference):
    scores, tags, valid = random_case(seed)
    tags[2, 3] = UNKNOWN
    loss = rank_pooling(scores, tags, valid, foreground=fg, background=bg, absent=absent, reference=reference)
    expected = slow(lambda bag: eq.rank_pooling(bag, fg, bg, absent, reference), scores, tags, valid)
    torch.testing.assert_close(loss, expected)


def test_on_a_map_of_41_by_41_the_sources_numbers_are_taken_as_they_are():
    scores = torch.randn(1, 3, 41, 41, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tags = torch.tensor([[1, 1, 0]])
    valid = torch.ones(1, 41, 41, dtype=torch.bool)
    expected = rank_pooling(scores, tags, valid, reference=0.0)
    torch.testing.assert_close(rank_pooling(scores, tags, valid), expected)


def test_a_sure_absent_class_is_still_finite():
    scores = torch.zeros(1, 3, 2, 2)
    scores[0, 2, 0, 0] = 200.0
    scores.requires_grad_()
    loss = rank_pooling(scores, torch.tensor([[1, 1, 0]]), torch.ones(1, 2, 2, dtype=torch.bool))
    loss.sum().backward()
    assert 190 < float(loss.detach()) < 210
    assert scores.grad.isfinite().all()
    assert scores.grad[0, 2, 0, 0] > 0.9


def test_limits_are_the_average_and_the_max():
    scores, tags, valid = random_case(4)
    for d, pooled in ((1.0, lambda values: sum(values) / len(values)), (1e-6, max)):

        def equation(bag, pooled=pooled):
            each = {c: -math.log(pooled([p[c] for p in bag.p])) for c in bag.present}
            return eq.mean(each[c] for c in bag.front) + each[0]

        loss = rank_pooling(scores, tags, valid, foreground=d, background=d, absent=0.0)
        torch.testing.assert_close(loss, slow(equation, scores, tags, valid))
