"""From the coarse map to a mask at the photo's size.

"At inference time, the MIL-FCN takes the top class prediction at every point in the coarse prediction and
bilinearly interpolates to image resolution" (paper, "Multi-class MIL loss"). Class numbers cannot be
interpolated, so there are two readings: interpolate the scores and then take the top class (the default), or
interpolate the one-hot coarse top class ("labels", the literal one).
"""

from __future__ import annotations

import numpy as np
import torch

from milseg.config import READINGS
from milseg.data.image import UInt8, fit_size, normalise, resize_photo
from milseg.errors import unknown_name
from milseg.models.fcn import FCN

# Pixels of a mask that are decided together: a plane of scores that stays in the processor's cache. Of a wide mask they
# are more, as every band interpolates the places above and below it anew: rows of pixels, and numbers of all classes.
BAND_PIXELS = 2**16
BAND_ROWS = 48
BAND_NUMBERS = 2**24
LEAST_SCORE = -1e30


def interpolation_matrix(
    pixels: int, places: int, stride: float, offset: float, *, like: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    """Bilinear weights of the places of one axis for each pixel of it, [pixels, places]; each row sums to 1.

    Place i is centred on pixel offset + i * stride of the network's input; beyond the outermost centres the
    nearest place holds. `scale` is input pixels per output pixel, where the photo was resized before the
    network.

    >>> interpolation_matrix(4, 2, 2.0, 0.5, like=torch.zeros(1))[:, 0].tolist()
    [1.0, 0.75, 0.25, 0.0]
    """
    return bilinear_weights(place_of(pixels, stride, offset, like=like, scale=scale), places)


def place_of(
    pixels: int, stride: float, offset: float, *, like: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    """Where each pixel of an axis lies among the places 0, 1, ... of the map, [pixels]; fractions lie between."""
    pixel = torch.arange(pixels, dtype=like.dtype, device=like.device)
    return ((pixel + 0.5) * scale - 0.5 - offset) / stride


def bilinear_weights(positions: torch.Tensor, places: int) -> torch.Tensor:
    """Weights of a row of places 0, 1, ... at each position [n] along it, [n, places]; each row sums to 1.

    >>> bilinear_weights(torch.tensor([-1.0, 0.25, 9.0]), 2).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.0, 1.0]]
    """
    place = torch.arange(places, dtype=positions.dtype, device=positions.device)
    return (1 - (positions.clamp(0, places - 1)[:, None] - place[None]).abs()).clamp_min(0)


def read_at(values: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Maps [..., h, w] read bilinearly at rows [n] and columns [m], counted in places; [..., n, m]."""
    down = bilinear_weights(rows, values.shape[-2]).to(values.dtype)
    across = bilinear_weights(columns, values.shape[-1]).to(values.dtype)
    return down @ (values @ across.T)


def upsample(
    scores: torch.Tensor,
    size: tuple[int, int],
    *,
    stride: float,
    offset: float,
    input_size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Bilinear interpolation of a coarse map to pixels, exact about where each place is centred.

    As two small matrix products, one an axis. With offset (stride - 1) / 2 it is what `align_corners=False`
    means; a network of padded stride-2 convolutions has offset 0, and that call would shift its map by half a
    place.

    Args:
        scores: [..., h, w].
        size: (height, width) of the result, pixels.
        stride, offset: the network's geometry, input pixels.
        input_size: (height, width) of the network's input, where it is not `size`.

    Returns:
        [..., height, width].
    """
    height, width = input_size or size
    rows = interpolation_matrix(
        size[0], scores.shape[-2], stride, offset, like=scores, scale=height / size[0]
    )
    columns = interpolation_matrix(
        size[1], scores.shape[-1], stride, offset, like=scores, scale=width / size[1]
    )
    return rows @ (scores @ columns.T)


def top_class(scores: torch.Tensor) -> torch.Tensor:
    """The class with the highest score at each place, uint8 [B, h, w]; ties go to the lowest (background)."""
    return scores.argmax(dim=1).to(torch.uint8)


def masks_from_scores(
    scores: torch.Tensor,
    size: tuple[int, int],
    *,
    stride: float,
    offset: float,
    reading: str = "scores",
    input_size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """Masks uint8 [B, H, W] from coarse scores [B, C, h, w], by one of the `READINGS`."""
    if reading not in READINGS:
        raise unknown_name("reading", reading, READINGS)
    if reading == "labels":
        coarse = scores.argmax(dim=1)
        scores = torch.nn.functional.one_hot(coarse, scores.shape[1]).permute(0, 3, 1, 2).to(scores.dtype)
    height, width = input_size or size
    rows = place_of(size[0], stride, offset, like=scores, scale=height / size[0])
    columns = place_of(size[1], stride, offset, like=scores, scale=width / size[1])
    return torch.stack([_top_classes(one, rows, columns) for one in scores.detach()])


@torch.no_grad()
def _top_classes(scores: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The top class at each row [H] and column [W] of a map [C, h, w], in bands and one class after the other.

    The same as `upsample` and `argmax`, but that [C, H, W] is never held. A class that is everywhere in a band below
    what another one never goes below cannot win there, as interpolation stays between its places, and is left out.
    """
    classes, places, across = scores.shape
    kind = torch.uint8 if classes <= 256 else torch.int16
    width = len(columns)
    found = torch.zeros(len(rows), width, dtype=kind, device=scores.device)
    rows, columns = rows.clamp(0, places - 1), columns.clamp(0, across - 1)
    left = columns.floor().long()
    right = (left + 1).clamp_max(across - 1)
    share = columns - left
    height = max(1, BAND_PIXELS // width, min(BAND_ROWS, BAND_NUMBERS // (classes * width)))
    best, plane = (torch.empty(height, width, dtype=scores.dtype, device=scores.device) for _ in "12")
    for start in range(0, len(rows), height):
        here = rows[start : start + height]
        first, last = int(here[0]), min(int(here[-1]) + 1, places - 1)
        # A ruled-out class must stay finite through the interpolation: 0 * inf is not a number.
        coarse = scores[:, first : last + 1].clamp_min(LEAST_SCORE)
        kept = _may_win(coarse)
        coarse = coarse[kept]
        wide = torch.lerp(coarse.index_select(2, left), coarse.index_select(2, right), share)
        down = bilinear_weights(here - first, last + 1 - first)
        band = found[start : start + height]
        top, other = best[: len(here)], plane[: len(here)]
        for turn, (number, values) in enumerate(zip(kept.tolist(), wide, strict=True)):
            if turn == 0:
                torch.mm(down, values, out=top)
                band.fill_(number)
                continue
            torch.mm(down, values, out=other)
            # Above, not equal: a tie goes to the lower class.
            band.masked_fill_(other > top, number)
            torch.maximum(top, other, out=top)
    return found


def _may_win(scores: torch.Tensor) -> torch.Tensor:
    """Numbers of the classes of [C, h, w] that can be on top anywhere between these places."""
    places = scores.flatten(1)
    kept = (places.amax(dim=1) >= places.amin(dim=1).max()).nonzero()[:, 0]
    return kept if len(kept) else torch.arange(len(scores), device=scores.device)


@torch.inference_mode()
def photo_scores(
    model: FCN, photo: UInt8, *, longest_side: int | None = None
) -> tuple[torch.Tensor, tuple[int, int]]:
    """The coarse scores [1, C, h, w] of a photo uint8 [H, W, 3], and the size at which the network saw it."""
    device = next(model.parameters()).device
    seen = fit_size(photo.shape[0], photo.shape[1], longest_side)
    image = normalise(resize_photo(photo, seen))[None].to(device, memory_format=torch.channels_last)
    scores: torch.Tensor = model(image)
    return scores, seen


def segment(model: FCN, photo: UInt8, *, reading: str = "scores", longest_side: int | None = None) -> UInt8:
    """The mask of one photo, uint8 [H, W] at the photo's own size.

    Args:
        model: in evaluation mode.
        photo: uint8 [H, W, 3].
        longest_side: the network sees a photo larger than this made smaller; None shows it as it is.
    """
    scores, seen = photo_scores(model, photo, longest_side=longest_side)
    height, width = photo.shape[:2]
    mask = masks_from_scores(
        scores, (height, width), stride=model.stride, offset=model.offset, reading=reading, input_size=seen
    )
    return np.asarray(mask[0].cpu().numpy(), dtype=np.uint8)
