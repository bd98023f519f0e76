import math

import pytest
import torch

from milseg.bags import UNKNOWN
from milseg.rules.ranking import rank_pooling
from tests.rules.cases import mean, random_case, slow


def equation_with(fg, bg, absent, reference):
    def equation(bag):
        def pooled(c, d):
            falling = sorted((p[c] for p in bag.p), reverse=True)
            power = reference / bag.n if reference else 1.0
            weights = [d ** (j * power) for j in range(bag.n)]
            return sum(w * p for w, p in zip(weights, falling, strict=True)) / sum(weights)

        loss = -mean(math.log(pooled(c, fg)) for c in bag.front)
        loss -= absent * mean(math.log(1 - max(p[c] for p in bag.p)) for c in bag.absent)
        return loss - math.log(pooled(0, bg))

    return equation


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("fg", "bg", "absent", "reference"), [(0.996, 0.999, 1.0, 1681.0), (0.5, 0.9, 0.3, 0.0), (0.9, 1, 0, 20)]
)
def test_equals_the_slow_equation(seed, fg, bg, absent, reference):
    scores, tags, valid = random_case(seed)
    tags[2, 3] = UNKNOWN
    loss = rank_pooling(scores, tags, valid, foreground=fg, background=bg, absent=absent, reference=reference)
    torch.testing.assert_close(loss, slow(equation_with(fg, bg, absent, reference), scores, tags, valid))


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
