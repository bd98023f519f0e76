"""A photo's coarse scores, and the way from them to a mask at the photo's size.

"At inference time, the MIL-FCN takes the top class prediction at every point in the coarse prediction and
bilinearly interpolates to image resolution" (paper, "Multi-class MIL loss"). Class numbers cannot be
interpolated, so there are two readings: interpolate the scores and then take the top class (the default), or
interpolate the one-hot coarse top class ("labels", the literal one).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from milseg.config import READINGS
from milseg.data.image import UInt8
from milseg.errors import unknown_name
from milseg.inference.prior import Prior, apply_prior
from milseg.refine.random_walk import random_walk

# A mask is decided in bands of rows, whose scores stay in the processor's cache: at least this many pixels. Each band
# interpolates the cells above and below it anew, so bands of a wide mask have at least BAND_ROWS rows, as long as the
# scores of all classes are no more than BAND_NUMBERS.
BAND_PIXELS = 2**16
BAND_ROWS = 48
BAND_NUMBERS = 2**24
# Stands for the -inf of a ruled-out class in interpolation, where 0 * inf would not be a number.
LEAST_SCORE = -1e30
# Numbers of a large score map whose softmax is held at once.
BLOCK = 2**24


def cell_positions(
    pixels: int, stride: float, offset: float, *, like: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    """Return the position of each pixel of an axis among the cells 0, 1, ... of a map, [pixels].

    Cell i is centred on pixel offset + i * stride of the network's input; fractions lie between two cells.

    Args:
        scale: input pixels per output pixel, if the photo was resized for the network.
    """
    pixel = torch.arange(pixels, dtype=like.dtype, device=like.device)
    return ((pixel + 0.5) * scale - 0.5 - offset) / stride


def bilinear_weights(positions: torch.Tensor, cells: int) -> torch.Tensor:
    """Return the weights of a row of cells 0, 1, ... at each position [n], [n, cells]; each row sums to 1.

    Beyond the outermost centres the nearest cell holds.

    >>> bilinear_weights(torch.tensor([-1.0, 0.25, 9.0]), 2).tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.0, 1.0]]
    """
    cell = torch.arange(cells, dtype=positions.dtype, device=positions.device)
    return (1 - (positions.clamp(0, cells - 1)[:, None] - cell[None]).abs()).clamp_min(0)


def interpolation_matrix(
    pixels: int, cells: int, stride: float, offset: float, *, like: torch.Tensor, scale: float = 1.0
) -> torch.Tensor:
    """Return the bilinear weights of one axis's cells for each of its pixels, [pixels, cells].

    See `cell_positions` and `bilinear_weights`.

    >>> interpolation_matrix(4, 2, 2.0, 0.5, like=torch.zeros(1))[:, 0].tolist()
    [1.0, 0.75, 0.25, 0.0]
    """
    return bilinear_weights(cell_positions(pixels, stride, offset, like=like, scale=scale), cells)


def read_at(values: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Read maps [..., h, w] bilinearly at rows [n] and columns [m], counted in cells; [..., n, m]."""
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
    """Interpolate a coarse map bilinearly to pixels, exact about where each cell is centred.

    Two small matrix products, one an axis. With offset (stride - 1) / 2 this equals `align_corners=False`. A network
    of padded stride-2 convolutions has offset 0; that call would shift its map by half a cell.

    Args:
        scores: [..., h, w].
        size: (height, width) of the result, pixels.
        stride, offset: the network's geometry, input pixels.
        input_size: (height, width) of the network's input; None means `size`.

    Returns:
        [..., height, width].
    """
    height, width = input_size or size
    rows = cell_positions(size[0], stride, offset, like=scores, scale=height / size[0])
    columns = cell_positions(size[1], stride, offset, like=scores, scale=width / size[1])
    return read_at(scores, rows, columns)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreMap:
    """The coarse scores of one photo, and where their cells lie on it.

    Attributes:
        scores: float [C, h, w], logits, log-probabilities or probabilities; -inf rules a class out.
        stride, offset: cell i is centred on pixel offset + i * stride of the photo at `input_size`.
        input_size: (height, width) of the network's input, pixels.

    >>> two_cells = torch.tensor([[[1.0, 0.0]], [[0.0, 9.0]]])
    >>> ScoreMap(scores=two_cells, stride=4, offset=0.0, input_size=(1, 5)).argmax_mask((1, 5)).tolist()
    [[0, 1, 1, 1, 1]]
    """

    scores: torch.Tensor
    stride: float
    offset: float
    input_size: tuple[int, int]

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> ScoreMap:
        """Return the map with `function` of its scores [C, h, w], which keeps the cells."""
        return replace(self, scores=function(self.scores))

    def with_prior(self, prior: Prior, strength: float) -> ScoreMap:
        """Return the map weighed by the photo's image-level prior (`milseg.inference.prior`)."""
        return self.map(lambda scores: apply_prior(scores, prior, strength))

    def with_classes(self, allowed: torch.Tensor) -> ScoreMap:
        """Return the map with every class but the `allowed` ones, bool [C], ruled out."""
        return self.map(lambda scores: scores.masked_fill(~allowed[:, None, None], -torch.inf))

    def with_class_bias(self, bias: torch.Tensor) -> ScoreMap:
        """Return the map with a number [C] added to the scores of each class."""
        return self.map(lambda scores: scores + bias[:, None, None])

    def random_walk(self, transition: torch.Tensor, *, steps: int) -> ScoreMap:
        """Return the log probabilities after a random walk among the cells; ruled-out classes stay ruled out.

        Args:
            transition: [N, N]; see `milseg.refine.random_walk`.
        """
        after = random_walk(self.scores, transition, steps=steps)
        return replace(self, scores=after.masked_fill_(self.scores == -torch.inf, -torch.inf))

    def probabilities_at(self, size: tuple[int, int]) -> torch.Tensor:
        """Return the softmax of the scores interpolated to `size`, float32 [C, height, width]."""
        fine = upsample(
            self.scores.clamp_min(LEAST_SCORE),
            size,
            stride=self.stride,
            offset=self.offset,
            input_size=self.input_size,
        )
        return fine.softmax(dim=0)

    def probability_of(self, mask: UInt8) -> torch.Tensor:
        """Return the probability of each pixel's class, float32 [H, W], for a mask uint8 [H, W] of class numbers.

        It is `probabilities_at` the mask's size, without holding all classes at that size.
        """
        rows, columns = self._positions((mask.shape[0], mask.shape[1]))
        found = torch.empty(mask.shape, dtype=self.scores.dtype)
        for band in self._bands(mask.shape[0], mask.shape[1]):
            p = read_at(self.scores.clamp_min(LEAST_SCORE), rows[band], columns).softmax(dim=0)
            numbers = torch.from_numpy(mask[band].astype(np.int64))
            found[band] = p.gather(0, numbers[None])[0]
        return found

    @torch.no_grad()
    def argmax_mask(self, size: tuple[int, int], *, reading: str = "scores") -> UInt8:
        """Return the top class at each pixel of `size`, uint8 [height, width]; ties go to the lower class.

        The result equals the argmax of the interpolated scores, but they are never held for all classes at once.

        Args:
            reading: one of `READINGS`.

        Raises:
            UserError: an unknown reading.
        """
        if reading not in READINGS:
            raise unknown_name("reading", reading, READINGS)
        scores = self.scores.detach()
        if reading == "labels":
            scores = torch.nn.functional.one_hot(scores.argmax(dim=0), len(scores)).movedim(2, 0).to(scores)
        rows, columns = self._positions(size)
        return np.asarray(_top_classes(scores, rows, columns, self._bands(*size)).cpu().numpy())

    def tag_confidences(self) -> tuple[list[float], float]:
        """Return the highest probability of each class at any cell, and the mean over the cells of the top class's."""
        classes, height, width = self.scores.shape
        step = max(1, BLOCK // (classes * width))
        best, total = torch.zeros(classes), 0.0
        for start in range(0, height, step):
            rows = self.scores[:, start : start + step]
            p = rows.softmax(dim=0)
            best = torch.maximum(best, p.flatten(1).amax(dim=1))
            total += float(p.amax(dim=0).mean()) * rows.shape[1]
        return best.tolist(), total / height

    def _positions(self, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the positions of each row and each column of a mask among the cells."""
        rows, columns = (
            cell_positions(pixels, self.stride, self.offset, like=self.scores, scale=side / pixels)
            for pixels, side in zip(size, self.input_size, strict=True)
        )
        return rows, columns

    def _bands(self, height: int, width: int) -> list[slice]:
        """Cut the rows of a mask into bands; only the last may be lower than the others."""
        step = max(1, BAND_PIXELS // width, min(BAND_ROWS, BAND_NUMBERS // (len(self.scores) * width)))
        return [slice(start, min(start + step, height)) for start in range(0, height, step)]


def _top_classes(
    scores: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, bands: Sequence[slice]
) -> torch.Tensor:
    """Return the top class at each row [H] and column [W] of a map [C, h, w], one class after the other.

    Interpolation stays between its cells. So a class whose highest score in a band is below another's lowest cannot
    win there, and is left out.
    """
    classes, cell_rows, cell_columns = scores.shape
    mask = torch.zeros(
        len(rows), len(columns), dtype=torch.uint8 if classes <= 256 else torch.int16, device=scores.device
    )
    rows, columns = rows.clamp(0, cell_rows - 1), columns.clamp(0, cell_columns - 1)
    left = columns.floor().long()
    right = (left + 1).clamp_max(cell_columns - 1)
    right_share = columns - left
    best, other = (scores.new_empty(bands[0].stop, len(columns)) for _ in range(2))
    for rows_of_band in bands:
        band, positions = mask[rows_of_band], rows[rows_of_band]
        top, plane = best[: len(band)], other[: len(band)]
        first, last = int(positions[0]), min(int(positions[-1]) + 1, cell_rows - 1)
        coarse = scores[:, first : last + 1].clamp_min(LEAST_SCORE)
        candidates = _possible_classes(coarse)
        coarse = coarse[candidates]
        wide = torch.lerp(coarse.index_select(2, left), coarse.index_select(2, right), right_share)
        down = bilinear_weights(positions - first, last + 1 - first)
        for turn, (number, values) in enumerate(zip(candidates.tolist(), wide, strict=True)):
            if turn == 0:
                torch.mm(down, values, out=top)
                band.fill_(number)
                continue
            torch.mm(down, values, out=plane)
            # Above, not equal: a tie goes to the lower class.
            band.masked_fill_(plane > top, number)
            torch.maximum(top, plane, out=top)
    return mask


def _possible_classes(scores: torch.Tensor) -> torch.Tensor:
    """Return the numbers of the classes of [C, h, w] that can be on top anywhere between these cells."""
    cells = scores.flatten(1)
    possible = (cells.amax(dim=1) >= cells.amin(dim=1).max()).nonzero()[:, 0]
    return possible if len(possible) else torch.arange(len(scores), device=scores.device)
