"""Polygons that trace a mask along its pixels' edges, exactly; holes are joined to the outside by a cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from milseg.annotations.rle import Bools

EAST, SOUTH, WEST, NORTH = range(4)
# Of a step in each direction (x, y; y points down), and from it to the inside, which lies on its right.
_STEP = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])
_INWARD = np.array([[0, 1], [-1, 0], [0, -1], [1, 0]])

Points = NDArray[np.float64]


def polygons(mask: Bools, *, inset: float = 0.0) -> list[Points]:
    """The outline of each connected region (pixels that share a side), in the order of their first pixels.

    The outline runs along pixel edges, clockwise on the screen, with a point at every turn and nowhere else.
    A hole is reached by a cut: a horizontal line, gone both ways, from the hole's top left corner to whatever
    outline lies to its left. Filling a polygon by the even-odd rule at the pixels' centres gives the region
    back exactly.

    Args:
        mask: bool [H, W].
        inset: how far each side is moved inside, pixels, below 0.5. With a small one, programs that cut
            coordinates to whole pixels and then draw the border as well (Pillow, OpenCV) give the region back
            too, rather than one that is a pixel wider and higher.

    Returns:
        float64 [n, 2] each, (x, y) in pixels from the photo's top left corner; n >= 4.

    >>> polygons(np.array([[True, True]]))[0].tolist()
    [[0.0, 0.0], [2.0, 0.0], [2.0, 1.0], [0.0, 1.0]]
    """
    number, ys, xs, directions, following = _border(mask)
    seen = [False] * len(xs)
    outsides = []
    for start in range(len(xs)):
        if seen[start]:
            continue
        last = start
        seen[start] = True
        while not seen[following[last]]:
            last = following[last]
            seen[last] = True
        # In reading order an outline first goes along the top of its first pixel, a hole down its left side.
        if directions[start] == EAST:
            outsides.append(start)
            continue
        y, x = ys[start], xs[start]
        target = _left_of(mask, y, x)
        here = int(number[y, target].max())
        # here -> start ... last -> back at the hole's corner -> back here -> on as before
        corner, again = len(xs), len(xs) + 1
        ys += [y, y]
        xs += [x, target]
        directions += [WEST, directions[here]]
        following += [again, following[here]]
        following[last] = corner
        following[here], directions[here] = start, EAST
    return [_outline(start, ys, xs, directions, following, inset) for start in outsides]


def _border(
    mask: Bools,
) -> tuple[NDArray[np.int64], list[int], list[int], list[int], list[int]]:
    """The steps between inside and outside, the inside on their right, in reading order of where they begin.

    Returns:
        int64 [H + 1, W + 1, 4], the step from a pixel corner in a direction, or -1; y and x of each step's
        beginning, its direction, and the step that follows it.
    """
    padded = np.pad(mask, 1)
    above_left, above_right = padded[:-1, :-1], padded[:-1, 1:]
    below_left, below_right = padded[1:, :-1], padded[1:, 1:]
    exists = np.stack(
        [
            below_right & ~above_right,
            below_left & ~below_right,
            above_left & ~below_left,
            above_right & ~above_left,
        ],
        axis=-1,
    )
    ys, xs, directions = np.nonzero(exists)
    number = np.full(exists.shape, -1, dtype=np.int64)
    number[exists] = np.arange(ys.size)
    ends = number[ys + _STEP[directions, 1], xs + _STEP[directions, 0]]
    every = np.arange(ys.size)
    right, ahead, left = (ends[every, (directions + turn) % 4] for turn in (1, 0, 3))
    # Right first: where two regions touch at a corner only, each keeps to itself.
    following = np.where(right >= 0, right, np.where(ahead >= 0, ahead, left))
    return number, ys.tolist(), xs.tolist(), directions.tolist(), following.tolist()


def _left_of(mask: Bools, y: int, x: int) -> int:
    """Where the line from corner (x, y) to the left first meets an outline.

    The pixels on both sides of the line are inside up to there. Its end lies on one outline only, which began
    earlier in reading order, and no two cuts end in one place.
    """
    outside = np.flatnonzero(~(mask[y - 1, :x] & mask[y, :x]))
    return int(outside[-1]) + 1 if outside.size else 0


def _outline(
    start: int, ys: list[int], xs: list[int], directions: list[int], following: list[int], inset: float
) -> Points:
    steps = [start]
    while following[steps[-1]] != start:
        steps.append(following[steps[-1]])
    points = np.array([[xs[i], ys[i]] for i in steps], dtype=np.float64)
    leaving = np.array([directions[i] for i in steps])
    arriving = np.roll(leaving, 1)
    points += inset * (_INWARD[arriving] + _INWARD[leaving])
    corners: Points = points[arriving != leaving]
    return corners
