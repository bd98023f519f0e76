"""One photo seen several times, larger, smaller and mirrored, as one score map.

A network's map moves a little when the photo is mirrored or resized; the mean of what it says is steadier, and finer
than one map alone. What comes out is a coarse map like any other, so that everything after it stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from milseg.photos import UInt8, fit_size, resize_photo
from milseg.predict import bilinear_weights
from milseg.tiles import Network, photo_tile_scores


class ScoreMap(NamedTuple):
    """A coarse map and where its places lie on the photo.

    Attributes:
        scores: float32 [1, C, h, w].
        stride, offset: place i is centred on pixel offset + i * stride of the photo at `input_size`.
        input_size: (height, width) that the geometry speaks of, pixels.
    """

    scores: torch.Tensor
    stride: float
    offset: float
    input_size: tuple[int, int]


@torch.inference_mode()
def look(
    model: Network,
    photo: UInt8,
    *,
    longest_side: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> ScoreMap:
    """The score map of a photo uint8 [H, W, 3], from one view or several.

    One view at scale 1 gives the network's own scores. Several are merged on a grid of half the network's stride: the
    log of the mean over the views of the softmax, each interpolated bilinearly to the grid.

    Photos of more than `milseg.tiles.TILE_PIXELS` go through the network in tiles, with the same scores.

    Args:
        longest_side: photos larger than this are made smaller before `scales` apply; None keeps their size.
        scales: sizes of the views, times the (made smaller) photo's.
        flip: see each size mirrored as well.
    """
    device = device_of(model)
    seen = fit_size(photo.shape[0], photo.shape[1], longest_side)
    if tuple(scales) == (1.0,) and not flip:
        return ScoreMap(_scores(model, photo, seen, device), model.stride, model.offset, seen)
    stride = model.stride / 2
    grid = [torch.arange(-(-side // stride), device=device) * stride + model.offset for side in seen]
    total: torch.Tensor | None = None
    views = [(scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,))]
    for scale, mirrored in views:
        size = (max(1, round(seen[0] * scale)), max(1, round(seen[1] * scale)))
        scores = _scores(model, photo[:, ::-1] if mirrored else photo, size, device).to(device)
        rows = (grid[0] + 0.5) * (size[0] / seen[0]) - 0.5
        columns = (grid[1] + 0.5) * (size[1] / seen[1]) - 0.5
        if mirrored:
            columns = size[1] - 1 - columns
        down = bilinear_weights((rows - model.offset) / model.stride, scores.shape[-2]).to(scores.dtype)
        across = bilinear_weights((columns - model.offset) / model.stride, scores.shape[-1]).to(scores.dtype)
        p = (down @ (scores @ across.T)).softmax(dim=1)
        total = p if total is None else total + p
    assert total is not None, "a photo must be looked at once at least"
    smallest = torch.finfo(total.dtype).tiny
    return ScoreMap((total / len(views)).clamp_min(smallest).log(), stride, model.offset, seen)


def _scores(model: Network, photo: UInt8, size: tuple[int, int], device: torch.device) -> torch.Tensor:
    return photo_tile_scores(model, resize_photo(photo, size), device=device)


def device_of(network: Network) -> torch.device:
    """Where a network computes; the CPU for one that is no torch module."""
    if isinstance(network, torch.nn.Module):
        return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    return torch.device("cpu")
