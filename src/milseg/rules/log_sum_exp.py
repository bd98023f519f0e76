"""Log-sum-exp pooling, of scores and of probabilities: between the average (r to 0) and the max (large r)."""

from __future__ import annotations

import math

import torch

from milseg.rules.cells import (
    Cells,
    cells_of,
    flat_log_probs,
    flat_scores,
    log_mean_exp,
    log_not,
    probs_loss,
    scores_loss,
)


def log_sum_exp_scores(
    scores: torch.Tensor,
    tags: torch.Tensor,
    valid: torch.Tensor,
    *,
    segments: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
    r: float = 5.0,
    sigmoid: bool = False,
) -> torch.Tensor:
    """Pool the scores over the cells, then one softmax over the classes.

        S_c = 1/r log( 1/n sum over cells of exp(r s_c) )
        loss = -1/|L| sum over present c of log softmax(S)_c

    Source: Pinheiro & Collobert 2015, "From Image-level to Pixel-level Labeling with Convolutional Networks",
        equation 2 (pooling) and equation 3 (softmax over the classes of the pooled scores); their photos have
        one class, here the label set's mean takes its place.

    Args:
        scores: [B, C, h, w]; tags: [B, C]; valid: bool [B, h, w].
        r: sharpness, above 0.
        sigmoid: a logistic loss for each class in place of the softmax.

    Returns:
        [B].

    Example: two cells with scores 0 and 1 for the one class, r = 1: S = log((1 + e) / 2).
        >>> s = torch.tensor([[[[0.0, 0.0]], [[0.0, 1.0]]]])
        >>> loss = log_sum_exp_scores(s, torch.tensor([[0, 1]]), torch.ones(1, 1, 2).bool(), r=1.0)
        >>> round(float(loss), 4), round(math.log(1 + 2 / (1 + math.e)), 4)
        (0.4304, 0.4304)
    """
    cells = cells_of(tags, valid, torch.float64 if scores.dtype == torch.float64 else torch.float32)
    pooled = log_mean_exp(r * flat_scores(scores, tags), cells) / r
    return scores_loss(pooled, tags, cells, sigmoid)


def log_sum_exp_probs(
    scores: torch.Tensor,
    tags: torch.Tensor,
    valid: torch.Tensor,
    *,
    segments: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
    r: float = 5.0,
    absent: float = 0.0,
) -> torch.Tensor:
    """A softmax over the classes at each cell, then pool the probabilities.

        P_c = 1/r log( 1/n sum over cells of exp(r p_c) )
        loss = -1/|L| sum over present c of log P_c  [ - absent * mean over absent c of log(1 - P_c) ]

    Computed in log space: nothing vanishes where a class has no probability anywhere.

    Source: Kraus et al. 2016, "Classifying and Segmenting Microscopy Images Using Convolutional Multiple
        Instance Learning", Table 1 (LSE of the instance probabilities; Ramon & De Raedt 2000).

    Args:
        scores: [B, C, h, w]; tags: [B, C]; valid: bool [B, h, w].
        r: sharpness, above 0.
        absent: weight of the absent classes' term.

    Returns:
        [B].

    Example: p = 1/2 at every cell pools to 1/2, whatever r.
        >>> loss = log_sum_exp_probs(torch.zeros(1, 2, 1, 3), torch.tensor([[1, 1]]), torch.ones(1, 1, 3).bool())
        >>> round(float(loss), 4)
        0.6931
    """
    log_p = flat_log_probs(scores, tags)
    cells = cells_of(tags, valid, log_p.dtype)
    log_not_pooled = None
    if absent:
        # 1 - P is the same pooling of 1 - p with -r
        log_not_pooled = log_of_pooled(log_not(log_p, cells.known), -r, cells)
    return probs_loss(log_of_pooled(log_p, r, cells), log_not_pooled, tags, cells, absent)


def log_of_pooled(log_x: torch.Tensor, r: float, cells: Cells) -> torch.Tensor:
    """log( 1/r log mean exp(r x) ) from log x, for x in 0..1, exact however small x is; [B, C, n] -> [B, C].

    With m = mean expm1(r x), the pooled value is log1p(m) / r. Where it is small, log |m| is taken in log
    space, as log mean of x r expm1(r x) / (r x), and log |log1p(m)| = log |m| - m / 2 + 5 m^2 / 24.
    """
    x = log_x.exp()
    direct = log_mean_exp(r * x, cells) / r
    log_m = log_mean_exp(log_x + log_expm1_ratio(r * x), cells) + math.log(abs(r))
    m = math.copysign(1.0, r) * log_m.clamp_max(-4.0).exp()
    small = log_m.clamp_max(-4.0) - m / 2 + 5 * m * m / 24 - math.log(abs(r))
    is_small = log_m < -4.6
    return torch.where(is_small, small, direct.masked_fill(is_small, 1.0).log())


def log_expm1_ratio(y: torch.Tensor) -> torch.Tensor:
    """log(expm1(y) / y), 0 at y = 0."""
    size = y.abs()
    near = size < 1e-3
    far = size.masked_fill(near, 1.0)
    whole = y.clamp_min(0.0) + torch.log(-torch.expm1(-far)) - far.log()
    return torch.where(near, y / 2 + y * y / 24, whole)
