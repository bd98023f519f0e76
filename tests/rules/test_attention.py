import pytest
import torch

from milseg.data.bags import UNKNOWN
from milseg.rules import RULES, find_rule
from milseg.rules.attention import Attention
from milseg.rules.pooling import average_scores
from tests.rules import equations as eq
from tests.rules.cases import random_case, slow


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_equals_the_slow_equation(seed, gated, shared):
    scores, tags, valid = random_case(seed)
    tags[2, 3] = UNKNOWN
    rule = Attention(4, hidden=5, gated=gated, shared=shared, seed=seed).double()
    expected = slow(lambda bag: eq.attention(bag, rule), scores, tags, valid)
    torch.testing.assert_close(rule(scores, tags, valid), expected)


def test_parameters_learn_and_are_the_seeds():
    scores, tags, valid = random_case(2)
    rule = Attention(4, gated=True)
    rule(scores, tags, valid).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in rule.parameters())
    before = torch.get_rng_state()
    assert all(
        torch.equal(a, b)
        for a, b in zip(rule.parameters(), Attention(4, gated=True).parameters(), strict=True)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(rule.V, Attention(4, seed=1).V)


def test_an_unknown_class_moves_no_parameter_of_its_own():
    scores, tags, valid = random_case(2)
    tags[:, 3] = UNKNOWN
    rule = Attention(4, gated=True)
    rule(scores, tags, valid).sum().backward()
    assert not rule.V.grad[:, 3].any()
    assert not rule.U.grad[:, 3].any()
    assert not rule.w.grad[3].any()


def test_even_attention_is_the_average():
    scores, tags, valid = random_case(3)
    rule = Attention(4)
    with torch.no_grad():
        rule.w.zero_()
    torch.testing.assert_close(rule(scores, tags, valid), average_scores(scores, tags, valid))
    a = rule.weights(scores, tags, valid)
    torch.testing.assert_close(a.sum((2, 3)), torch.ones(3, 4, dtype=a.dtype))
    assert not a.permute(0, 2, 3, 1)[~valid].any()


def test_gradcheck_of_the_parameters():
    scores, tags, valid = random_case(4, batch=1, classes=3, height=2, width=3)
    rule = Attention(3, hidden=2, gated=True).double()
    names = [name for name, _ in rule.named_parameters()]

    def loss(*values):
        return torch.func.functional_call(rule, dict(zip(names, values, strict=True)), (scores, tags, valid))

    assert torch.autograd.gradcheck(loss, tuple(rule.parameters()))


def test_the_row_builds_fresh_modules_and_says_so_when_called_unbuilt():
    entry = find_rule("attention(hidden=3, gated=true)")
    rule = entry.build(4)
    assert isinstance(rule, torch.nn.Module)
    assert rule.V.shape == (3, 4)
    assert rule.U is not None
    assert entry.build(4) is not rule
    scores, tags, valid = random_case(0)
    with pytest.raises(TypeError, match="build"):
        RULES["attention"].load().rule(scores, tags, valid)
    entry = find_rule("max")
    assert entry.build(4) is entry.rule


def test_parameters_start_evenly_within_one_over_the_root_of_what_they_take():
    rule = Attention(4, hidden=400, gated=True)
    for parameter, takes in ((rule.V, 4), (rule.U, 4), (rule.w, 400)):
        bound = takes**-0.5
        assert parameter.abs().max() <= bound
        assert parameter.max() > 0.95 * bound
        assert parameter.min() < -0.95 * bound
        assert parameter.mean().abs() < 0.1 * bound
