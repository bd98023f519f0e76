"""Test-time augmentation: one score map from a photo seen larger, smaller and mirrored.

A network's map moves a little if the photo is mirrored or resized. The mean of several such maps is steadier, and
finer than one alone. The result is a coarse map like any other, so everything after it stays the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from milseg.data.image import UInt8, fit_size, resize_photo
from milseg.inference.score_map import ScoreMap, read_at
from milseg.inference.tiling import Network, device_of, photo_tile_scores


@torch.inference_mode()
def tta_score_map(
    network: Network,
    photo: UInt8,
    *,
    longest_side: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> ScoreMap:
    """Return the score map of a photo uint8 [H, W, 3], on the network's device.

    At scale 1 alone it holds the network's own scores. Several augmented photos are merged on a grid of half the
    network's stride: the log of the mean of their softmax, each interpolated bilinearly to the grid.

    A photo of more than `milseg.inference.tiling.TILE_PIXELS` goes through the network in tiles, with the same scores.

    Args:
        longest_side: larger photos are made this small before `scales` apply, pixels; None keeps their size.
        scales: sizes of the augmented photos, times the (made smaller) photo's.
        flip: add each size mirrored.
    """
    device = device_of(network)
    input_size = fit_size(photo.shape[0], photo.shape[1], longest_side)
    if tuple(scales) == (1.0,) and not flip:
        scores = photo_tile_scores(network, resize_photo(photo, input_size), device=device)
        return ScoreMap(scores=scores[0], stride=network.stride, offset=network.offset, input_size=input_size)
    stride = network.stride / 2
    grid = [torch.arange(-(-side // stride), device=device) * stride + network.offset for side in input_size]
    total = torch.zeros(())
    augmentations = [(scale, mirror) for scale in scales for mirror in ((False, True) if flip else (False,))]
    for scale, mirror in augmentations:
        size = (max(1, round(input_size[0] * scale)), max(1, round(input_size[1] * scale)))
        augmented = resize_photo(photo[:, ::-1] if mirror else photo, size)
        scores = photo_tile_scores(network, augmented, device=device).to(device)
        rows = (grid[0] + 0.5) * (size[0] / input_size[0]) - 0.5
        columns = (grid[1] + 0.5) * (size[1] / input_size[1]) - 0.5
        if mirror:
            columns = size[1] - 1 - columns
        cells = ((axis - network.offset) / network.stride for axis in (rows, columns))
        p = read_at(scores[0], *cells).softmax(dim=0)
        total = p if not total.ndim else total + p
    smallest = torch.finfo(total.dtype).tiny
    mean = (total / len(augmentations)).clamp_min(smallest)
    return ScoreMap(scores=mean.log(), stride=stride, offset=network.offset, input_size=input_size)
