"""The permutohedral lattice: Gaussian filtering of values at scattered points, in time linear in their number.

Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010. Points
are embedded in the plane x_0 + ... + x_d = 0 of d + 1 dimensions (section 3.1); its lattice of integer vectors whose
coordinates all leave the same remainder by d + 1 cuts the plane into simplices. Each point's value is splat to the
d + 1 corners of its simplex by barycentric weights, the corners are blurred along each of the d + 1 axes by
[1/2, 1, 1/2], and the result is sliced at the points by the same weights.

Everything is a weighted sum of rows, so splat, blur and slice are each one `embedding_bag`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import embedding_bag


@dataclass(frozen=True, kw_only=True, eq=False)
class Lattice:
    """The corners that N points touch, M in all, and the weights between both.

    Attributes:
        corners: int32 [N, d + 1], the numbers of each point's corners.
        weights: float32 [N, d + 1], barycentric; each row sums to 1 before `scaled`.
        points: int32 [N (d + 1)], the same pairs corner by corner: the number of the point ...
        point_weights: float32 [N (d + 1)] ... its weight ...
        starts: int32 [M] ... and where each corner's points begin.
        neighbours: int32 [d + 1, M, 3], for each axis the corner itself and its two neighbours ...
        neighbour_weights: float32 [d + 1, M, 3] ... with 1, 1/2, 1/2; 0 where there is no such corner.
    """

    corners: torch.Tensor
    weights: torch.Tensor
    points: torch.Tensor
    point_weights: torch.Tensor
    starts: torch.Tensor
    neighbours: torch.Tensor
    neighbour_weights: torch.Tensor

    def filter(self, values: torch.Tensor) -> torch.Tensor:
        """Gaussian-filter float32 [N, C]; not normalised, see `build_lattice`."""
        found = embedding_bag(
            self.points, values, self.starts, mode="sum", per_sample_weights=self.point_weights
        )
        for corners, weights in zip(self.neighbours, self.neighbour_weights, strict=True):
            found = embedding_bag(corners, found, mode="sum", per_sample_weights=weights)
        return embedding_bag(self.corners, found, mode="sum", per_sample_weights=self.weights)

    def scaled(self, factor: torch.Tensor) -> Lattice:
        """The lattice that multiplies a point's value by `factor` [N] before and after filtering, at no cost."""
        return Lattice(
            corners=self.corners,
            weights=self.weights * factor[:, None],
            points=self.points,
            point_weights=self.point_weights * factor[self.points],
            starts=self.starts,
            neighbours=self.neighbours,
            neighbour_weights=self.neighbour_weights,
        )


def build_lattice(features: torch.Tensor) -> Lattice:
    """The lattice of points given in units of the Gaussian's standard deviation.

    `filter` of it approximates sum_j exp(-|f_i - f_j|^2 / 2) v_j up to a constant factor, which depends on d only.

    Args:
        features: float32 [d, N], at least one point.

    >>> lattice = build_lattice(torch.tensor([[0.0, 0.1, 50.0]]))
    >>> found = lattice.filter(torch.tensor([[1.0], [0.0], [1.0]]))
    >>> bool(found[1] > found[2] / 2)  # the first is near, the third far
    True
    """
    dims, count = features.shape
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
        raise ValueError("features that spread too far for 64-bit keys; expected them in standard deviations")
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
    place = torch.empty(dims + 1, count, device=features.device)
    total = torch.zeros(count, device=features.device)
    for axis in range(dims, 0, -1):
        # The scale makes the blur's variance, with splat's and slice's, that of a unit Gaussian.
        scaled = features[axis - 1] * ((2 / 3) ** 0.5 * (dims + 1) / (axis * (axis + 1)) ** 0.5)
        place[axis] = total - axis * scaled
        total = total + scaled
    place[0] = total

    quotient = (place / (dims + 1)).round_()
    difference = place.div_(dims + 1).sub_(quotient)
    rank = torch.zeros(dims + 1, count, dtype=torch.int32, device=features.device)
    for i in range(dims + 1):
        for j in range(i + 1, dims + 1):
            less = difference[i] < difference[j]
            rank[i] += less
            rank[j] += ~less
    rank += quotient.sum(dim=0).to(torch.int32)
    wrap = (rank < 0).to(torch.int32) - (rank > dims).to(torch.int32)
    rank += wrap * (dims + 1)
    quotient += wrap
    difference -= wrap
    ranks = rank.long()
    ordered = torch.empty_like(difference).scatter_(0, ranks, difference).flip(0)
    weights = torch.empty(count, dims + 1, device=features.device)
    weights[:, 0] = ordered[0] + 1 - ordered[dims]
    weights[:, 1:] = (ordered[1:] - ordered[:-1]).T
    return quotient[:dims].long(), ranks, weights


def _joined(keys: torch.Tensor, weights: torch.Tensor, step: list[int], remainder: int) -> Lattice:
    """Number the distinct keys [N, d + 1], and find each one's neighbours."""
    count, size = keys.shape
    ordered, order = keys.flatten().sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    torch.ne(ordered[1:], ordered[:-1], out=first[1:])
    numbers = torch.empty_like(order, dtype=torch.int32)
    numbers[order] = (first.cumsum(0) - 1).to(torch.int32)
    starts = first.nonzero().squeeze(1)
    return Lattice(
        corners=numbers.view(count, size),
        weights=weights,
        points=(order // size).to(torch.int32),
        point_weights=weights.flatten()[order],
        starts=starts.to(torch.int32),
        **_neighbours(ordered[starts], step, remainder),
    )


def _neighbours(known: torch.Tensor, step: list[int], remainder: int) -> dict[str, torch.Tensor]:
    """Corners one step away along each axis: all coordinates + 1 (or - 1), but for one that keeps the sum 0."""
    size = len(step)
    own = torch.arange(len(known), device=known.device)
    whole = sum(step)
    # With the remainder at its end, + 1 on all coordinates goes round to remainder 0 of the next quotient.
    ends = {1: known // remainder == size - 1, -1: known // remainder == 0}
    numbers, weights = [], []
    for axis in range(size):
        row, weight = [own], [torch.ones_like(own, dtype=torch.float32)]
        for sign in (1, -1):
            round_trip = sign * (whole - size * remainder)
            target = known + sign * (remainder - step[axis]) + torch.where(ends[sign], round_trip, 0)
            at = torch.searchsorted(known, target).clamp_(max=len(known) - 1)
            found = known[at] == target
            row.append(torch.where(found, at, 0))
            weight.append(found.to(torch.float32) / 2)
        numbers.append(torch.stack(row, dim=1).to(torch.int32))
        weights.append(torch.stack(weight, dim=1))
    return {"neighbours": torch.stack(numbers), "neighbour_weights": torch.stack(weights)}
