"""Consistency across the bags that share a tag. A term beside another rule."""

from __future__ import annotations

import torch

from milseg.data.bags import BACKGROUND, PRESENT
from milseg.rules.cells import cells_of, flat_log_probs


def consistency(
    scores: torch.Tensor,
    tags: torch.Tensor,
    valid: torch.Tensor,
    *,
    segments: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
    weight: float = 0.1,
) -> torch.Tensor:
    """What is predicted where a bag shows a class should be what the other bags of the batch predict there.

    For bag b and a tag c that it carries, the background left out,

        a(b, c) = p_c / sum over cells of p_c                     (where b shows c)
        m(b, c) = sum over cells of a(b, c) p                     (what it predicts there: a distribution)
        loss(b) = weight * mean over the tags c that b shares with some bag of the batch,
                  mean over those bags b' of KL( m(b', c) || m(b, c) )

    m(b', c) is a constant of the step. Both distributions are taken over the classes whose tag is known in
    both bags. A tag that only one bag of the batch carries adds nothing, so a batch of one has loss 0. What it
    moves: a cell that looks like c here and like something else in every other photo of c.

    Source: the paper's discussion ("encouraging consistency across images for co-segmentation"); the equation
        is ours.

    Args:
        scores: [B, C, h, w], class 0 the background; tags: [B, C]; valid: bool [B, h, w].
        weight: of the term, beside the rule that it is added to.

    Returns:
        [B]; a bag's loss depends on the other bags of the batch.

    Example: two bags that predict the same agree.
        >>> s = torch.randn(1, 3, 2, 2).expand(2, 3, 2, 2)
        >>> loss = consistency(s, torch.tensor([[1, 1, 0], [1, 1, 0]]), torch.ones(2, 2, 2).bool())
        >>> [round(x, 4) for x in loss.tolist()]
        [0.0, 0.0]
    """
    log_p = flat_log_probs(scores, tags)
    cells = cells_of(tags, valid, log_p.dtype)
    carries = (tags == PRESENT) & cells.any_valid[:, None]
    carries[:, BACKGROUND] = False
    shared = carries & (carries.sum(dim=0) > 1)
    total = log_p.sum(dim=(1, 2)) * 0.0
    for c in shared.any(dim=0).nonzero().flatten().tolist():
        bags = shared[:, c].nonzero().flatten()
        total = total.index_add(0, bags, _disagreement(log_p[bags], c, cells.valid[bags], cells.known[bags]))
    return weight * total / shared.sum(dim=1).clamp_min(1)


def _disagreement(log_p: torch.Tensor, c: int, valid: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Of some bags that all carry c: the mean over the other bags of KL(theirs || own); [J, C, n] -> [J]."""
    own_log = log_p.masked_fill(~valid, -torch.inf)
    log_a = own_log[:, c : c + 1].log_softmax(dim=2)
    m = (log_a + log_p).logsumexp(dim=2)
    both = known[:, None] & known[None]  # [J, J, C]: the classes known in both
    mine = m[:, None].expand_as(both).masked_fill(~both, -1e30).log_softmax(dim=2)
    theirs = m.detach()[None].expand_as(both).masked_fill(~both, -1e30).log_softmax(dim=2)
    divergence = torch.where(both, theirs.exp() * (theirs - mine), torch.zeros_like(mine)).sum(dim=2)
    others = ~torch.eye(len(m), dtype=torch.bool, device=m.device)
    return torch.where(others, divergence, torch.zeros_like(divergence)).sum(dim=1) / (len(m) - 1)
