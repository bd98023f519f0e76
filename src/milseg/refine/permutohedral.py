"""The permutohedral lattice: Gaussian filtering of values at scattered points, in time linear in their number.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010. Points
are embedded in the plane x_0 + ... + x_d = 0 of d + 1 dimensions (section 3.1); its lattice of integer vectors whose
coordinates all leave the same remainder by d + 1 cuts the plane into simplices. Each point's value is splat to the
d + 1 corners of its simplex by barycentric weights, the corners are blurred along each of the d + 1 axes by
[1/2, 1, 1/2], and the result is sliced at the points by the same weights.

Everything is a weighted sum of rows, so splat, blur and slice are each one `embedding_bag`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn.functional import embedding_bag

from milseg.errors import UserError

# Rows of 8 floats fill whole registers; wider ones are filtered 8 columns at a time where corners are many.
LANES = 8
# Beyond it float32 no longer says in which simplex a point lies.
FURTHEST = 1e5


@dataclass(frozen=True, kw_only=True, eq=False)
class Sums:
    """A sparse matrix: result row i is the weighted sum of the rows `rows[starts[i]:starts[i + 1]]`.

    Attributes:
        rows: int32 [n].
        weights: float32 [n].
        starts: int32 [number of results].
    """

    rows: torch.Tensor
    weights: torch.Tensor
    starts: torch.Tensor

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Of float32 [*, C]: [number of results, C]."""
        return embedding_bag(self.rows, values, self.starts, mode="sum", per_sample_weights=self.weights)


@dataclass(frozen=True, kw_only=True, eq=False)
class Lattice:
    """The corners that N points touch, M in all, and the weights between both.

    Attributes:
        splat: values of points to corners.
        blurs: corners to corners, one for each axis.
        slice: corners to points.
    """

    splat: Sums
    blurs: tuple[Sums, ...]
    slice: Sums

    def filter(self, values: torch.Tensor) -> torch.Tensor:
        """Gaussian-filter float32 [N, C], contiguous; not normalised, see `build_lattice`."""
        if values.shape[1] > LANES and len(self.splat.starts) > len(values):
            parts = [values[:, i : i + LANES].contiguous() for i in range(0, values.shape[1], LANES)]
            return torch.cat([self.filter(part) for part in parts], dim=1)
        found = self.splat(values)
        for blur in self.blurs:
            found = blur(found)
        return self.slice(found)

    def scaled(self, factor: torch.Tensor) -> Lattice:
        """The lattice that multiplies a point's value by `factor` [N] before and after filtering, at no cost."""
        splat = self.splat.weights * factor.index_select(0, self.splat.rows)
        slices = (self.slice.weights.view(len(factor), -1) * factor[:, None]).flatten()
        return Lattice(
            splat=replace(self.splat, weights=splat),
            blurs=self.blurs,
            slice=replace(self.slice, weights=slices),
        )


def build_lattice(features: torch.Tensor) -> Lattice:
    """The lattice of points given in units of the Gaussian's standard deviation.

    `filter` of it approximates sum_j exp(-|f_i - f_j|^2 / 2) v_j up to a constant factor, which depends on d only.

    Args:
        features: float32 [d, N], at least one point.

    Raises:
        UserError: points so far apart that their corners cannot be told from each other or numbered.

    >>> lattice = build_lattice(torch.tensor([[0.0, 0.1, 50.0]]))
    >>> found = lattice.filter(torch.tensor([[1.0], [0.0], [1.0]]))
    >>> bool(found[1] > found[2] / 2)  # the first is near, the third far
    True
    """
    dims, count = features.shape
    furthest = float(features.abs().amax())
    if not furthest <= FURTHEST:
        raise UserError(
            f"a point is {furthest:g} sigmas from 0; expected at most {FURTHEST:g}: larger sigmas"
        )
    base, rank, weights = _simplices(features)
    # Coordinates of one corner are equal modulo d + 1, so its quotients and the remainder name it: a smaller number.
    low = base.amin(dim=1) - 2
    extent = base.amax(dim=1) - low + 3
    step = [1] * (dims + 1)
    for axis in range(dims - 2, -1, -1):
        step[axis] = step[axis + 1] * int(extent[axis + 1])
    step[dims] = 0
    remainder = step[0] * int(extent[0])
    if remainder * (dims + 1) >= 2**62:
        raise UserError(f"the points spread over {extent.tolist()} corners, too far; expected larger sigmas")
    steps = torch.tensor(step, device=features.device)
    key = ((base - low[:, None]) * steps[:dims, None]).sum(dim=0)
    # From one corner to the next the remainder grows by 1, and the coordinate of one rank drops by d + 1: its
    # quotient by 1.
    drop = torch.zeros_like(rank).scatter_(0, rank, steps[:, None].expand_as(rank))
    keys = torch.empty(count, dims + 1, dtype=torch.int64, device=features.device)
    keys[:, 0] = key
    for corner in range(1, dims + 1):
        keys[:, corner] = keys[:, corner - 1] + remainder - drop[dims + 1 - corner]
    return _joined(keys, weights, step, remainder)


def _simplices(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The simplex of each point [d, N], and where the point lies in it.

    Sections 3.2 and 3.3 of the paper: the nearest point whose coordinates are multiples of d + 1, corrected to
    lie in the plane, and the order of the differences from it.

    Returns:
        int64 [d, N], the coordinates of the corner with remainder 0 over d + 1, the last one left out; int64
        [d + 1, N], the rank of each coordinate's difference, 0 the largest; float32 [N, d + 1], weights.
    """
    dims, count = features.shape
    size = dims + 1
    place = torch.empty(size, count, device=features.device)
    total = torch.zeros(count, device=features.device)
    # The scale makes the blur's variance, with splat's and slice's, that of a unit Gaussian. Colours are whole numbers,
    # so points on the border of simplices are common, and which corners they touch hangs on the last bit: products and
    # sums are in the order of the authors' program, in single precision.
    deviation = float(torch.tensor((2 / 3) ** 0.5 * size))
    for axis in range(dims, 0, -1):
        scaled = features[axis - 1] * (1 / (axis * (axis + 1)) ** 0.5 * deviation)
        place[axis] = total - axis * scaled
        total = total + scaled
    place[0] = total

    inverse = float(torch.tensor(1.0) / size)
    quotient = (place * inverse).round_()
    difference = place - quotient * size
    # Bytes, and comparisons read as bytes, take an eighth of the time of whole words.
    rank = torch.zeros(size, count, dtype=torch.int8, device=features.device)
    for i in range(size):
        for j in range(i + 1, size):
            less = (difference[i] < difference[j]).view(torch.int8)
            rank[i].add_(less)
            rank[j].add_(1 - less)
    rank += quotient.sum(dim=0).to(torch.int8)
    wrap = (rank < 0).view(torch.int8) - (rank > dims).view(torch.int8)
    rank += wrap * size
    quotient += wrap
    difference = place.sub_(quotient * size).mul_(inverse)
    ranks = rank.long()
    ordered = torch.empty_like(difference).scatter_(0, ranks, difference).flip(0)
    weights = torch.empty(count, size, device=features.device)
    weights[:, 0] = ordered[0] + 1 - ordered[dims]
    weights[:, 1:] = (ordered[1:] - ordered[:-1]).T
    return quotient[:dims].long(), ranks, weights


def _joined(keys: torch.Tensor, weights: torch.Tensor, step: list[int], remainder: int) -> Lattice:
    """Number the distinct keys [N, d + 1], and find each one's neighbours."""
    count, size = keys.shape
    if remainder * size < 2**31:  # sorts in half the time
        keys = keys.to(torch.int32)
    ordered, order = keys.flatten().sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=first[1:])
    number = first.cumsum(0, dtype=torch.int32).sub_(1)
    starts = first.nonzero().squeeze(1)
    return Lattice(
        splat=Sums(
            rows=order.to(torch.int32).div_(size, rounding_mode="floor"),
            weights=weights.flatten().index_select(0, order),
            starts=starts.to(torch.int32),
        ),
        blurs=_blurs(ordered[starts].long(), step, remainder),
        slice=Sums(
            rows=torch.empty_like(number).scatter_(0, order, number),
            weights=weights.flatten(),
            starts=torch.arange(0, count * size, size, dtype=torch.int32, device=keys.device),
        ),
    )


def _blurs(known: torch.Tensor, step: list[int], remainder: int) -> tuple[Sums, ...]:
    """Along each axis the corner itself and half of its two neighbours, where there are such corners.

    A neighbour differs by 1 in all coordinates but one, which keeps the sum at 0.
    """
    size, count = len(step), len(known)
    # With the remainder at its end, + 1 on all coordinates goes round to remainder 0 of the next quotients.
    upward = known + torch.where(
        known < (size - 1) * remainder, remainder, sum(step) - (size - 1) * remainder
    )
    own = torch.arange(count, device=known.device, dtype=torch.int32)
    starts = own * 3
    found = []
    for axis in range(size):
        target = upward - step[axis]
        at = torch.searchsorted(known, target).clamp_(max=count - 1)
        below = (known[at] == target).nonzero().squeeze(1)
        above = at[below]
        rows = own[:, None].repeat(1, 3)
        weights = torch.zeros(count, 3, device=known.device)
        weights[:, 0] = 1
        rows[below, 1], rows[above, 2] = above.to(torch.int32), below.to(torch.int32)
        weights[below, 1] = weights[above, 2] = 0.5
        found.append(Sums(rows=rows.flatten(), weights=weights.flatten(), starts=starts))
    return tuple(found)
