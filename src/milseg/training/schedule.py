"""What each step of training sees: its learning rate, its bags, and how near; keyed by seed and position alone."""

from __future__ import annotations

import torch

from milseg.config import TrainConfig
from milseg.data.sampler import epoch_order, generator
from milseg.data.transforms import Zoom


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """The body's learning rate in step `step`, 0-based."""
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    if config.schedule == "linear":
        return rise * config.learning_rate * (1 - step / config.max_steps)
    return rise * config.learning_rate


def batch_at(
    step: int, count: int, config: TrainConfig, groups: tuple[int, ...] | None = None
) -> tuple[list[int], list[bool]]:
    """Which of `count` bags step `step` sees, and which of them mirrored.

    Epochs are permutations keyed by (seed, epoch), laid end to end; a batch may span two of them. With `groups`,
    bags that lie in one shard are near each other (`epoch_order`).
    """
    indices, flips = [], []
    for position in range(step * config.batch_size, (step + 1) * config.batch_size):
        epoch, place = divmod(position, count)
        indices.append(_permutation(config.seed, epoch, count, groups)[place])
        key = generator(config.seed, position, stream=1)
        flips.append(config.flip and bool(torch.randint(0, 2, (), generator=key)))
    return indices, flips


def zooms_at(step: int, config: TrainConfig) -> list[Zoom]:
    """How near step `step` sees each of its bags; sizes are as likely by factors, places evenly."""
    found = []
    for position in range(step * config.batch_size, (step + 1) * config.batch_size):
        size, down, across = torch.rand(3, generator=generator(config.seed, position, stream=4)).tolist()
        found.append(Zoom(config.zoom ** (2 * size - 1), down, across))
    return found


_PERMUTATIONS: dict[tuple[int, int, int, tuple[int, ...] | None], list[int]] = {}


def _permutation(seed: int, epoch: int, count: int, groups: tuple[int, ...] | None = None) -> list[int]:
    key = (seed, epoch, count, groups)
    if key not in _PERMUTATIONS:
        if len(_PERMUTATIONS) >= 4:
            _PERMUTATIONS.clear()
        _PERMUTATIONS[key] = epoch_order(count, seed=seed, epoch=epoch, groups=groups)
    return _PERMUTATIONS[key]
