import math

import pytest
import torch

from milseg.data.bags import UNKNOWN
from milseg.rules import find_rule
from milseg.rules.cells import cells_of
from milseg.rules.log_sum_exp import log_expm1_ratio, log_of_pooled, log_sum_exp_probs, log_sum_exp_scores
from milseg.rules.loss_map import log_probs
from milseg.rules.pooling import average_scores
from tests.rules import equations as eq
from tests.rules.cases import mean, random_case, slow


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("r", [0.5, 5.0])
def test_of_scores_equals_the_slow_equation(seed, r):
    scores, tags, valid = random_case(seed)
    tags[2, 3] = UNKNOWN
    for sigmoid, loss in ((False, eq.competing), (True, eq.logistic)):
        expected = slow(lambda bag, loss=loss: eq.log_sum_exp_scores(bag, r, loss), scores, tags, valid)
        torch.testing.assert_close(log_sum_exp_scores(scores, tags, valid, r=r, sigmoid=sigmoid), expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("r", "absent"), [(0.5, 0.0), (5.0, 0.7), (100.0, 1.0)])
def test_of_probs_equals_the_slow_equation(seed, r, absent):
    scores, tags, valid = random_case(seed)
    tags[2, 3] = UNKNOWN
    expected = slow(lambda bag: eq.log_sum_exp_probs(bag, r, absent), scores, tags, valid)
    torch.testing.assert_close(log_sum_exp_probs(scores, tags, valid, r=r, absent=absent), expected)


def test_the_order_of_pooling_matters():
    scores, tags, valid = random_case(1)
    of_scores, of_probs = log_sum_exp_scores(scores, tags, valid), log_sum_exp_probs(scores, tags, valid)
    assert ((of_scores - of_probs).abs() > 0.1).any()


def test_limits():
    scores, tags, valid = random_case(3)
    top = find_rule("max").rule(scores, tags, valid)
    close = {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(log_sum_exp_probs(scores, tags, valid, r=1e4), top, **close)

    def average(bag):
        return -mean(math.log(mean(p[c] for p in bag.p)) for c in bag.present)

    expected = slow(average, scores, tags, valid)
    torch.testing.assert_close(log_sum_exp_probs(scores, tags, valid, r=1e-3), expected, **close)

    def max_of_scores(bag):
        return eq.competing(bag, {c: max(s[c] for s in bag.s) for c in bag.known})

    expected = slow(max_of_scores, scores, tags, valid)
    torch.testing.assert_close(log_sum_exp_scores(scores, tags, valid, r=1e4), expected, **close)
    expected = average_scores(scores, tags, valid)
    torch.testing.assert_close(log_sum_exp_scores(scores, tags, valid, r=1e-4), expected, **close)


@pytest.mark.parametrize("gap", [3.0, 30.0, 300.0, 3000.0])
def test_probs_stay_exact_where_a_class_vanishes_or_fills_everything(gap):
    scores = torch.zeros(1, 3, 2, 2)
    scores[:, 0] += gap
    scores[0, 1, 0, 0] += 1.0
    scores.requires_grad_()
    tags = torch.tensor([[0, 1, 0]], dtype=torch.int8)
    loss = log_sum_exp_probs(scores, tags, torch.ones(1, 2, 2, dtype=torch.bool), absent=1.0)
    (grad,) = torch.autograd.grad(loss.sum(), scores)
    assert loss.isfinite().all()
    assert grad.isfinite().all()
    if gap > 10:
        # P_1 is the mean of p_1, about e^-gap; 1 - P_0 about the mean of e^-gap times e + 1 or 2
        log_p = log_probs(scores.detach().double(), tags)
        up = -float(log_p[0, 1].logsumexp((0, 1)) - math.log(4))
        weights = torch.exp(torch.tensor([[1.0, 0.0], [0.0, 0.0]], dtype=torch.float64))
        others = float((weights + 1).sum().log()) - gap - math.log(4)
        # LSE of 1 - x with r = 5 is 1 - mean x e^5 / e^5
        assert float(loss.detach()) == pytest.approx(up - others / 2, rel=1e-4)
        assert grad[0, 1].min() < -1e-3


@pytest.mark.parametrize("gap", [5.0, 6.0, 7.0, 8.0, 9.0])
def test_probs_are_exact_where_the_two_ways_to_compute_them_meet(gap):
    scores, _, valid = random_case(0, batch=1)
    scores = scores / 10
    scores[:, 0] += gap
    tags = torch.tensor([[1, 1, 0, 0]])
    expected = slow(lambda bag: eq.log_sum_exp_probs(bag, 5.0, 1.0), scores, tags, valid)
    got = log_sum_exp_probs(scores, tags, valid, r=5.0, absent=1.0)
    torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("r", [0.5, 5.0, -5.0])
def test_small_pooled_values_to_the_last_digits(r):
    """The series for small values meets the plain equation, here in longer numbers than its own error."""
    cells = cells_of(torch.ones(1, 1), torch.ones(1, 2, 2, dtype=torch.bool), torch.float64)
    for largest in (1e-5, 1e-3, 1.9e-3, 2.6e-3, 5e-3):
        x = torch.linspace(largest / 4, largest, 4, dtype=torch.float64).view(1, 1, 4)
        mean_exp = math.fsum(math.expm1(r * float(v)) for v in x.flatten()) / 4
        expected = math.log(math.log1p(mean_exp) / r)
        assert float(log_of_pooled(x.log(), r, cells)) == pytest.approx(expected, abs=2.5e-7)


def test_the_ratio_of_expm1_around_zero():
    y = torch.tensor([-2e-3, -9e-4, 0.0, 9e-4, 2e-3], dtype=torch.float64)
    expected = [math.log(math.expm1(v) / v) if v else 0.0 for v in y.tolist()]
    assert log_expm1_ratio(y).tolist() == pytest.approx(expected, abs=1e-12)
