import pytest
import torch

from milseg.data.bags import UNKNOWN
from milseg.rules import RULES, find_rule
from milseg.rules.consistency import consistency
from milseg.rules.hard_negatives import hard_negatives
from milseg.rules.loss_map import log_probs, shown_weights
from tests.rules import equations as eq
from tests.rules.cases import bags_of, random_case, slow


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("k", "weight"), [(1.0, 1.0), (3.0, 0.5), (0.3, 2.0), (100.0, 1.0)])
def test_hard_negatives_equal_the_slow_equation(seed, k, weight):
    scores, tags, valid = random_case(seed)
    tags[2, 3] = UNKNOWN
    expected = slow(lambda bag: eq.hard_negatives(bag, k, weight), scores, tags, valid)
    torch.testing.assert_close(hard_negatives(scores, tags, valid, k=k, weight=weight), expected)


def test_hard_negatives_shown_on_the_loss_map():
    scores, _, valid = random_case(1, batch=1)
    valid[:] = True
    tags = torch.tensor([[1, 1, 1, 0]])
    shown = shown_weights(lambda s: hard_negatives(s, tags, valid), scores, tags)
    p = log_probs(scores, tags).exp()[0]
    y, x = divmod(int(p[3].argmax()), p.shape[2])
    expected = torch.zeros_like(p)
    expected[:3, y, x] = p[:3, y, x] / (1 - p[3, y, x])
    torch.testing.assert_close(shown[0], expected)


def test_hard_negatives_are_exact_where_a_wrong_class_is_certain():
    scores = torch.zeros(1, 3, 1, 2)
    scores[0, 2, 0, 1] = 500.0
    scores.requires_grad_()
    loss = hard_negatives(scores, torch.tensor([[1, 1, 0]]), torch.ones(1, 1, 2, dtype=torch.bool))
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(500 - torch.tensor(2.0).log().item())
    torch.testing.assert_close(scores.grad[0, :, 0, 1], torch.tensor([-0.5, -0.5, 1.0]))


@pytest.mark.parametrize("seed", range(4))
def test_consistency_equals_the_slow_equation(seed):
    scores, tags, valid = random_case(seed, batch=5)
    tags[2, 3] = UNKNOWN
    tags[3, 1] = UNKNOWN
    bags = bags_of(scores, tags, valid)
    expected = torch.tensor([eq.consistency(bag, bags, 2.0) for bag in bags], dtype=scores.dtype)
    assert (expected > 0).any()
    torch.testing.assert_close(consistency(scores, tags, valid, weight=2.0), expected)


def test_consistency_is_neutral_where_no_other_bag_carries_the_tag():
    scores, _, valid = random_case(5)
    tags = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 1]])
    scores.requires_grad_()
    loss = consistency(scores, tags, valid)
    assert loss.tolist() == [0, 0, 0]
    (grad,) = torch.autograd.grad(loss.sum(), scores)
    assert not grad.any()
    tags[1, 1] = 1
    loss = consistency(scores, tags, valid)
    assert loss[0] > 0
    assert loss[1] > 0
    assert loss[2] == 0
    valid[1] = False  # a bag without a cell is no example either
    assert consistency(scores, tags, valid).tolist() == [0, 0, 0]


def test_consistency_teaches_nothing_through_the_other_bags():
    scores, tags, valid = random_case(6)
    tags[:, 1] = 1
    scores.requires_grad_()
    (grad,) = torch.autograd.grad(consistency(scores, tags, valid)[0], scores)
    assert grad[0].any()
    assert not grad[1:].any()


def test_terms_are_added():
    scores, tags, valid = random_case(7)
    tags[:, 1] = 1
    together = find_rule("top-k(k=2)+hard-negatives(k=3, weight=0.5)+consistency")
    expected = (
        find_rule("top-k(k=2)").rule(scores, tags, valid)
        + hard_negatives(scores, tags, valid, k=3, weight=0.5)
        + consistency(scores, tags, valid)
    )
    torch.testing.assert_close(together.rule(scores, tags, valid), expected)
    assert together.sees_batch
    assert together.learned is None
    assert together.build(4) is together.rule


def test_a_term_alone_is_added_to_the_papers_rule():
    scores, tags, valid = random_case(7)
    for term in ("hard-negatives", "consistency"):
        expected = RULES["max"].load().rule(scores, tags, valid) + RULES[term].load().rule(
            scores, tags, valid
        )
        torch.testing.assert_close(find_rule(term).rule(scores, tags, valid), expected)


def test_what_a_sum_needs_is_what_its_parts_need():
    entry = find_rule("segment-max+attention(hidden=2)+binary-max")
    assert entry.needs_segments
    assert entry.raw_scores
    assert entry.supervision == "tags"
    assert find_rule("max+oracle").supervision == "masks"
    rule = entry.build(4)
    assert isinstance(rule, torch.nn.Module)
    assert [name for name, _ in rule.named_parameters()] == ["learned.0.V", "learned.0.w"]
    scores, tags, valid = random_case(8, dtype=torch.float32)
    segments = torch.zeros(valid.shape, dtype=torch.int64)
    parts = [find_rule(name).build(4) for name in ("segment-max", "attention(hidden=2)", "binary-max")]
    expected = sum(part(scores, tags, valid, segments=segments) for part in parts)
    torch.testing.assert_close(rule(scores, tags, valid, segments=segments), expected)
