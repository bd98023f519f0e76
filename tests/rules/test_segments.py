import pytest
import torch

from milseg.data.bags import UNKNOWN
from milseg.errors import UserError
from milseg.rules import RULES, find_rule
from tests.rules import equations as eq
from tests.rules.cases import bags_of, random_case, random_extras

LIFTED = pytest.mark.parametrize("name", [name for name in RULES if name.startswith("segment-")])


@LIFTED
def test_segments_of_one_place_give_back_the_rule_of_places(name):
    scores, tags, valid = random_case(1)
    tags[2, 3] = UNKNOWN
    numbers = torch.randperm(valid[0].numel(), generator=torch.Generator().manual_seed(0))
    segments = numbers.view(1, *valid.shape[1:]).expand(valid.shape)
    place_rule = RULES[name.removeprefix("segment-")].load().rule
    leaf, other = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    loss = RULES[name].load().rule(leaf, tags, valid, segments=segments)
    expected = place_rule(other, tags, valid)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)


@LIFTED
def test_renumbered_segments_change_nothing(name):
    scores, tags, valid = random_case(2)
    segments = random_extras(2, valid)["segments"]
    renamed = torch.where(segments >= 0, 7 - 2 * segments, -5)
    rule = RULES[name].load().rule
    torch.testing.assert_close(
        rule(scores, tags, valid, segments=renamed), rule(scores, tags, valid, segments=segments)
    )


def test_options_go_to_the_choice():
    scores, tags, valid = random_case(3)
    segments = random_extras(3, valid)["segments"]
    loss = find_rule("segment-top-k(k=2)").rule(scores, tags, valid, segments=segments)
    expected = [eq.top_k(eq.Merged(bag), 2) for bag in bags_of(scores, tags, valid, segments)]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=scores.dtype))


def test_a_vanishing_segment_keeps_its_log():
    scores = torch.zeros(1, 2, 1, 2)
    scores[:, 0] = 300.0
    scores.requires_grad_()
    loss = (
        RULES["segment-max"]
        .load()
        .rule(
            scores,
            torch.tensor([[0, 1]]),
            torch.ones(1, 1, 2, dtype=torch.bool),
            segments=torch.zeros(1, 1, 2, dtype=torch.int32),
        )
    )
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(300)
    torch.testing.assert_close(scores.grad[0, 1, 0], torch.tensor([-0.5, -0.5]))


def test_a_bag_without_segments_is_a_connected_zero():
    scores, tags, valid = random_case(4)
    scores.requires_grad_()
    loss = RULES["segment-max"].load().rule(scores, tags, valid, segments=torch.full(valid.shape, -1))
    assert loss.tolist() == [0, 0, 0]
    loss.sum().backward()
    assert not scores.grad.any()


@pytest.mark.parametrize(
    ("segments", "words"),
    [
        (None, "given none"),
        (torch.zeros(3, 2, 2, dtype=torch.int64), r"expected whole numbers \(3, 3, 5\)"),
        (torch.zeros(3, 3, 5), "float32"),
    ],
)
def test_mistakes_are_named(segments, words):
    scores, tags, valid = random_case(4)
    with pytest.raises(UserError, match=words):
        RULES["segment-max"].load().rule(scores, tags, valid, segments=segments)
