import pytest
import torch

from milseg.data.bags import UNKNOWN
from milseg.rules.loss_map import log_probs, shown_weights
from milseg.rules.noisy_or import noisy_or
from tests.rules import equations as eq
from tests.rules.cases import random_case, slow


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("start", "absent"), [(0.0, 0.0), (0.0, 1.0), (0.5, 0.3), (0.9, 1.0)])
def test_equals_the_slow_equation(seed, start, absent):
    scores, tags, valid = random_case(seed)
    tags[2, 3] = UNKNOWN
    expected = slow(lambda bag: eq.noisy_or(bag, start, absent), scores, tags, valid)
    torch.testing.assert_close(noisy_or(scores, tags, valid, start=start, absent=absent), expected)


def test_the_shown_weights_are_those_of_the_source():
    scores, _, valid = random_case(0, batch=1)
    valid[:] = True
    tags = torch.tensor([[0, 1, 0, 0]])
    shown = shown_weights(lambda s: noisy_or(s, tags, valid, start=0.0, absent=0.0), scores, tags)
    p = log_probs(scores, tags)[0, 1].exp()
    total = 1 - (1 - p).prod()
    torch.testing.assert_close(shown[0, 1], p / (1 - p) * (1 - total) / total)
    torch.testing.assert_close(shown[0, [0, 2, 3]], torch.zeros_like(shown[0, :3]))


@pytest.mark.parametrize("cells", [4, 10_000])
def test_a_uniform_start_has_the_stated_probability_and_is_alive(cells):
    scores = torch.zeros(1, 21, 1, cells, requires_grad=True)
    tags = torch.zeros(1, 21, dtype=torch.int8)
    tags[0, :2] = 1
    valid = torch.ones(1, 1, cells, dtype=torch.bool)
    loss = noisy_or(scores, tags, valid, start=0.25, absent=0.0)
    assert float(loss.detach().neg().exp()) == pytest.approx(0.25, rel=1e-3)
    loss.sum().backward()
    assert float(scores.grad[0, 1].sum()) < -0.1
    dead = torch.zeros(1, 21, 1, 10_000, requires_grad=True)
    full = torch.ones(1, 1, 10_000, dtype=torch.bool)
    noisy_or(dead, tags, full, start=0.0, absent=0.0).sum().backward()
    assert float(dead.grad[0, 1].sum()) == pytest.approx(0, abs=1e-10)


def test_a_vanishing_class_still_pulls():
    scores = torch.zeros(1, 2, 1, 3)
    scores[:, 0] = 150.0
    scores.requires_grad_()
    tags, valid = torch.tensor([[0, 1]]), torch.ones(1, 1, 3, dtype=torch.bool)
    loss = noisy_or(scores, tags, valid, start=0.0, absent=0.0)
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(150 - torch.tensor(3.0).log().item(), rel=1e-4)
    assert float(scores.grad[0, 1].sum()) == pytest.approx(-1, rel=1e-3)


@pytest.mark.parametrize("known", [2, 3])
def test_a_uniform_map_starts_where_it_is_told_whatever_number_of_classes_is_known(known):
    tags = torch.tensor([[1, 1, 1]])
    tags[0, known:] = UNKNOWN
    scores, valid = torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    loss = noisy_or(scores, tags, valid, start=0.25, absent=0.0)
    torch.testing.assert_close(loss, -torch.tensor([0.25]).log())
