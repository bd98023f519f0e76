"""How long training would take on this machine, from a few real passes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from milseg.config import TrainConfig
from milseg.data.image import fit_size
from milseg.models.backbones import build_fcn
from milseg.models.fcn import freeze


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How long training would take here, from a few real steps on noise.

    Attributes:
        backbone, size, batch_size, steps, device: what was timed; size is (height, width).
        seconds_per_step: forward and backward.
        seconds: all steps.
    """

    backbone: str
    size: tuple[int, int]
    batch_size: int
    steps: int
    device: str
    seconds_per_step: float
    seconds: float


def estimate_training(
    classes: int,
    size: tuple[int, int],
    *,
    config: TrainConfig,
    backbone: str,
    output_stride: int | None = None,
    device: torch.device | None = None,
    probe: int = 2,
    repeats: int = 2,
) -> Estimate:
    """Time a few forward and backward passes on noise of the photos' size, and scale them up.

    Args:
        size: (height, width) of a typical photo, before `config.longest_side`.
        probe: photos in a timed batch at most; the whole batch is taken to be so many times longer.
        repeats: passes that are timed, 1 or more, after one that is not; the quickest counts.

    Raises:
        UserError: unknown backbone or stride.
    """
    device = device or torch.device("cpu")
    height, width = fit_size(*size, config.longest_side)
    count = min(config.batch_size, probe)
    model = build_fcn(backbone, classes, output_stride=output_stride).to(device)
    freeze(model, config.frozen_stride)
    images = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    times = []
    for _ in range(1 + repeats):
        _wait(device)
        start = time.perf_counter()
        # What a rule adds to the network's own work does not show beside it.
        loss = torch.logsumexp(model(images).flatten(1), dim=1).mean()
        torch.autograd.backward(loss)
        model.zero_grad(set_to_none=True)
        _wait(device)
        times.append(time.perf_counter() - start)
    # The first pass also sets things up.
    best = min(times[1:])
    step = best * config.batch_size / count
    return Estimate(
        backbone=backbone,
        size=(height, width),
        batch_size=config.batch_size,
        steps=config.max_steps,
        device=device.type,
        seconds_per_step=step,
        seconds=step * config.max_steps,
    )


def _wait(device: torch.device) -> None:
    """Until a device that works on its own is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
