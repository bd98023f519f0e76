"""Hard negatives: absent classes are pushed down where they score highest. A term beside another rule."""

from __future__ import annotations

import torch

from milseg.data.bags import ABSENT
from milseg.rules.cells import cells_of, flat_log_probs, log_not, mean_of, zero_if_empty
from milseg.rules.choosing import cell_count


def hard_negatives(
    scores: torch.Tensor,
    tags: torch.Tensor,
    valid: torch.Tensor,
    *,
    segments: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
    k: float = 1.0,
    weight: float = 1.0,
) -> torch.Tensor:
    """-log(1 - p_c) at the k cells where an absent class c is most probable.

        loss = weight * mean over absent c of the mean over its k most probable cells of -log(1 - p_c)

    Exact where p_c goes to 1. In weights on the loss map it is p_j / (1 - p_c) on each other class j. A bag
    without absent classes has loss 0.

    Source: the paper's discussion ("hard negative mining"); with k = 1 the absent classes' term of SEC's
        expansion loss (Kolesnikov & Lampert 2016, section 3.2).

    Args:
        scores: [B, C, h, w]; tags: [B, C]; valid: bool [B, h, w].
        k: a number of cells; below 1 a share of the valid ones.
        weight: of the term, beside the rule that it is added to.

    Returns:
        [B].

    Example: an absent class of probability 1/2.
        >>> loss = hard_negatives(torch.zeros(1, 2, 1, 2), torch.tensor([[1, 0]]), torch.ones(1, 1, 2).bool())
        >>> round(float(loss), 4)
        0.6931
    """
    log_p = flat_log_probs(scores, tags)
    cells = cells_of(tags, valid, log_p.dtype)
    order = log_p.detach().masked_fill(~cells.valid, -torch.inf).argsort(dim=2, descending=True, stable=True)
    wanted = cell_count(k, cells.valid.sum(dim=2, keepdim=True))
    picked = torch.arange(order.shape[2], device=order.device) < wanted
    down = log_not(log_p, cells.known).gather(2, order)
    hardest = torch.where(picked, down, torch.zeros_like(down)).sum(dim=2) / wanted[:, :, 0]
    return zero_if_empty(-weight * mean_of(hardest, tags == ABSENT), cells)
