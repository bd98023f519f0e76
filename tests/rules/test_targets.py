import math

import pytest
import torch

from milseg.data.bags import UNKNOWN
from milseg.rules import find_rule
from milseg.rules.loss_map import loss_map
from milseg.rules.targets import choose_ccnn, choose_em_adapt
from tests.rules import equations as eq
from tests.rules.cases import Bag, random_case, slow


def selectable_of(tags, valid):
    return valid[:, None] & (tags != UNKNOWN)[:, :, None, None]


@pytest.mark.parametrize("seed", range(4))
def test_em_fixed_equals_the_slow_equation(seed):
    scores, tags, valid = random_case(seed)
    tags[2, 3] = UNKNOWN

    loss = find_rule("em-fixed(foreground=1.5, background=0.5)").rule(scores, tags, valid)
    expected = slow(lambda bag: eq.crossed(bag, eq.em_fixed(bag, 1.5, 0.5)), scores, tags, valid)
    torch.testing.assert_close(loss, expected)


def test_em_fixed_may_choose_an_absent_class_and_em_adapt_may_not():
    scores = torch.zeros(1, 3, 1, 2)
    scores[0, 2, 0, 0] = 20.0
    tags, valid = torch.tensor([[1, 1, 0]]), torch.ones(1, 1, 2, dtype=torch.bool)
    losses, present = loss_map(scores, tags), (tags == 1).float()
    fixed = find_rule("em-fixed").choose(losses, present, selectable_of(tags, valid), None)
    assert fixed[0, :, 0, 0].tolist() == [0, 0, 0.5]
    adapted = find_rule("em-adapt").choose(losses, present, selectable_of(tags, valid), None)
    assert adapted[0, 2].tolist() == [[0, 0]]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rounds", [1, 5])
def test_em_adapt_equals_the_slow_algorithm(seed, rounds):
    scores, tags, valid = random_case(seed)
    tags[2, 3] = UNKNOWN
    loss = find_rule(f"em-adapt(rounds={rounds})").rule(scores, tags, valid)
    expected = slow(lambda bag: eq.crossed(bag, eq.em_adapt(bag, 0.4, 0.2, rounds)), scores, tags, valid)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("seed", range(4))
def test_em_adapt_gives_each_present_class_its_share(seed):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(4, 4, 8, 10, generator=g)
    scores[:, 0] += 6  # the background is everywhere the top class
    tags = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 1], [1, 0, 0, 0], [1, -1, 1, 0]])
    valid = torch.ones(4, 8, 10, dtype=torch.bool)
    valid[1, :, 7:] = False
    targets = choose_em_adapt(loss_map(scores, tags), (tags == 1).float(), selectable_of(tags, valid))
    area = targets.sum(dim=(2, 3))
    torch.testing.assert_close(area.sum(dim=1), torch.ones(4))
    assert (area[tags != 1] == 0).all()
    assert (area[:, 0] >= 0.39).all()
    for b in range(4):
        for c in range(1, 4):
            if tags[b, c] == 1:
                assert area[b, c] >= 0.19


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("lift", [0.0, 4.0, -4.0])
def test_ccnn_equals_the_slow_dual(seed, lift):
    scores, tags, valid = random_case(seed, height=2, width=3)
    scores[:, 0] += lift
    tags[2, 3] = UNKNOWN
    loss = find_rule("ccnn").rule(scores, tags, valid)
    expected = slow(lambda bag: eq.crossed(bag, eq.ccnn(bag)), scores, tags, valid)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lift", [0.0, 12.0, -12.0])
def test_ccnn_meets_its_constraints(lift):
    g = torch.Generator().manual_seed(1)
    scores = torch.randn(4, 5, 9, 9, generator=g)
    scores[:, 0] += lift
    tags = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 1, 1, 1], [1, 0, 0, 0, 0], [1, -1, 1, 0, 0]])
    valid = torch.ones(4, 9, 9, dtype=torch.bool)
    targets = choose_ccnn(
        loss_map(scores, tags), (tags == 1).float(), selectable_of(tags, valid), slack=100.0
    )
    area = targets.sum(dim=(2, 3))
    torch.testing.assert_close(area.sum(dim=1), torch.ones(4))
    assert (area[tags != 1] == 0).all()
    assert float(area[2, 0]) == pytest.approx(1)
    for b in (0, 1, 3):
        assert 0.299 <= area[b, 0] <= 0.701
        for c in range(1, 5):
            if tags[b, c] == 1:
                assert area[b, c] >= 0.0499


def test_ccnn_leaves_an_output_alone_that_meets_the_constraints():
    scores = torch.zeros(1, 2, 1, 4)
    tags, valid = torch.tensor([[1, 1]]), torch.ones(1, 1, 4, dtype=torch.bool)
    targets = choose_ccnn(loss_map(scores, tags), (tags == 1).float(), selectable_of(tags, valid))
    torch.testing.assert_close(targets, torch.full((1, 2, 1, 4), 0.125))


def test_ccnn_slack_bounds_the_push():
    scores = torch.zeros(1, 2, 1, 4)
    scores[:, 0] = 9.0
    tags, valid = torch.tensor([[1, 1]]), torch.ones(1, 1, 4, dtype=torch.bool)
    choice = find_rule("ccnn(background_high=1, slack=2)").choose
    targets = choice(loss_map(scores, tags), (tags == 1).float(), selectable_of(tags, valid), None)
    assert float(targets[0, 1].sum()) == pytest.approx(1 / (1 + math.exp(9 - 2)), rel=1e-4)


def test_nothing_present_gives_no_target():
    scores = torch.zeros(1, 3, 1, 2)
    tags, valid = torch.tensor([[0, 0, -1]]), torch.ones(1, 1, 2, dtype=torch.bool)
    for name in ("em-fixed", "em-adapt", "ccnn"):
        loss = find_rule(name).rule(scores.requires_grad_(), tags, valid)
        assert loss.tolist() == [0], name
        loss.sum().backward()


def test_bags_helper_reads_what_the_rules_read():
    scores, tags, valid = random_case(0)
    bag = Bag(scores[0], tags[0], valid[0])
    assert bag.n == int(valid[0].sum())
    assert sum(bag.p[0].values()) == pytest.approx(1)


def test_em_adapt_raises_a_class_in_a_photo_of_one_place():
    losses = torch.tensor([0.1, 2.0]).view(1, 2, 1, 1)
    seen = torch.ones(1, 2, 1, 1, dtype=torch.bool)
    assert choose_em_adapt(losses, torch.ones(1, 2), seen).flatten().tolist() == [0.0, 1.0]
