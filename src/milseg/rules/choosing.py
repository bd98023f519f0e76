"""Rules that choose instances: detached weights on the loss map.

A choice is a function of the probabilities; `choosing_rule` lifts it into a rule. The paper's choice is
`choose_max`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from milseg.data.bags import PRESENT, UNKNOWN, VOID
from milseg.errors import UserError
from milseg.rules.loss_map import loss_map, weighted_loss


class Rule(Protocol):
    """A way of learning: (scores [B, C, h, w], tags [B, C], valid [B, h, w], ...) -> loss [B]."""

    def __call__(
        self,
        scores: torch.Tensor,
        tags: torch.Tensor,
        valid: torch.Tensor,
        *,
        segments: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
    ) -> torch.Tensor: ...


# (loss map, present [B, C], selectable [B, C, h, w], masks) -> weights on the loss map [B, C, h, w]; unknown
# classes and padding are not selectable, and 0 on the loss map is all that is seen of an unknown class
Choice = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def choose_max(
    losses: torch.Tensor, present: torch.Tensor, selectable: torch.Tensor, masks: torch.Tensor | None = None
) -> torch.Tensor:
    """Weight 1/|L| on the most probable cell of each present class: the paper's equation.

    The arg-max of the softmax is the arg-min of the loss map. Ties go to one cell, the first in reading
    order. A class that may not be selected anywhere gets no weight.

    Source: paper, "Multi-class MIL loss".
    """
    batch, classes, height, width = losses.shape
    selectable_cells = selectable.expand_as(losses)
    candidates = losses.detach().masked_fill(~selectable_cells, torch.inf).flatten(2)
    best = candidates.argmin(dim=2, keepdim=True)
    share = present / present.sum(dim=1, keepdim=True).clamp_min(1)
    share = share * selectable_cells.flatten(2).any(dim=2)
    weights = torch.zeros_like(candidates).scatter_(2, best, share[:, :, None].to(candidates.dtype))
    return weights.view(batch, classes, height, width)


def choose_all(
    losses: torch.Tensor, present: torch.Tensor, selectable: torch.Tensor, masks: torch.Tensor | None = None
) -> torch.Tensor:
    """Every selectable cell for each present class, each class with total weight 1/|L|.

    What the paper warns of: "ignoring the loss at all non-maximally scoring points is key".
    """
    cells = selectable.expand_as(losses).to(losses.dtype)
    share = present / present.sum(dim=1, keepdim=True).clamp_min(1)
    return share[:, :, None, None] * cells / cells.sum(dim=(2, 3), keepdim=True).clamp_min(1)


def cell_count(k: float, count: torch.Tensor) -> torch.Tensor:
    """k as a number of cells, of `count` that there are: below 1 it is a share; at least one cell."""
    wanted = (k * count).round() if k < 1 else torch.full_like(count, round(k))
    return wanted.clamp_min(1).minimum(count)


def choose_top_k(
    losses: torch.Tensor,
    present: torch.Tensor,
    selectable: torch.Tensor,
    masks: torch.Tensor | None = None,
    *,
    k: float = 0.2,
) -> torch.Tensor:
    """The k most probable cells of each present class, each with weight 1/(k |L|); k = 1 is `choose_max`.

    Source: the k best regions of WILDCAT (Durand et al. 2017, section 3.3), on the loss map.

    Args:
        losses: loss map [B, C, h, w]; present: [B, C]; selectable: bool [B, C or 1, h, w].
        k: a number of cells; below 1 a share of the selectable ones (WILDCAT's 20 %), at least one.

    Example:
        >>> losses = torch.tensor([[[[0.3, 0.1, 0.2]]]])
        >>> choose_top_k(losses, torch.ones(1, 1), torch.ones(1, 1, 1, 3, dtype=torch.bool), k=2).tolist()
        [[[[0.0, 0.5, 0.5]]]]
    """
    selectable_cells = selectable.expand_as(losses).flatten(2)
    count = selectable_cells.sum(dim=2, keepdim=True)
    wanted = cell_count(k, count)
    order = losses.detach().flatten(2).masked_fill(~selectable_cells, torch.inf).argsort(dim=2, stable=True)
    chosen = torch.arange(order.shape[2], device=order.device) < wanted
    share = present / present.sum(dim=1, keepdim=True).clamp_min(1)
    weights = chosen * share[:, :, None] / wanted.clamp_min(1)
    return torch.zeros_like(losses).flatten(2).scatter_(2, order, weights.to(losses.dtype)).view_as(losses)


def choose_masks(
    losses: torch.Tensor, present: torch.Tensor, selectable: torch.Tensor, masks: torch.Tensor | None = None
) -> torch.Tensor:
    """The class that a mask names at each cell, averaged over what is not void: the supervised oracle."""
    if masks is None:
        raise UserError(
            "the rule 'oracle' learns from masks, and these bags have none; choose a rule that uses tags"
        )
    classes = losses.shape[1]
    labelled = masks != VOID
    target = torch.where(labelled, masks, torch.zeros_like(masks)).long()
    weights = torch.nn.functional.one_hot(target, classes).permute(0, 3, 1, 2).to(losses.dtype)
    weights = weights * labelled[:, None] * selectable
    return weights / weights.sum(dim=(1, 2, 3), keepdim=True).clamp_min(1)


def mil_loss(
    scores: torch.Tensor,
    tags: torch.Tensor,
    valid: torch.Tensor,
    *,
    choose: Choice = choose_max,
    weight_map: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    segments: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
) -> torch.Tensor:
    """The multi-class MIL loss of each bag; with the defaults exactly the paper's equation.

    For a bag with label set L (its present tags and the background): with p the softmax over the classes,

        (x_l, y_l) = arg max over the valid cells of p_l(x, y)
        loss = -1/|L| * sum over l in L of log p_l(x_l, y_l)

    Args:
        scores: [B, C, h, w], the network's coarse map.
        tags: int8 [B, C] of PRESENT, ABSENT, UNKNOWN (an unknown class leaves the bag's softmax).
        valid: bool [B, h, w], False on padding, which is never selected.
        choose: where the loss is taken, as weights on the loss map; a `Choice`.
        weight_map: multiplies the loss map after the choice, broadcastable to [B, C, h, w].
        mask: bool, broadcastable to [B, C, h, w]; False cells cannot be selected.
        masks: integer [B, h, w], class numbers or VOID, for choices that learn from masks.

    Returns:
        [B], float32 or better; 0, still connected to the graph, for a bag in which nothing may be selected.

    Source: paper, "Multi-class MIL loss".

    Example: two cells, background and one class; each class's best cell has p = 2/3: log(3/2).
        >>> s = torch.tensor([[[[0.6931, 0.0]], [[0.0, 0.6931]]]])
        >>> valid = torch.ones(1, 1, 2, dtype=torch.bool)
        >>> round(float(mil_loss(s, torch.tensor([[1, 1]]), valid)), 3)
        0.405
    """
    losses = loss_map(scores, tags)
    selectable = valid[:, None].bool() & (tags != UNKNOWN)[:, :, None, None]
    if mask is not None:
        selectable = selectable & mask.bool()
    # Chosen without a graph: the choice is a constant of the step (paper: the loss is back-propagated through
    # the chosen cells, not through the choosing).
    with torch.no_grad():
        weights = choose(losses, (tags == PRESENT).to(losses.dtype), selectable, masks)
        if weight_map is not None:
            weights = weights * weight_map
    return weighted_loss(losses, weights)


def choosing_rule(choose: Choice, **bound: Any) -> Rule:
    """Lift a choice into a rule; `bound` may fix `weight_map` or `mask`."""

    def rule(
        scores: torch.Tensor,
        tags: torch.Tensor,
        valid: torch.Tensor,
        *,
        segments: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return mil_loss(scores, tags, valid, choose=choose, segments=segments, masks=masks, **bound)

    return rule


def binary_max(
    scores: torch.Tensor,
    tags: torch.Tensor,
    valid: torch.Tensor,
    *,
    segments: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
) -> torch.Tensor:
    """One binary MIL a class, each on the sigmoid of its top-scoring cell: what the multi-class loss
    replaces.

    A present class raises its best cell, -log sigmoid(s); an absent class lowers its best cell, -log
    sigmoid(-s); classes do not compete. Averaged over the classes whose tag is known.

    Source: the binary MIL scenario of the paper's "Multi-class MIL loss" (Andrews et al. 2002), in logistic
        form.
    """
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    known = (tags != UNKNOWN) & valid.flatten(1).any(dim=1, keepdim=True)
    best = scores.masked_fill(~valid[:, None], -torch.inf).flatten(2).max(dim=2).values
    best = torch.where(known, best, torch.zeros_like(best))
    sign = torch.where(tags == PRESENT, 1.0, -1.0)
    losses = torch.nn.functional.softplus(-sign * best) * known
    return losses.sum(dim=1) / known.sum(dim=1).clamp_min(1)
