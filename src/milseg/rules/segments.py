"""Whole segments instead of points: any choice, made among superpixels."""

from __future__ import annotations

import torch

from milseg.data.bags import PRESENT, UNKNOWN
from milseg.errors import UserError
from milseg.rules.cells import flat_log_probs
from milseg.rules.choosing import Choice, Rule
from milseg.rules.loss_map import weighted_loss


def over_segments(choose: Choice) -> Rule:
    """Lift a choice among cells into a rule that chooses among segments.

        p_c(S) = mean over the valid cells of segment S of p_c
        loss = sum over the segments and classes of weights * -log p_c(S), the weights chosen on this loss map

    A segment counts as one cell, whatever its size; a cell in none (-1) takes no part. In weights on the
    loss map of cells, a segment's weight falls on its cells in proportion to p_c. Segments of one cell
    each give back the rule of cells.

    Source: the paper's discussion ("selecting whole segments instead of single points for MIL training").

    Example: one segment of two cells, p_1 = 1/2 and 3/4.
        >>> from milseg.rules.choosing import choose_max
        >>> s = torch.tensor([[[[0.0, 0.0]], [[0.0, 1.0986]]]])
        >>> rule = over_segments(choose_max)
        >>> loss = rule(s, torch.tensor([[0, 1]]), torch.ones(1, 1, 2).bool(), segments=torch.zeros(1, 1, 2).int())
        >>> round(float(loss.exp().reciprocal()), 4)
        0.625
    """

    def rule(
        scores: torch.Tensor,
        tags: torch.Tensor,
        valid: torch.Tensor,
        *,
        segments: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if segments is None:
            raise UserError("this rule chooses among segments, and was given none; pass segments=[B, h, w]")
        if segments.shape != valid.shape or segments.dtype.is_floating_point:
            raise UserError(
                f"segments are {segments.dtype} {tuple(segments.shape)}; expected whole numbers "
                f"{tuple(valid.shape)}, one a cell of the score map"
            )
        log_p, holds = segment_log_probs(flat_log_probs(scores, tags), segments, valid)
        losses = -log_p[..., None]
        selectable = (holds[:, None] & (tags != UNKNOWN)[:, :, None])[..., None]
        with torch.no_grad():
            weights = choose(losses, (tags == PRESENT).to(losses.dtype), selectable, None)
        return weighted_loss(losses, weights)

    return rule


def segment_log_probs(
    log_p: torch.Tensor, segments: torch.Tensor, valid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log of the mean probability in each segment.

    Args:
        log_p: [B, C, n]; segments: whole numbers [B, h, w], below 0 for none; valid: bool [B, h, w].

    Returns:
        [B, C, S], 0 for segments without a valid cell, and bool [B, S], which segments have one.
    """
    batch, classes, _ = log_p.shape
    inside = (valid.bool() & (segments >= 0)).flatten(1)
    number = max(int(segments.max()) + 1, 1) if segments.numel() else 1
    # what is in no segment goes to one more, which is dropped
    index = torch.where(inside, segments.flatten(1).long(), number)[:, None].expand_as(log_p)
    empty = log_p.new_zeros(batch, classes, number + 1)
    top = torch.full_like(empty, -torch.inf).scatter_reduce(2, index, log_p.detach(), "amax")
    top = top.masked_fill(top.isinf(), 0.0)
    total = empty.scatter_add(2, index, (log_p - top.gather(2, index)).exp())
    count = empty.scatter_add(2, index, torch.ones_like(log_p))
    holds = count[:, 0, :number] > 0
    total, count, top = total[..., :number], count[..., :number], top[..., :number]
    logs = top + total.masked_fill(count == 0, 1.0).log() - count.clamp_min(1).log()
    return torch.where(holds[:, None], logs, torch.zeros_like(logs)), holds
