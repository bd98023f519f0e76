import math

import pytest
import torch

from milseg.data.bags import UNKNOWN, VOID
from milseg.errors import UserError
from milseg.rules import RULES, find_rule
from milseg.rules.choosing import choose_max, choose_top_k, choosing_rule, mil_loss
from milseg.rules.loss_map import log_probs, loss_map, shown_weights, weighted_loss
from tests.rules.cases import random_case, slow
from tests.rules.equations import top_k


def slow_mil_loss(scores, tags, valid):
    """The paper's equation, one number at a time."""
    out = []
    for b in range(len(scores)):
        known = [c for c in range(scores.shape[1]) if tags[b, c] != UNKNOWN]
        label_set = [c for c in known if tags[b, c] == 1]
        total = 0.0
        for label in label_set:
            best = None
            for y in range(scores.shape[2]):
                for x in range(scores.shape[3]):
                    if not valid[b, y, x]:
                        continue
                    denominator = sum(math.exp(scores[b, c, y, x]) for c in known)
                    p = math.exp(scores[b, label, y, x]) / denominator
                    best = p if best is None or p > best else best
            total += math.log(best)
        out.append(-total / len(label_set))
    return torch.tensor(out, dtype=scores.dtype)


def test_two_by_three_map_by_hand():
    # Two classes; logits chosen so that the softmax is a simple fraction: p1 = e/(1+e) with e = exp(s1).
    ratio = torch.tensor([[1.0, 3.0, 1 / 4], [9.0, 1.0, 1 / 3]])
    scores = torch.stack([torch.zeros(2, 3), ratio.log()])[None]
    loss = mil_loss(scores, torch.tensor([[1, 1]]), torch.ones(1, 2, 3, dtype=torch.bool))
    # best cell of class 1: p = 9/10; best cell of the background: p = 1 - 1/5 = 4/5
    assert loss.item() == pytest.approx(-(math.log(0.9) + math.log(0.8)) / 2, abs=1e-6)
    # background only: the label set has one member
    loss = mil_loss(scores, torch.tensor([[1, 0]]), torch.ones(1, 2, 3, dtype=torch.bool))
    assert loss.item() == pytest.approx(-math.log(0.8), abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_slow_equation(seed):
    scores, tags, valid = random_case(seed)
    torch.testing.assert_close(mil_loss(scores, tags, valid), slow_mil_loss(scores, tags, valid))
    tags[0, 2] = UNKNOWN
    torch.testing.assert_close(mil_loss(scores, tags, valid), slow_mil_loss(scores, tags, valid))


def test_gradient_falls_on_one_place_a_present_class():
    scores, tags, valid = random_case(1)
    scores.requires_grad_()
    mil_loss(scores, tags, valid).sum().backward()
    touched = (scores.grad.abs().sum(dim=1) > 0).flatten(1).sum(dim=1)
    assert (touched <= tags.sum(dim=1)).all()
    assert (touched >= 1).all()
    assert not (scores.grad.abs().sum(dim=1) > 0)[~valid].any()


def test_gradcheck_with_the_choice_held_fixed():
    scores, tags, valid = random_case(2)
    assert torch.autograd.gradcheck(lambda s: mil_loss(s, tags, valid), scores.requires_grad_())


def test_ties_go_to_one_place():
    scores = torch.zeros(1, 2, 2, 2, requires_grad=True)
    tags = torch.tensor([[1, 1]])
    valid = torch.tensor([[[False, True], [True, True]]])
    weights = choose_max(loss_map(scores, tags), tags.float(), valid[:, None])
    expected = torch.zeros(1, 2, 2, 2)
    expected[0, :, 0, 1] = 0.5  # the first valid cell in reading order
    torch.testing.assert_close(weights, expected)


def test_weight_map_and_mask_act_on_the_loss_map():
    scores, tags, valid = random_case(8)
    base = mil_loss(scores, tags, valid)
    torch.testing.assert_close(mil_loss(scores, tags, valid, weight_map=torch.tensor(3.0)), 3 * base)
    only = torch.zeros(1, 1, *valid.shape[1:], dtype=torch.bool)
    only[..., 0, 0] = True
    expected = -(log_probs(scores, tags)[:, :, 0, 0] * tags).sum(dim=1) / tags.sum(dim=1)
    torch.testing.assert_close(mil_loss(scores, tags, valid, mask=only), expected)
    scores.requires_grad_()
    mil_loss(scores, tags, valid, weight_map=torch.zeros(1, 4, 1, 1)).sum().backward()
    assert not scores.grad.any()


def test_average_is_the_mean_of_the_loss_map():
    scores, tags, valid = random_case(9)
    losses = loss_map(scores, tags)
    for b in range(3):
        present = [c for c in range(4) if tags[b, c] == 1]
        expected = torch.stack([losses[b, c][valid[b]].mean() for c in present]).mean()
        torch.testing.assert_close(RULES["average"].load().rule(scores, tags, valid)[b], expected)


def test_oracle_is_cross_entropy_with_void_ignored():
    scores, tags, valid = random_case(10)
    masks = torch.randint(0, 4, valid.shape)
    masks[:, 0] = VOID
    loss = RULES["oracle"].load().rule(scores, tags, valid, masks=masks)
    target = masks.masked_fill(~valid, VOID)
    for b in range(3):
        expected = torch.nn.functional.cross_entropy(scores[b : b + 1], target[b : b + 1], ignore_index=VOID)
        torch.testing.assert_close(loss[b], expected)
    with pytest.raises(UserError, match="masks"):
        RULES["oracle"].load().rule(scores, tags, valid)


def test_binary_max_is_the_logistic_loss_at_the_top_score():
    scores, tags, valid = random_case(11)
    loss = RULES["binary-max"].load().rule(scores, tags, valid)
    for b in range(3):
        total = 0.0
        for c in range(4):
            top = scores[b, c][valid[b]].max()
            total += math.log1p(math.exp(-top)) if tags[b, c] == 1 else math.log1p(math.exp(top))
        assert loss[b].item() == pytest.approx(total / 4)


@pytest.mark.parametrize("name", ["max", "average"])
def test_shown_weights_give_back_a_choosing_rules_own(name):
    scores, tags, valid = random_case(12)
    tags[0] = torch.tensor([1, 1, 0, 0])
    tags[1] = torch.tensor([1, 0, UNKNOWN, 1])
    rule = RULES[name].load().rule
    shown = shown_weights(lambda s: rule(s, tags, valid), scores, tags)
    leaf = scores.clone().requires_grad_()
    rule(leaf, tags, valid).sum().backward()
    again = scores.clone().requires_grad_()
    weighted_loss(loss_map(again, tags), shown).sum().backward()
    torch.testing.assert_close(again.grad, leaf.grad)
    if name == "max":
        own = choose_max(loss_map(scores, tags), (tags == 1).double(), valid[:, None])
        torch.testing.assert_close(shown[0], own[0])


def test_shown_weights_refuse_a_rule_of_raw_scores():
    scores, tags, valid = random_case(13)
    with pytest.raises(ValueError, match="raw scores"):
        shown_weights(lambda s: RULES["binary-max"].load().rule(s, tags, valid), scores, tags)


def test_ones_own_choice_becomes_a_rule():
    scores, tags, valid = random_case(14)

    def centre(losses, present, selectable, masks=None):
        weights = torch.zeros_like(losses)
        weights[:, :, 1, 2] = present / present.sum(dim=1, keepdim=True)
        return weights

    loss = choosing_rule(centre)(scores, tags, valid)
    expected = (loss_map(scores, tags)[:, :, 1, 2] * tags).sum(dim=1) / tags.sum(dim=1)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1.0, 3.0, 100.0, 0.01, 0.4, 0.99])
def test_top_k_is_the_mean_of_the_k_smallest_losses(seed, k):
    scores, tags, valid = random_case(seed)
    tags[2, 3] = UNKNOWN
    loss = find_rule(f"top-k(k={k})").rule(scores, tags, valid)
    torch.testing.assert_close(loss, slow(lambda bag: top_k(bag, k), scores, tags, valid))


def test_top_k_is_the_max_at_1_and_the_average_at_all():
    scores, tags, valid = random_case(15)
    for k, name in ((1, "max"), (1000, "average")):
        expected = RULES[name].load().rule(scores, tags, valid)
        torch.testing.assert_close(find_rule(f"top-k(k={k})").rule(scores, tags, valid), expected)


def test_top_k_ties_go_to_the_first_places():
    scores, tags = torch.zeros(1, 2, 1, 4), torch.tensor([[1, 1]])
    valid = torch.tensor([[[False, True, True, True]]])
    weights = choose_top_k(loss_map(scores, tags), tags.float(), valid[:, None].expand(1, 2, 1, 4), k=2)
    assert weights[0].tolist() == [[[0, 0.25, 0.25, 0]], [[0, 0.25, 0.25, 0]]]
