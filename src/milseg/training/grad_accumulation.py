"""A step's bags in pieces: the same loss and gradient as at once, in less memory or in several processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from milseg.config import TrainConfig
from milseg.distributed import collectives
from milseg.errors import UserError
from milseg.models.fcn import FCN
from milseg.rules.entry import RuleEntry


class AspectGroup(NamedTuple):
    """The wide photos of a step, or the tall ones.

    Attributes:
        rows: this process's, by their number in its batch.
        height, width: pixels to which all of them are padded, in every process.
    """

    rows: list[int]
    height: int
    width: int


def aspect_rows(sizes: torch.Tensor, *, together: bool) -> list[list[int]]:
    """The rows of the wide photos, and of the tall ones, of sizes int64 [B, 2] (height, width)."""
    tall = (sizes[:, 0] > sizes[:, 1]) & (not together)
    return [(~tall).nonzero()[:, 0].tolist(), tall.nonzero()[:, 0].tolist()]


def aspect_sides(sizes: torch.Tensor, *, together: bool) -> list[int]:
    """The greatest height and width of the wide photos, then of the tall ones: 4 numbers, 0 for an empty group."""
    return [
        side
        for rows in aspect_rows(sizes, together=together)
        for side in (sizes[rows].amax(dim=0).tolist() if rows else (0, 0))
    ]


def aspect_groups(sizes: torch.Tensor, sides: Sequence[int], *, together: bool) -> list[AspectGroup]:
    """A batch's wide and its tall photos apart, so that neither is padded to the other's sides.

    Of wide and tall photos padded to one size about a quarter is padding. A group has the same padding in every
    process, as what lies beyond a photo's border reaches the score-map cells near it.

    Args:
        sizes: int64 [B, 2], each photo's own (height, width); this process's part of the batch.
        sides: the highest of all processes' `aspect_sides`.
        together: all in one group, as a rule or a layer must see them at once.
    """
    pairs = (sides[:2], sides[2:])
    return [
        AspectGroup(rows, int(height), int(width))
        for rows, (height, width) in zip(aspect_rows(sizes, together=together), pairs, strict=True)
        if rows
    ]


def pieces_of(rows: list[int], count: int) -> list[list[int]]:
    """Rows in `count` pieces that differ by one at most; no more pieces than rows.

    >>> pieces_of([3, 4, 5, 6, 7], 2)
    [[3, 4], [5, 6, 7]]
    """
    count = min(count, len(rows))
    ends = [i * len(rows) // count for i in range(count + 1)]
    return [rows[start:stop] for start, stop in pairwise(ends)]


@contextmanager
def dropout_of(network: nn.Module, rows: list[int], count: int) -> Iterator[None]:
    """In this block dropout draws what it would for all `count` bags, and keeps what falls on bags `rows`.

    With the same state of torch's generator at its start, a bag's units are dropped alike in whatever piece it is.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Dropout) and m.training and m.p]
    if rows == list(range(count)):
        layers = []

    def draw(layer: nn.Dropout, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        x = inputs[0]
        ones = torch.ones_like(x[:1]).expand(count, *x.shape[1:])
        # The numbers are drawn in the order of memory, so the whole must lie there as it would.
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        ones = ones.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        return (x * F.dropout(ones, layer.p)[rows],)

    hooks = [layer.register_forward_pre_hook(draw) for layer in layers]
    for layer in layers:
        layer.eval()
    try:
        yield
    finally:
        for layer, hook in zip(layers, hooks, strict=True):
            hook.remove()
            layer.train()


def accumulated(
    backward: Callable[[list[int], AspectGroup], float],
    forget: Callable[[], None],
    groups: list[AspectGroup],
    pieces: int,
    *,
    divisible: bool,
) -> tuple[float, int]:
    """The sum of `backward` over each group's pieces; where memory is not enough, over twice as many, and again.

    Args:
        backward: adds the gradients of some rows of a group and returns their loss.
        forget: takes back the gradients that were added so far.
        pieces: into how many each group is divided.
        divisible: whether pieces give what the whole does.

    Returns:
        The sum, and how many pieces it took.

    Raises:
        UserError: memory is not enough for one bag, or for all where they cannot be divided.
    """
    while True:
        try:
            return sum(
                backward(rows, group) for group in groups for rows in pieces_of(group.rows, pieces)
            ), pieces
        except torch.OutOfMemoryError:
            length = max(len(group.rows) for group in groups)
            if not divisible or pieces >= length:
                what = (
                    "a photo" if divisible else f"a batch of {length} photos, which this rule sees together,"
                )
                raise UserError(
                    f"the device's memory is not enough for {what}; give a smaller --longest-side"
                    + ("" if divisible else " or --batch-size")
                ) from None
        # After the handler: the exception holds the piece's tensors.
        forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        pieces = min(2 * pieces, length)
        print(
            f"milseg: out of memory; going on with {-(-length // pieces)} photos at a time (--accumulate {pieces}), "
            "which changes the result by rounding only",
            file=sys.stderr,
        )


def sees_whole(model: FCN, entry: RuleEntry) -> bool:
    """Whether a batch in pieces would not give what the batch gives: a rule that looks across bags, live batch norm."""
    return entry.sees_batch or _live_batch_norm(model)


def _live_batch_norm(model: FCN) -> bool:
    return any(m.training for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))


def refuse_to_divide(model: FCN, entry: RuleEntry, config: TrainConfig) -> None:
    """Stop where a batch in pieces would not give what the batch gives.

    Raises:
        UserError: more processes than bags; a rule that looks across bags, or live batch norm, and pieces.
    """
    if collectives.size() > config.batch_size:
        raise UserError(
            f"a batch of {config.batch_size} photos for {collectives.size()} processes; give a larger --batch-size, or "
            "start fewer"
        )
    if entry.sees_batch and config.accumulate > 1:
        raise UserError(
            f"--accumulate {config.accumulate} with a rule that looks across the photos of a batch: pieces would hide "
            "them from it; leave --accumulate out, or give a smaller --batch-size"
        )
    if _live_batch_norm(model) and (collectives.size() > 1 or config.accumulate > 1):
        raise UserError(
            "this network's batch norm takes the statistics of the photos it sees at once, which are fewer in a piece "
            "of the batch; keep it frozen (frozen_batch_norm), or train in one process without accumulation"
        )
