"""The loss of a step: the rule's, and the cross entropy to the bags' masks beside it."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from milseg.config import TrainConfig
from milseg.data.image import UInt8
from milseg.data.loader import BagBatch
from milseg.errors import UserError
from milseg.inference.score_map import upsample
from milseg.models.fcn import FCN
from milseg.refine.superpixels import superpixels
from milseg.rules import find_rule
from milseg.rules.choosing import Rule
from milseg.rules.entry import RuleEntry


def batch_loss(
    model: FCN, batch: BagBatch, entry: RuleEntry, config: TrainConfig, rule: Rule | None = None
) -> torch.Tensor:
    """The mean over the bags of the rule's loss, and of the cross entropy to the bags' masks where it has a weight."""
    return scores_loss(model, model(batch.images), batch, entry, config, rule, count=len(batch.names))


def scores_loss(
    model: FCN,
    scores: torch.Tensor,
    batch: BagBatch,
    entry: RuleEntry,
    config: TrainConfig,
    rule: Rule | None,
    *,
    count: int,
) -> torch.Tensor:
    """These bags' part of the mean over a batch of `count` bags."""
    loss = config.rule_weight * (rule_loss(model, scores, batch, entry, rule).sum() / count)
    if config.mask_weight:
        loss = loss + config.mask_weight * (
            rule_loss(model, scores, batch, find_rule("oracle")).sum() / count
        )
    return loss


def rule_loss(
    model: FCN, scores: torch.Tensor, batch: BagBatch, entry: RuleEntry, rule: Rule | None = None
) -> torch.Tensor:
    """The rule's loss of each bag, [B].

    Rules that learn from masks see the scores interpolated to pixels, as a supervised FCN does; the others
    see the coarse map.

    Args:
        rule: what `entry.build` gave, for rules that have parameters.

    Raises:
        UserError: the rule gives something else.
    """
    rule = rule or entry.rule
    if entry.supervision == "masks":
        height, width = batch.images.shape[-2:]
        fine = upsample(scores.float(), (height, width), stride=model.stride, offset=model.offset)
        rows = torch.arange(height, device=fine.device)[None, :, None] < batch.sizes[:, 0, None, None]
        columns = torch.arange(width, device=fine.device)[None, None] < batch.sizes[:, 1, None, None]
        loss = rule(fine, batch.tags, rows & columns, masks=batch.masks)
    else:
        valid = model.valid_mask(batch.sizes, (scores.shape[-2], scores.shape[-1]))
        more = {"segments": fit_segments(batch.segments, valid)} if entry.needs_segments else {}
        loss = rule(scores, batch.tags, valid, **more)
    if not isinstance(loss, torch.Tensor) or loss.shape != (len(batch.names),):
        found = (
            f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"type {type(loss).__name__}"
        )
        raise UserError(f"the rule gave a loss of {found}; expected one number a bag, ({len(batch.names)},)")
    return loss


def photo_segments(model: FCN, photo: UInt8) -> torch.Tensor:
    """Superpixels of a photo uint8 [H, W, 3] on the network's score map, int64 [h, w]."""
    size = model.map_size(photo.shape[0], photo.shape[1])
    return superpixels(photo, size, stride=model.stride, offset=model.offset)


def fit_segments(segments: torch.Tensor | None, valid: torch.Tensor) -> torch.Tensor:
    """A batch's segments int64 [B, h, w] on the score map of `valid` [B, h', w']; -1 on padding."""
    if segments is None:
        raise UserError("the rule chooses whole segments, and the batch has none; expected BagBatch.segments")
    height, width = valid.shape[1:]
    down, right = max(0, height - segments.shape[1]), max(0, width - segments.shape[2])
    fitted = F.pad(segments, (0, right, 0, down), value=-1)[:, :height, :width]
    return fitted.masked_fill(~valid, -1)
