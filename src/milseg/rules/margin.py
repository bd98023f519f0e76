"""Max-margin on the top instance."""

from __future__ import annotations

import torch

from milseg.data.bags import PRESENT
from milseg.rules.cells import cells_of, flat_scores, mean_of, zero_if_empty


def max_margin(
    scores: torch.Tensor,
    tags: torch.Tensor,
    valid: torch.Tensor,
    *,
    segments: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
    margin: float = 1.0,
) -> torch.Tensor:
    """One hinge a class on its top-scoring cell.

        loss = mean over known c of max(0, margin - Y_c max over cells of s_c),   Y = 1 present, -1 absent

    A present class raises its best cell until it is above the margin, an absent one lowers its best cell
    below minus the margin; classes do not compete.

    Source: Andrews et al. 2002, "Support Vector Machines for Multiple-Instance Learning", equation 5 (MI-SVM);
        Felzenszwalb et al. 2010, "Object Detection with Discriminatively Trained Part-Based Models", equations
        13 and 14 (latent SVM, the cell being the latent value). The norm of the weights is left to weight
        decay.

    Args:
        scores: [B, C, h, w]; tags: [B, C]; valid: bool [B, h, w].
        margin: above 0.

    Returns:
        [B].

    Example: best scores 0.25 (present) and -3 (absent).
        >>> s = torch.tensor([[[[0.25, 0.0]], [[-3.0, -4.0]]]])
        >>> float(max_margin(s, torch.tensor([[1, 0]]), torch.ones(1, 1, 2).bool()))
        0.375
    """
    s = flat_scores(scores, tags)
    cells = cells_of(tags, valid, s.dtype)
    best = s.masked_fill(~cells.valid, -torch.inf).max(dim=2).values
    sign = torch.where(tags == PRESENT, 1.0, -1.0).to(s.dtype)
    return zero_if_empty(mean_of((margin - sign * best).clamp_min(0.0), cells.known), cells)
