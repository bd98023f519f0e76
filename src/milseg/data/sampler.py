"""Which bags each step sees; keyed by seed and epoch, so that any step can be found again by itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import torch

from milseg.errors import UserError

WINDOW = 4  # shards whose bags are shuffled together, and which are read at the same time


def mixed(*numbers: int) -> int:
    """One 63-bit seed from several numbers (multiply and xor-shift, as splitmix64 does)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 27
    return state >> 1


def generator(seed: int, number: int, *, stream: int) -> torch.Generator:
    """Random numbers keyed by a seed, a number such as an epoch, and what they are for."""
    return torch.Generator().manual_seed(mixed(seed, stream, number))


def epoch_windows(
    groups: Sequence[int], *, seed: int, epoch: int, window: int = WINDOW
) -> list[tuple[int, ...]]:
    """Which groups an epoch reads together, in the order it reads them."""
    order = torch.randperm(len(groups), generator=generator(seed, epoch, stream=0)).tolist()
    return [tuple(order[i : i + window]) for i in range(0, len(order), window)]


def next_window(groups: Sequence[int], *, seed: int, position: int, window: int = WINDOW) -> tuple[int, ...]:
    """The groups that are read next, after those with the bag at `position` of the run; () where there is one window.

    >>> epoch_windows((2, 2, 2), seed=0, epoch=0, window=1)
    [(1,), (0,), (2,)]
    >>> next_window((2, 2, 2), seed=0, position=3, window=1)
    (2,)
    """
    if len(groups) <= window:
        return ()
    epoch, place = divmod(position, sum(groups))
    windows = epoch_windows(groups, seed=seed, epoch=epoch, window=window)
    ends = list(accumulate(sum(groups[group] for group in together) for together in windows))
    number = next(number for number, end in enumerate(ends) if place < end)
    if number + 1 < len(windows):
        return windows[number + 1]
    return epoch_windows(groups, seed=seed, epoch=epoch + 1, window=window)[0]


def epoch_order(
    count: int, *, seed: int, epoch: int, groups: Sequence[int] | None = None, window: int = WINDOW
) -> list[int]:
    """A permutation of `count` bags: the order of one epoch.

    Args:
        count: how many bags there are.
        seed, epoch: the same ones give the same order.
        groups: how many bags lie in each shard, one shard after the other. The shards are permuted, and bags are
            shuffled among `window` shards at a time, so that a disk or an object store is read nearly in sequence.
            None, or no more groups than a window: all bags are shuffled together, in the same way for both.

    Returns:
        Each of 0 to count - 1 once.

    Raises:
        UserError: the groups do not add up to `count`.

    >>> epoch_order(6, seed=0, epoch=0, groups=(2, 2, 2), window=1)
    [3, 2, 1, 0, 4, 5]
    >>> epoch_order(6, seed=0, epoch=0, groups=(3, 3)) == epoch_order(6, seed=0, epoch=0)
    True
    """
    if groups is not None and sum(groups) != count:
        raise UserError(f"groups of {sum(groups):,} bags in all for {count:,} bags")
    if groups is None or len(groups) <= window:
        everything: list[int] = torch.randperm(count, generator=generator(seed, epoch, stream=0)).tolist()
        return everything
    starts = [0, *accumulate(groups)]
    order: list[int] = []
    for number, together in enumerate(epoch_windows(groups, seed=seed, epoch=epoch, window=window)):
        places = [place for group in together for place in range(starts[group], starts[group + 1])]
        key = generator(mixed(seed, epoch), number, stream=3)
        order += [places[i] for i in torch.randperm(len(places), generator=key).tolist()]
    return order


@lru_cache(maxsize=4)
def _cached_order(count: int, seed: int, epoch: int, groups: tuple[int, ...] | None) -> list[int]:
    return epoch_order(count, seed=seed, epoch=epoch, groups=groups)


def bag_at(position: int, count: int, *, seed: int, groups: tuple[int, ...] | None = None) -> int:
    """Which of `count` bags is the one at `position` of a run; epochs are laid end to end.

    >>> sorted(bag_at(position, 3, seed=0) for position in range(3, 6))
    [0, 1, 2]
    """
    epoch, place = divmod(position, count)
    return _cached_order(count, seed, epoch, groups)[place]


def batch_at(
    step: int, count: int, batch_size: int, *, seed: int, groups: tuple[int, ...] | None = None
) -> list[int]:
    """Which of `count` bags step `step` sees; a batch may span two epochs.

    Args:
        groups: how many bags lie in each shard; bags of one shard are then near each other (`epoch_order`).
    """
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [bag_at(position, count, seed=seed, groups=groups) for position in positions]
