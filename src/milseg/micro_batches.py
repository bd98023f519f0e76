"""A step's bags in pieces: the same loss and gradient as at once, in less memory or in several processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from milseg import distributed
from milseg.bags import VOID, BagBatch
from milseg.errors import UserError
from milseg.models.fcn import FCN
from milseg.options import TrainConfig
from milseg.rules import RuleEntry


def padded(batch: BagBatch, height: int, width: int) -> BagBatch:
    """The batch padded further, at the right and the bottom, to so many pixels.

    What lies beyond a photo's border reaches the network's places near it, so each piece is padded as the whole is.
    """
    down, right = height - batch.images.shape[-2], width - batch.images.shape[-1]
    if not down and not right:
        return batch
    masks = None if batch.masks is None else F.pad(batch.masks, (0, right, 0, down), value=VOID)
    return replace(batch, images=F.pad(batch.images, (0, right, 0, down)), masks=masks)


def taken(batch: BagBatch, rows: slice) -> BagBatch:
    """Some bags of a batch, with its padding."""
    return BagBatch(
        images=batch.images[rows],
        sizes=batch.sizes[rows],
        tags=batch.tags[rows],
        masks=None if batch.masks is None else batch.masks[rows],
        names=batch.names[rows],
    )


def pieces_of(rows: slice, count: int) -> list[slice]:
    """A slice in `count` pieces that differ by one at most; no more pieces than rows.

    >>> pieces_of(slice(3, 8), 2)
    [slice(3, 5, None), slice(5, 8, None)]
    """
    length = rows.stop - rows.start
    count = min(count, length)
    ends = [rows.start + i * length // count for i in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


@contextmanager
def dropout_of(network: nn.Module, rows: slice, count: int) -> Iterator[None]:
    """In this block dropout draws what it would for all `count` bags, and keeps what falls on bags `rows`.

    With the same state of torch's generator at its start, a bag's units are dropped alike in whatever piece it is.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Dropout) and m.training and m.p]
    if (rows.start, rows.stop) == (0, count):
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
    backward: Callable[[slice], float],
    forget: Callable[[], None],
    rows: slice,
    pieces: int,
    *,
    divisible: bool,
) -> tuple[float, int]:
    """The sum of `backward` over the pieces of `rows`; where memory is not enough, over twice as many, and again.

    Args:
        backward: adds a piece's gradients and returns its loss.
        forget: takes back the gradients that were added so far.
        divisible: whether pieces give what the whole does.

    Returns:
        The sum, and how many pieces it took.

    Raises:
        UserError: memory is not enough for one bag, or for all where they cannot be divided.
    """
    while True:
        try:
            return sum(backward(piece) for piece in pieces_of(rows, pieces)), pieces
        except torch.OutOfMemoryError:
            length = rows.stop - rows.start
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


def refuse_to_divide(model: FCN, entry: RuleEntry, config: TrainConfig) -> None:
    """Stop where a batch in pieces would not give what the batch gives.

    Raises:
        UserError: more processes than bags; a rule that looks across bags, or live batch norm, and pieces.
    """
    if distributed.size() > config.batch_size:
        raise UserError(
            f"a batch of {config.batch_size} photos for {distributed.size()} processes; give a larger --batch-size, or "
            "start fewer"
        )
    if entry.sees_batch and config.accumulate > 1:
        raise UserError(
            f"--accumulate {config.accumulate} with a rule that looks across the photos of a batch: pieces would hide "
            "them from it; leave --accumulate out, or give a smaller --batch-size"
        )
    live = any(m.training for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    if live and (distributed.size() > 1 or config.accumulate > 1):
        raise UserError(
            "this network's batch norm takes the statistics of the photos it sees at once, which are fewer in a piece "
            "of the batch; keep it frozen (frozen_batch_norm), or train in one process without accumulation"
        )
