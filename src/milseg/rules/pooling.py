"""Pooling of scores: the average (class activation maps), the top and the lowest k (WILDCAT), and
normalised weighted pooling with its size penalty."""

from __future__ import annotations

import torch

from milseg.data.bags import BACKGROUND, PRESENT
from milseg.rules.cells import cells_of, flat_log_probs, flat_scores, mean_of, scores_loss, zero_if_empty
from milseg.rules.choosing import cell_count


def average_scores(
    scores: torch.Tensor,
    tags: torch.Tensor,
    valid: torch.Tensor,
    *,
    segments: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
    sigmoid: bool = False,
) -> torch.Tensor:
    """Average each class's scores over the cells, then one softmax over the classes: how a class activation
    map is trained.

        S_c = 1/n sum over cells of s_c,   loss = -1/|L| sum over present c of log softmax(S)_c

    Source: Zhou et al. 2016, "Learning Deep Features for Discriminative Localization", section 2 (global
        average pooling before a linear layer is a linear layer before the average).

    Args:
        scores: [B, C, h, w]; tags: [B, C]; valid: bool [B, h, w].
        sigmoid: a logistic loss for each class in place of the softmax, the usual form for several tags.

    Returns:
        [B].

    Example: averages 0 and 1/2 for two classes, the second present.
        >>> s = torch.tensor([[[[0.0, 0.0]], [[0.0, 1.0]]]])
        >>> round(float(average_scores(s, torch.tensor([[0, 1]]), torch.ones(1, 1, 2).bool())), 4)
        0.4741
    """
    s = flat_scores(scores, tags)
    cells = cells_of(tags, valid, s.dtype)
    pooled = s.masked_fill(~cells.valid, 0.0).sum(dim=2) / cells.n
    return scores_loss(pooled, tags, cells, sigmoid)


def wildcat(
    scores: torch.Tensor,
    tags: torch.Tensor,
    valid: torch.Tensor,
    *,
    segments: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
    k: float = 0.2,
    alpha: float = 0.7,
    sigmoid: bool = True,
) -> torch.Tensor:
    """The mean of each class's k highest scores plus alpha times the mean of its k lowest, then a loss.

    Source: Durand et al. 2017, "WILDCAT", section 3.3, equation 2, with k+ = k-; its loss is a logistic one for
        each class.

    Args:
        scores: [B, C, h, w]; tags: [B, C]; valid: bool [B, h, w].
        k: a number of cells; below 1 a share of the valid ones.
        alpha: weight of the lowest scores.
        sigmoid: a logistic loss for each class, else a softmax over the classes.

    Returns:
        [B].

    Example: k = 1, scores 0 and 1: S = 1 + 0.7 * 0, loss log(1 + e^-1).
        >>> s = torch.tensor([[[[0.0, 1.0]]]])
        >>> round(float(wildcat(s, torch.tensor([[1]]), torch.ones(1, 1, 2).bool(), k=1.0)), 4)
        0.3133
    """
    s = flat_scores(scores, tags)
    cells = cells_of(tags, valid, s.dtype)
    wanted = cell_count(k, cells.valid.sum(dim=2, keepdim=True))
    picked = torch.arange(s.shape[2], device=s.device) < wanted
    high = s.masked_fill(~cells.valid, -torch.inf).sort(dim=2, descending=True, stable=True).values
    low = s.masked_fill(~cells.valid, torch.inf).sort(dim=2, stable=True).values
    pooled = sum(
        (weight * torch.where(picked, part, torch.zeros_like(part)).sum(dim=2) / wanted[:, :, 0])
        for weight, part in ((1.0, high), (alpha, low))
    )
    assert isinstance(pooled, torch.Tensor)
    return scores_loss(pooled, tags, cells, sigmoid)


def weighted_pooling(
    scores: torch.Tensor,
    tags: torch.Tensor,
    valid: torch.Tensor,
    *,
    segments: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
    power: float = 3.0,
    floor: float = 0.01,
) -> torch.Tensor:
    """Scores averaged with the class's own probabilities as weights, plus a penalty on small areas.

        x_c = s_c - s_0 + 1                                        (score above the background's)
        y_c = sum over cells of p_c x_c / (1 + sum over cells of p_c)
        a_c = mean over cells of p_c,   z_c = y_c + (1 - a_c)^power log(floor + a_c)
        loss = mean over known c > 0 of log(1 + exp(-z_c)) if present, log(1 + exp(z_c)) if absent

    The source's network has no background score: it is 1 everywhere. x is the same for such a network, and
    makes the rule one of the softmax alone for every other.

    Source: Araslanov & Roth 2020, "Single-Stage Semantic Segmentation from Image Labels", section 4.1 (nGWP
        and the focal mask penalty; multi-label soft margin loss); power 3, floor 0.01 as published.

    Args:
        scores: [B, C, h, w], class 0 the background; tags: [B, C]; valid: bool [B, h, w].

    Returns:
        [B].

    Example: at equal scores p = 1/2, x = 1: y = 1 / (1 + 1), z = 1/2 + 1/8 log 0.51.
        >>> loss = weighted_pooling(torch.zeros(1, 2, 1, 2), torch.tensor([[1, 1]]), torch.ones(1, 1, 2).bool())
        >>> round(float(loss), 4)
        0.5067
    """
    s = flat_scores(scores, tags)
    cells = cells_of(tags, valid, s.dtype)
    p = flat_log_probs(scores, tags).exp().masked_fill(~cells.valid, 0.0)
    x = s - s[:, BACKGROUND : BACKGROUND + 1] + 1
    mass = p.sum(dim=2)
    area = (mass / cells.n).clamp_max(1.0)
    z = (p * x).sum(dim=2) / (1 + mass) + (1 - area) ** power * (floor + area).log()
    front = cells.known & (torch.arange(tags.shape[1], device=tags.device) != BACKGROUND)
    sign = torch.where(tags == PRESENT, 1.0, -1.0).to(z.dtype)
    return zero_if_empty(mean_of(torch.nn.functional.softplus(-sign * z), front), cells)
