"""What one would write first around a network of milseg: the rival of `milseg predict` and of `milseg serve`."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from milseg.data.image import MEAN, STD, UInt8
from milseg.inference.score_map import interpolation_matrix
from milseg.models.fcn import FCN


@torch.inference_mode()
def plain_scores(
    model: FCN,
    photo: UInt8,
    *,
    longest_side: int | None,
    layout: torch.memory_format = torch.contiguous_format,
) -> torch.Tensor:
    """Scores float32 [1, C, H, W] at the pixels of a photo uint8 [H, W, 3]: eager, one photo at a time."""
    height, width = photo.shape[:2]
    seen, small = (height, width), photo
    if longest_side is not None and longest_side < max(seen):
        scale = longest_side / max(height, width)
        seen = (round(height * scale), round(width * scale))
        resized = Image.fromarray(photo).resize((seen[1], seen[0]), Image.Resampling.BILINEAR)
        small = np.asarray(resized)
    scores = model(tensor_of(small)[None].to(memory_format=layout))
    return bilinear(scores, model, (height, width), seen)


def top_class(scores: torch.Tensor) -> UInt8:
    """The mask uint8 [H, W] of scores [1, C, H, W]."""
    return np.asarray(scores.argmax(dim=1)[0].to(torch.uint8).numpy())


def tensor_of(photo: UInt8) -> torch.Tensor:
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1).float() / 255
    return (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def bilinear(scores: torch.Tensor, model: FCN, size: tuple[int, int], seen: tuple[int, int]) -> torch.Tensor:
    """The map at the photo's pixels, each place on the pixel on which it is centred.

    Where the network saw the photo at its own size, `F.interpolate` does it, from the first place to the last one, and
    the edge is repeated. It cannot put places between pixels, so a photo that was made smaller takes two products.
    """
    if seen == size and model.offset == 0:
        rows, columns = ((places - 1) * model.stride + 1 for places in scores.shape[2:])
        inner = F.interpolate(scores, size=(rows, columns), mode="bilinear", align_corners=True)
        return F.pad(inner, (0, size[1] - columns, 0, size[0] - rows), mode="replicate")
    down, across = (
        interpolation_matrix(
            size[axis],
            scores.shape[2 + axis],
            model.stride,
            model.offset,
            like=scores,
            scale=seen[axis] / size[axis],
        )
        for axis in (0, 1)
    )
    return down @ (scores @ across.T)
