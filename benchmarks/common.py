"""What several benchmarks share: times of the wall and of the processor, sides in turn, photos made here."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from milseg.data.image import UInt8

HEIGHT, WIDTH = 375, 500


class Times(NamedTuple):
    """Seconds on the wall, and on the processor with all threads and finished child processes."""

    wall: float
    processor: float


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def timed(work: Callable[[], object]) -> Times:
    wall, processor = time.perf_counter(), processor_seconds()
    work()
    return Times(time.perf_counter() - wall, processor_seconds() - processor)


def in_turn(sides: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[Times]]:
    """The times of each side, one after the other in every round, so that other work meets them alike."""
    found: dict[str, list[Times]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, work in sides.items():
            found[name].append(timed(work))
    return found


def equal_pixels(one: Path | IO[bytes], other: Path | IO[bytes]) -> float:
    """The share of equal pixels of two masks' files."""
    with Image.open(one) as a, Image.open(other) as b:
        return float((np.asarray(a) == np.asarray(b)).mean())


def median_wall(times: list[Times]) -> float:
    return statistics.median(time.wall for time in times)


def ratios(slow: list[Times], quick: list[Times]) -> tuple[float, float]:
    """Medians over the rounds of how many times as long the slow side took: on the wall, on the processor."""
    pairs = list(zip(slow, quick, strict=True))
    return (
        statistics.median(a.wall / b.wall for a, b in pairs),
        statistics.median(a.processor / b.processor for a, b in pairs),
    )


def load() -> float:
    """How many processes wanted a processor in the last minute."""
    return round(os.getloadavg()[0], 1)


def made_photo(number: int, height: int = HEIGHT, width: int = WIDTH) -> UInt8:
    """Blocks and slopes of colour with camera noise, uint8 [height, width, 3]; another one for each number."""
    random = np.random.default_rng(number)
    blocks = random.integers(0, 256, (-(-height // 40), -(-width // 50), 3))
    photo = (
        np.kron(blocks, np.ones((40, 50, 1)))[:height, :width] + np.linspace(-40, 40, width)[None, :, None]
    )
    return (photo + random.normal(0, 8, photo.shape)).clip(0, 255).astype(np.uint8)


@torch.no_grad()
def fit_batch_norm(model: nn.Module, images: torch.Tensor) -> None:
    """Statistics of batch norm as these photos [B, 3, H, W] have them, so that random weights tell photos apart."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over what is seen
        norm.train()
    model(images)
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()
