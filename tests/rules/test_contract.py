"""What every row of the table of rules holds to."""

import pytest
import torch

from milseg.data.bags import UNKNOWN, VOID
from milseg.rules import RULES
from milseg.rules.loss_map import loss_map, shown_weights, weighted_loss
from tests.rules.cases import bags_of, random_case, random_extras
from tests.rules.equations import EQUATIONS

EVERY = pytest.mark.parametrize("name", sorted(RULES))
CLASSES = 4


def test_every_rule_has_its_equation():
    assert set(EQUATIONS) == set(RULES)


@EVERY
@pytest.mark.parametrize("seed", range(4))
def test_it_equals_the_slow_equation(name, seed):
    scores, tags, valid = random_case(seed)
    extras = random_extras(seed, valid, classes=3)
    tags[2, 3] = UNKNOWN
    rule = RULES[name].load().build(CLASSES)
    bags = bags_of(scores, tags, valid, **extras)
    expected = torch.tensor([EQUATIONS[name](bag, bags, rule) for bag in bags], dtype=scores.dtype)
    loose = {"rtol": 1e-4, "atol": 1e-5} if "ccnn" in name else {}
    torch.testing.assert_close(rule(scores, tags, valid, **extras), expected, **loose)


@EVERY
def test_padding_takes_no_part(name):
    scores, tags, valid = random_case(3)
    extras = random_extras(3, valid)
    rule = RULES[name].load().build(CLASSES)
    base = rule(scores, tags, valid, **extras)
    loud = scores.masked_fill(~valid[:, None], 1e4)
    loud[:, 1] = loud[:, 1].masked_fill(~valid, -1e4)
    loud.requires_grad_()
    others = {
        "segments": extras["segments"].masked_fill(~valid, 1),
        "masks": extras["masks"].masked_fill(~valid, 2),
    }
    loss = rule(loud, tags, valid, **others)
    torch.testing.assert_close(loss, base)
    loss.sum().backward()
    assert not loud.grad.permute(0, 2, 3, 1)[~valid].any()
    assert loud.grad.any()


@EVERY
def test_an_unknown_class_is_untouched(name):
    scores, tags, valid = random_case(4)
    tags[:, 2] = UNKNOWN
    tags[0, 1] = UNKNOWN
    extras = random_extras(4, valid, classes=1)
    changed = scores.clone()
    changed[:, 2] += 50
    changed[0, 1] -= 50
    changed.requires_grad_()
    rule = RULES[name].load().build(CLASSES)
    loss = rule(changed, tags, valid, **extras)
    torch.testing.assert_close(loss, rule(scores, tags, valid, **extras))
    loss.sum().backward()
    assert not changed.grad[:, 2].any()
    assert not changed.grad[0, 1].any()
    assert changed.grad.isfinite().all()
    # it leaves the softmax: the same loss as without the class
    kept = [0, 1, 3]
    if not RULES[name].learned:
        fewer = rule(scores[:, kept], tags[:, kept], valid, **extras)
        torch.testing.assert_close(loss, fewer)


@EVERY
def test_permuted_bags_have_permuted_losses(name):
    scores, tags, valid = random_case(5)
    extras = random_extras(5, valid)
    rule = RULES[name].load().build(CLASSES)
    order = torch.tensor([2, 0, 1])
    permuted = rule(scores[order], tags[order], valid[order], **{k: v[order] for k, v in extras.items()})
    torch.testing.assert_close(permuted, rule(scores, tags, valid, **extras)[order])


@EVERY
def test_permuted_places_change_nothing(name):
    scores, tags, valid = random_case(5)
    extras = random_extras(5, valid)
    rule = RULES[name].load().build(CLASSES)
    order = torch.randperm(valid[0].numel(), generator=torch.Generator().manual_seed(5))

    def moved(x):
        return x.flatten(-2)[..., order].view(x.shape)

    leaf = scores.clone().requires_grad_()
    loss = rule(leaf, tags, valid, **extras)
    loss.sum().backward()
    other = moved(scores).requires_grad_()
    again = rule(other, tags, moved(valid), **{k: moved(v) for k, v in extras.items()})
    again.sum().backward()
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(other.grad, moved(leaf.grad))


@EVERY
def test_a_bag_learns_from_itself_alone_unless_the_row_says_so(name):
    scores, tags, valid = random_case(6)
    tags[:, 1] = 1
    extras = random_extras(6, valid)
    rule = RULES[name].load().build(CLASSES)
    whole = rule(scores, tags, valid, **extras)
    alone = [
        rule(
            scores[b : b + 1],
            tags[b : b + 1],
            valid[b : b + 1],
            **{k: v[b : b + 1] for k, v in extras.items()},
        )
        for b in range(3)
    ]
    if RULES[name].sees_batch:
        assert not torch.allclose(whole, torch.cat(alone))
    else:
        torch.testing.assert_close(whole, torch.cat(alone))


@EVERY
def test_a_bag_of_padding_is_a_connected_zero(name):
    scores, tags, valid = random_case(6)
    extras = random_extras(6, valid)
    rule = RULES[name].load().build(CLASSES)
    base = rule(scores[1:], tags[1:], valid[1:], **{k: v[1:] for k, v in extras.items()})
    scores.requires_grad_()
    valid[0] = False
    extras["masks"][0] = VOID
    loss = rule(scores, tags, valid, **extras)
    torch.testing.assert_close(loss[1:], base)
    assert loss[0] == 0
    (grad,) = torch.autograd.grad(loss.sum(), scores)
    assert not grad[0].any()
    assert grad.isfinite().all()
    assert loss[0].requires_grad


@EVERY
def test_a_bag_of_unknown_tags_teaches_nothing(name):
    scores, tags, valid = random_case(6)
    extras = random_extras(6, valid)
    tags[1] = UNKNOWN
    scores.requires_grad_()
    loss = RULES[name].load().build(CLASSES)(scores, tags, valid, **extras)
    (grad,) = torch.autograd.grad(loss.sum(), scores)
    assert loss[1] == 0
    assert not grad[1].any()
    assert grad.isfinite().all()


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_a_finite_float32_loss(name, dtype):
    scores, tags, valid = random_case(7, dtype=torch.float32)
    extras = random_extras(7, valid)
    leaf = (scores * 50).to(dtype).requires_grad_()
    rule = RULES[name].load().build(CLASSES)
    loss = rule(leaf, tags, valid, **extras)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, rule(leaf.detach().float(), tags, valid, **extras))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert leaf.grad.isfinite().all()


@EVERY
@pytest.mark.parametrize(
    "make",
    [
        torch.zeros_like,  # a zero score layer
        lambda s: s * 1e3,  # every p is 0 or 1
        lambda s: torch.zeros_like(s).index_fill_(1, torch.tensor([0]), 300.0),  # all background
        lambda s: torch.zeros_like(s).index_fill_(1, torch.tensor([2]), 300.0),  # all of one class
    ],
    ids=["zeros", "sure", "background", "class"],
)
def test_no_score_map_makes_it_infinite(name, make):
    scores, tags, valid = random_case(8, dtype=torch.float32)
    tags[0] = torch.tensor([1, 1, 0, 0])
    tags[1] = torch.tensor([1, UNKNOWN, UNKNOWN, UNKNOWN])
    tags[2] = torch.tensor([1, 0, 0, 0])
    extras = random_extras(8, valid)
    extras["masks"][1] = 0
    leaf = make(scores).requires_grad_()
    loss = RULES[name].load().build(CLASSES)(leaf, tags, valid, **extras)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert leaf.grad.isfinite().all()
    assert (loss >= -1e-6).all()


@EVERY
def test_gradcheck_with_choices_and_other_bags_held_fixed(name):
    scores, tags, valid = random_case(2, batch=2, classes=3, height=2, width=4)
    tags[:, 1:] = torch.tensor([[1, 0], [1, UNKNOWN]])
    extras = random_extras(2, valid, classes=2)
    entry = RULES[name].load()
    rule = entry.build(3)
    if entry.choose is not None:
        leaf = scores.clone().requires_grad_()
        rule(leaf, tags, valid, **extras).sum().backward()
        taken = []

        def fixed(*args):
            taken.append(entry.choose(*args))
            return taken[0]

        rule = entry.lift(fixed)
        again = scores.clone().requires_grad_()
        rule(again, tags, valid, **extras).sum().backward()
        torch.testing.assert_close(again.grad, leaf.grad)

    def of_bag(b):
        def loss(one):
            whole = torch.cat([scores[:b], one, scores[b + 1 :]])
            return rule(whole, tags, valid, **extras)[b]

        return loss

    for b in range(2):
        assert torch.autograd.gradcheck(of_bag(b), scores[b : b + 1].clone().requires_grad_())


@EVERY
def test_the_shown_weights_give_back_the_gradient(name):
    scores, tags, valid = random_case(12)
    tags[0] = torch.tensor([1, 1, 0, 0])
    tags[1] = torch.tensor([1, 0, UNKNOWN, 1])
    extras = random_extras(12, valid, classes=1)
    rule = RULES[name].load().build(CLASSES)

    def bound(s):
        return rule(s, tags, valid, **extras)

    if RULES[name].raw_scores:
        with pytest.raises(ValueError, match="raw scores"):
            shown_weights(bound, scores, tags)
        return
    shown = shown_weights(bound, scores, tags)
    assert (shown >= 0).all()
    leaf = scores.clone().requires_grad_()
    bound(leaf).sum().backward()
    again = scores.clone().requires_grad_()
    weighted_loss(loss_map(again, tags), shown).sum().backward()
    torch.testing.assert_close(again.grad, leaf.grad)


@EVERY
def test_a_step_down_the_gradient_lowers_the_loss(name):
    scores, tags, valid = random_case(9)
    tags[:, 1:3] = torch.tensor([1, 0])
    extras = random_extras(9, valid)
    entry = RULES[name].load()
    rule = entry.build(CLASSES)
    leaf = scores.clone().requires_grad_()
    before = rule(leaf, tags, valid, **extras)
    before.sum().backward()
    assert leaf.grad.any()
    if entry.choose is not None:
        # The choice is held fixed: the gradient is that of the loss at these weights.
        chosen = []
        entry.lift(lambda *args: chosen.append(entry.choose(*args)) or chosen[0])(
            scores, tags, valid, **extras
        )
        rule = entry.lift(lambda *_: chosen[0])
    for b in range(len(scores)):
        # One bag at a time: to a rule that sees the batch, the others are fixed.
        stepped = scores.clone()
        stepped[b] -= 1e-4 * leaf.grad[b]
        after = rule(stepped, tags, valid, **extras)[b]
        assert after < before[b] if leaf.grad[b].any() else after == before[b]


def test_the_rows_say_what_is_so():
    for name, row in RULES.items():
        entry = row.load()
        assert entry.about, name
        assert bool(row.lift) == (entry.choose is not None)
        assert row.learned == (entry.learned is not None)
        assert not (row.lift and row.learned)
        assert entry.needs_segments == name.startswith("segment-")
        assert set(entry.limits) <= set(entry.options), name
        for option, (low, high) in entry.limits.items():
            assert low <= entry.options[option] <= high
