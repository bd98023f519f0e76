"""Global weighted rank pooling."""

from __future__ import annotations

import torch

from milseg.data.bags import ABSENT, BACKGROUND, PRESENT
from milseg.rules.cells import cells_of, flat_log_probs, log_not, mean_of, zero_if_empty


def rank_pooling(
    scores: torch.Tensor,
    tags: torch.Tensor,
    valid: torch.Tensor,
    *,
    segments: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
    foreground: float = 0.996,
    background: float = 0.999,
    absent: float = 1.0,
    reference: float = 1681.0,
) -> torch.Tensor:
    """SEC's expansion loss: probabilities in falling order, weighted by a power of their rank.

        G_c = sum over ranks j = 0, 1, ... of d^j p_c(j) / sum over j of d^j
        loss = -mean over present foreground c of log G_c  (d = foreground)
               - absent * mean over absent c of log(1 - max p_c)
               - log G_background  (d = background)

    d was chosen on a map of 41 x 41 = 1681 cells; on one of n the j-th rank counts as rank j * reference / n,
    so that the same part of the photo is meant. `reference=0` takes d as it is.

    Source: Kolesnikov & Lampert 2016, "Seed, Expand and Constrain", section 3.2 (expansion loss), of
        probabilities after the softmax; three terms, each normalised by itself.

    Args:
        scores: [B, C, h, w], class 0 the background; tags: [B, C]; valid: bool [B, h, w].
        foreground, background: decay d, above 0, at most 1 (the average); towards 0 it is the max.
        absent: weight of the absent classes' term.

    Returns:
        [B].

    Example: d = 1 is the average.
        >>> loss = rank_pooling(torch.zeros(1, 2, 1, 3), torch.tensor([[1, 1]]), torch.ones(1, 1, 3).bool())
        >>> round(float(loss), 4)  # log 2 for the class, log 2 for the background
        1.3863
    """
    log_p = flat_log_probs(scores, tags)
    cells = cells_of(tags, valid, log_p.dtype)
    ordered, order = log_p.masked_fill(~cells.valid, -torch.inf).sort(dim=2, descending=True, stable=True)
    rank = torch.arange(log_p.shape[2], device=log_p.device, dtype=log_p.dtype)
    stretch = reference / cells.n if reference else torch.ones_like(cells.n)
    decay = torch.full((log_p.shape[1],), foreground, device=log_p.device, dtype=log_p.dtype)
    decay[BACKGROUND] = background
    log_weights = decay.log()[:, None] * (rank * stretch)[:, None]  # [B, C, n]
    log_weights = log_weights.masked_fill(rank >= cells.n[:, None], -torch.inf)
    pooled = (log_weights + ordered).logsumexp(dim=2) - log_weights.logsumexp(dim=2)

    present, is_absent = tags == PRESENT, tags == ABSENT
    front = torch.arange(tags.shape[1], device=tags.device) != BACKGROUND
    loss = -mean_of(pooled, present & front) - mean_of(pooled, present & ~front)
    if absent:
        not_top = log_not(log_p, cells.known).gather(2, order[:, :, :1]).squeeze(2)
        loss = loss - absent * mean_of(not_top, is_absent & front)
    return zero_if_empty(loss, cells)
