"""One photo seen several times, larger, smaller and mirrored, as one score map.

A network's map moves a little when the photo is mirrored or resized; the mean of what it says is steadier, and finer
than one map alone. What comes out is a coarse map like any other, so that everything after it stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from milseg.data.image import UInt8, fit_size, normalise, resize_photo
from milseg.inference.score_map import read_at
from milseg.inference.tiling import Network, photo_tile_scores
from milseg.models.fcn import FCN
from milseg.refine import transition_matrix, walked, walking_size

# The view whose inner maps say what looks alike: so many times as large as the map's, but no longer than this, pixels.
LARGER, LONGEST = 1.5, 480


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

    Photos of more than `milseg.inference.tiling.TILE_PIXELS` go through the network in tiles, with the same scores.

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
        places = ((axis - model.offset) / model.stride for axis in (rows, columns))
        p = read_at(scores, *places).softmax(dim=1)
        total = p if total is None else total + p
    assert total is not None, "a photo must be looked at once at least"
    smallest = torch.finfo(total.dtype).tiny
    return ScoreMap((total / len(views)).clamp_min(smallest).log(), stride, model.offset, seen)


@torch.inference_mode()
def affinity(network: FCN, photo: UInt8, found: ScoreMap) -> torch.Tensor:
    """The transition matrix between the places of a photo's map (`milseg.refine.random_walk`), [N, N] on the CPU.

    The network sees the photo `LARGER` times as large as for the map, as inner maps are coarse, but `LONGEST` pixels at
    most.
    """
    longest = min(LONGEST, round(LARGER * max(found.input_size)))
    shrink = longest / max(photo.shape[:2])
    size = (max(1, round(photo.shape[0] * shrink)), max(1, round(photo.shape[1] * shrink)))
    device = device_of(network)
    image = normalise(resize_photo(photo, size))[None].to(device, memory_format=torch.channels_last)
    height, width = found.scores.shape[-2:]
    # The same places in the pixels of this view; where a map walks on a coarser grid, the middles of its cells.
    rows, columns = (
        _middles(places, cells, found, side, seen)
        for places, cells, side, seen in zip(
            (height, width), walking_size(height, width), size, found.input_size, strict=True
        )
    )
    maps = []
    for values, stride, offset in network.features(image):
        places = ((axis.to(device) - offset) / stride for axis in (rows, columns))
        maps.append(read_at(values[0].float(), *places))
    return transition_matrix(maps).cpu()


def _middles(places: int, cells: int, found: ScoreMap, side: int, seen: int) -> torch.Tensor:
    """Where the cells of one axis lie in a view of `side` pixels, when the map lies in one of `seen`."""
    place = (torch.arange(cells) + 0.5) * (places / cells) - 0.5
    return (place * found.stride + found.offset + 0.5) * (side / seen) - 0.5


def walk(found: ScoreMap, step: torch.Tensor, *, steps: int) -> ScoreMap:
    """The map, or several of the same places, after a random walk: log probabilities. Ruled-out cells stay -inf."""
    after = torch.stack([walked(one, step, steps=steps) for one in found.scores])
    return found._replace(scores=after.masked_fill_(found.scores == -torch.inf, -torch.inf))


def _scores(model: Network, photo: UInt8, size: tuple[int, int], device: torch.device) -> torch.Tensor:
    return photo_tile_scores(model, resize_photo(photo, size), device=device)


def device_of(network: Network) -> torch.device:
    """Where a network computes; the CPU for one that is no torch module."""
    if isinstance(network, torch.nn.Module):
        return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    return torch.device("cpu")
