"""Superpixels: small segments of like colour, as units for masks and for rules that choose whole segments."""

from __future__ import annotations

import numpy as np
import torch
from skimage.segmentation import slic

from milseg.data.image import UInt8


def superpixels(
    photo: UInt8,
    size: tuple[int, int] | None = None,
    *,
    stride: float | None = None,
    offset: float = 0.0,
    count: int = 200,
    compactness: float = 10.0,
) -> torch.Tensor:
    """Return the segments of a photo, or of the cells of its score map.

    Achanta et al., "SLIC Superpixels Compared to State-of-the-Art Superpixel Methods", PAMI 2012: k-means of
    position and CIELAB colour, started on a grid.

    Args:
        photo: uint8 [H, W, 3], as the network sees it.
        size: (h, w) of the score map; None for every pixel.
        stride, offset: cell i is centred on pixel offset + i * stride; without a stride the cells share the photo
            evenly. A cell beyond the border is moved onto it.
        count: about how many segments of the whole photo.
        compactness: how much nearness weighs against colour.

    Returns:
        int64 [H, W] or [h, w], numbered from 0 without gaps: segments that hold no cell are left out.

    >>> photo = np.zeros((32, 48, 3), np.uint8)
    >>> photo[:, 24:] = 255
    >>> superpixels(photo, (1, 4), stride=12, offset=5.5, count=2).tolist()
    [[0, 0, 1, 1]]
    """
    height, width = photo.shape[:2]
    segments = slic(
        photo,
        n_segments=max(1, min(count, height * width)),
        compactness=compactness,
        start_label=0,
        channel_axis=-1,
    )
    labels = torch.from_numpy(np.asarray(segments, dtype=np.int64))
    if size is not None:
        rows = _centres(size[0], height, stride, offset)
        columns = _centres(size[1], width, stride, offset)
        labels = labels[rows[:, None], columns[None]]
    numbers: torch.Tensor = torch.unique(labels, return_inverse=True)[1]
    return numbers


def _centres(cells: int, pixels: int, stride: float | None, offset: float) -> torch.Tensor:
    """Return the pixel at the centre of each cell, int64 [cells]."""
    cell = torch.arange(cells, dtype=torch.float64)
    centre = (cell + 0.5) * pixels / cells - 0.5 if stride is None else offset + cell * stride
    return centre.round().long().clamp(0, pixels - 1)


def segment_means(probs: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    """Replace each pixel's probabilities by the mean over its segment.

    Args:
        probs: [C, H, W].
        segments: int64 [H, W], from 0.

    >>> segment_means(torch.tensor([[[0.2, 0.6, 0.9]]]), torch.tensor([[0, 0, 1]])).round(decimals=6).tolist()
    [[[0.4000000059604645, 0.4000000059604645, 0.8999999761581421]]]
    """
    rows = probs.flatten(1).T
    numbers = segments.flatten().to(probs.device)
    sums = rows.new_zeros(int(numbers.max()) + 1, rows.shape[1]).index_add_(0, numbers, rows)
    sizes = torch.bincount(numbers, minlength=len(sums)).to(sums.dtype)
    return (sums / sizes.clamp_min(1)[:, None])[numbers].T.reshape(probs.shape)


def superpixel_means(
    photo: UInt8, probs: torch.Tensor, *, count: int = 200, compactness: float = 10.0
) -> torch.Tensor:
    """Return probabilities [C, H, W] averaged over the superpixels of their photo uint8 [H, W, 3]."""
    return segment_means(probs, superpixels(photo, count=count, compactness=compactness))
