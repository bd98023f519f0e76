"""The cells of each bag in a row, and the loss of a pooled bag: what every pooling rule shares."""

from __future__ import annotations

from typing import NamedTuple

import torch

from milseg.data.bags import ABSENT, PRESENT, UNKNOWN
from milseg.rules.loss_map import log_probs


class Cells(NamedTuple):
    """The instances of each bag in a row, h * w of them.

    A bag without a valid cell counts all of its cells, so that nothing becomes infinite, and its loss is
    multiplied by 0.

    Attributes:
        valid: bool [B, 1, h * w].
        n: [B, 1], how many cells are valid.
        any_valid: bool [B], the bag has a valid cell.
        known: bool [B, C], the tag is known.
    """

    valid: torch.Tensor
    n: torch.Tensor
    any_valid: torch.Tensor
    known: torch.Tensor


def cells_of(tags: torch.Tensor, valid: torch.Tensor, dtype: torch.dtype) -> Cells:
    flat = valid.flatten(1).bool()
    any_valid = flat.any(dim=1)
    flat = flat | ~any_valid[:, None]
    return Cells(flat[:, None], flat.sum(dim=1, keepdim=True).to(dtype), any_valid, tags != UNKNOWN)


def flat_scores(scores: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    """Scores [B, C, n] in float32 or better; 0, without a gradient, for classes whose tag is unknown."""
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    return scores.flatten(2).masked_fill((tags == UNKNOWN)[:, :, None], 0.0)


def flat_log_probs(scores: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    """Log of the softmax [B, C, n]; 0, without a gradient, for classes whose tag is unknown."""
    return log_probs(scores, tags).flatten(2).masked_fill((tags == UNKNOWN)[:, :, None], 0.0)


def log_not(log_p: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """log(1 - p_c) at each cell, exact where p_c goes to 1: there it is the log of the others' sum.

    Args:
        log_p: [B, C, n], a log softmax over the known classes.
        known: bool [B, C].

    Returns:
        [B, C, n], at least -1e4 (a bag with one known class has p = 1 everywhere).

    >>> two = torch.tensor([[[0.0], [-50.0]]])  # 1 - p_0 is e^-50, far below the spacing of numbers at 1
    >>> log_not(two, torch.ones(1, 2, dtype=torch.bool)).flatten()
    tensor([-5.0000e+01, -1.9287e-22])
    """
    shut = ~known[:, :, None]
    open_log_p = log_p.masked_fill(shut, -1e30)
    top = torch.zeros_like(log_p, dtype=torch.bool).scatter_(1, open_log_p.argmax(dim=1, keepdim=True), True)
    rest = open_log_p.masked_fill(top, -1e30).logsumexp(dim=1, keepdim=True).clamp_min(-1e4)
    small = log_p.masked_fill(top | shut, -1.0)
    return torch.where(top, rest, torch.log1p(-small.exp()))


def log_mean_exp(values: torch.Tensor, cells: Cells) -> torch.Tensor:
    """log of the mean over the valid cells of exp(values); [B, C, n] -> [B, C]."""
    return values.masked_fill(~cells.valid, -torch.inf).logsumexp(dim=2) - cells.n.log()


def mean_of(values: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Mean over the classes that `which` [B, C] names; 0 where it names none; [B, C] -> [B]."""
    total = torch.where(which, values, torch.zeros_like(values)).sum(dim=1)
    return total / which.sum(dim=1).clamp_min(1)


def zero_if_empty(loss: torch.Tensor, cells: Cells) -> torch.Tensor:
    """0, still connected to the graph, for bags without a valid cell."""
    return loss * cells.any_valid


def probs_loss(
    log_pooled: torch.Tensor,
    log_not_pooled: torch.Tensor | None,
    tags: torch.Tensor,
    cells: Cells,
    absent: float,
) -> torch.Tensor:
    """-log P_c averaged over the present classes, plus `absent` times -log(1 - P_c) averaged over the absent."""
    loss = -mean_of(log_pooled, tags == PRESENT)
    if log_not_pooled is not None and absent:
        loss = loss - absent * mean_of(log_not_pooled, tags == ABSENT)
    return zero_if_empty(loss, cells)


def scores_loss(pooled: torch.Tensor, tags: torch.Tensor, cells: Cells, sigmoid: bool) -> torch.Tensor:
    """The loss of pooled scores [B, C]: -log softmax over the known classes averaged over the present ones.

    With `sigmoid` the multi-label soft margin loss instead: each known class is a logistic regression of its
    own, absent ones included, averaged over the known classes.
    """
    if sigmoid:
        sign = torch.where(tags == PRESENT, 1.0, -1.0).to(pooled.dtype)
        return zero_if_empty(mean_of(torch.nn.functional.softplus(-sign * pooled), cells.known), cells)
    log_p = pooled.masked_fill(~cells.known, -1e30).log_softmax(dim=1)
    return zero_if_empty(-mean_of(log_p, tags == PRESENT), cells)
