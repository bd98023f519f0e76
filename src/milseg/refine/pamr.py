"""Pixel-adaptive mask refinement: each pixel's probabilities become those of its most similar neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn.functional import pad

from milseg.data.image import UInt8

DILATIONS = (1, 2, 4, 8, 12, 24)


@torch.no_grad()
def pamr(
    photos: torch.Tensor, probs: torch.Tensor, *, iterations: int = 10, dilations: Sequence[int] = DILATIONS
) -> torch.Tensor:
    """Refine probabilities by local affinities, without any learned part.

    Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020, the part named
    pixel-adaptive mask refinement. N_i are the 8 neighbours of pixel i in a 3 x 3 window, once for each dilation; x the
    photo, channels k; s_ik the standard deviation of channel k over these windows, their centres included:

        k_ij = -mean_k |x_ik - x_jk| / (0.1 s_ik),    a_ij = exp k_ij / sum_{j' in N_i} exp k_ij',
        p_i <- sum_{j in N_i} a_ij p_j,    `iterations` times.

    Factor 0.1 and defaults are those of the authors' program. Beyond the border the nearest pixel is repeated.

    Args:
        photos: float [B, K, H, W], in any unit.
        probs: float [B, C, H, W].
        iterations: 0 gives back `probs`.
        dilations: distances to the neighbours, pixels.

    Returns:
        [B, C, H, W]; sums over the classes stay as they are.

    >>> photos = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0]).expand(1, 3, 4, 6)
    >>> probs = torch.tensor([0.9, 0.2, 0.8, 0.1, 0.7, 0.2]).expand(4, 6)
    >>> found = pamr(photos, torch.stack((probs, 1 - probs))[None], dilations=(1,))
    >>> found[0].argmax(dim=0)[0].tolist()
    [0, 0, 0, 1, 1, 1]
    """
    weights = _affinities(photos, dilations)
    for _ in range(iterations):
        refined = torch.zeros_like(probs)
        for weight, near in zip(weights, _shifted(probs, dilations), strict=True):
            refined.addcmul_(near, weight)
        probs = refined
    return probs


def pamr_photo(photo: UInt8, probs: torch.Tensor, *, iterations: int = 10) -> torch.Tensor:
    """Apply `pamr` to one photo uint8 [H, W, 3] and its probabilities [C, H, W]."""
    image = torch.from_numpy(np.array(photo)).to(probs.device, probs.dtype).permute(2, 0, 1)
    return pamr(image[None] / 255, probs[None], iterations=iterations)[0]


def _shifted(values: torch.Tensor, dilations: Sequence[int]) -> Iterator[torch.Tensor]:
    """Yield each neighbour's value at each pixel, [B, C, H, W]; views of one padded copy."""
    height, width = values.shape[-2:]
    reach = max(dilations)
    padded = pad(values, (reach,) * 4, mode="replicate")
    for far in dilations:
        for down in (-far, 0, far):
            for right in (-far, 0, far):
                if down or right:
                    top, left = reach + down, reach + right
                    yield padded[..., top : top + height, left : left + width]


def _affinities(photos: torch.Tensor, dilations: Sequence[int]) -> torch.Tensor:
    """Return a_ij, [8 len(dilations), B, 1, H, W]."""
    count = 9 * len(dilations)
    # Each window holds its centre too. Two passes: a difference of squares would lose what little varies.
    mean = (sum(_shifted(photos, dilations)) + len(dilations) * photos) / count
    squares = len(dilations) * (photos - mean).square()
    for near in _shifted(photos, dilations):
        squares += (near - mean).square()
    spread = 0.1 * (squares / (count - 1)).sqrt() + 1e-8
    kernel = [
        -((near - photos).abs() / spread).mean(dim=1, keepdim=True) for near in _shifted(photos, dilations)
    ]
    return torch.stack(kernel).softmax(dim=0)
