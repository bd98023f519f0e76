"""Noisy-or: a class is in the photo if at least one cell shows it, the cells being independent causes."""

from __future__ import annotations

import math

import torch

from milseg.rules.cells import cells_of, flat_log_probs, log_not, probs_loss
from milseg.rules.log_sum_exp import log_expm1_ratio


def noisy_or(
    scores: torch.Tensor,
    tags: torch.Tensor,
    valid: torch.Tensor,
    *,
    segments: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
    start: float = 0.5,
    absent: float = 1.0,
) -> torch.Tensor:
    """The probability that some cell shows the class, from the probabilities of the cells.

        P_c = 1 - product over cells of (1 - a_c)
        loss = -mean over present c of log P_c - absent * mean over absent c of log(1 - P_c)

    With `start=0`, a_c is the softmax p_c, and the rule is the source's. On a map of a thousand cells it is
    then dead from the beginning: at a uniform start P is 1 for every class, and a cell's weight,
    p / (1 - p) * (1 - P) / P, is 0. So the odds of p are shifted, p / (1 - p) * b, by the one constant b with
    which a uniform map of as many cells has P = `start` for every class.

    Computed in log space: neither P nor 1 - P is ever rounded to 0.

    Source: Heckerman 2013, "A Tractable Inference Algorithm for Diagnosing Multiple Diseases" (noisy-or);
        Viola et al. 2006, "Multiple Instance Boosting for Object Detection", section 3.1 (its bag likelihood,
        absent classes included). The start is ours.

    Args:
        scores: [B, C, h, w]; tags: [B, C]; valid: bool [B, h, w].
        start: P of a uniform map, below 1; 0 shifts nothing.
        absent: weight of the absent classes' term.

    Returns:
        [B].

    Example: at a uniform start every P is 1/2.
        >>> loss = noisy_or(torch.zeros(1, 3, 8, 8), torch.tensor([[1, 1, 0]]), torch.ones(1, 8, 8).bool())
        >>> round(float(loss) / 2, 4)
        0.6931
    """
    log_p = flat_log_probs(scores, tags)
    cells = cells_of(tags, valid, log_p.dtype)
    log_odds = log_p - log_not(log_p, cells.known)
    if start:
        each = -torch.expm1(math.log1p(-start) / cells.n)  # 1 - (1 - start)^(1/n), [B, 1]
        uniform = cells.known.sum(dim=1, keepdim=True).clamp_min(2).to(log_p.dtype).reciprocal()
        log_odds = log_odds + (each.logit() - uniform.logit())[:, :, None]
    # x = -log(1 - P); where x is tiny, log x = log sum of a = log sum exp of the log odds
    x = torch.nn.functional.softplus(log_odds).masked_fill(~cells.valid, 0.0).sum(dim=2)
    tiny = x < 1e-6
    log_sum = log_odds.masked_fill(~cells.valid, -torch.inf).logsumexp(dim=2)
    log_x = torch.where(tiny, log_sum, x.masked_fill(tiny, 1.0).log())
    return probs_loss(log_x + log_expm1_ratio(-x), -x, tags, cells, absent)
