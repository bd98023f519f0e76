"""How long training would take on this machine, from a few of its own steps."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from milseg.config import TrainConfig
from milseg.data.bags import BagSet
from milseg.distributed.collectives import slowest
from milseg.models.backbones import build_fcn
from milseg.training.recipes import Recipe
from milseg.training.trainer import fit

TRIAL_SECONDS = 8.0  # of timed steps, at least one
MOST_STEPS = 6
# A round looks at every photo from several views and refines it: about three times what the photo costs in a step.
PSEUDO_LABEL_COST = 3
# Steps vary with the sizes of photos, and what else a run does is not timed.
SPREAD = (0.9, 1.25)
BUSY_SHARE = 0.75


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How long training would take here, from a few real steps on its own first batches.

    Attributes:
        backbone, batch_size, steps, device: what was timed.
        rounds: rounds of self-training among the steps, each with its pseudo-labels.
        seconds_per_step: the median of the timed steps.
        seconds: (least, most) of the whole training.
        busy: what else the machine does, in words; None if it seems idle.
        trial_seconds: how long the trial took.
    """

    backbone: str
    batch_size: int
    steps: int
    rounds: int
    device: str
    seconds_per_step: float
    seconds: tuple[float, float]
    busy: str | None
    trial_seconds: float

    def text(self) -> str:
        """One or two sentences for people."""
        rounds = f", {self.rounds} of its rounds on pseudo-labels" * bool(self.rounds)
        low, high = map(duration, self.seconds)
        text = (
            f"Training {self.backbone} on {self.device}: {low if low == high else f'{low} to {high}'} for "
            f"{self.steps:,} step{'s' * (self.steps != 1)} of {self.batch_size} photos{rounds}; "
            f"{self.seconds_per_step:.2g} s a step"
        )
        return text if self.busy is None else f"{text}\n  {self.busy}: it takes less once that is over"


def estimate_training(
    bags: BagSet,
    *,
    recipe: Recipe,
    backbone: str,
    output_stride: int | None = None,
    device: torch.device | None = None,
) -> Estimate:
    """Train a random network for a few steps, drop it, and scale the time up.

    The first step also sets things up and is not counted. In several processes all take part, as in training.

    Raises:
        UserError: as `milseg.training.trainer.fit`; unknown backbone or stride.
    """
    device = device or torch.device("cpu")
    began = time.monotonic()
    config = replace(recipe.stages[0], checkpoint_every=MOST_STEPS + 1)
    model = build_fcn(backbone, len(bags.classes), output_stride=output_stride)
    times, share = _timed_steps(model, bags, replace(config, max_steps=2), device)
    more = min(MOST_STEPS, int(TRIAL_SECONDS / max(slowest(times[0]), 1e-3)))
    if more > 1:
        times, share = _timed_steps(model, bags, replace(config, max_steps=more), device)
    step = slowest(float(np.median(times)))
    busy = busy_words(share, threads=torch.get_num_threads()) if device.type == "cpu" else None
    work = recipe.steps + pseudo_label_steps(recipe, len(bags))
    quickest = min(times) * (max(0.1, share) if busy else 1.0)
    return Estimate(
        backbone=backbone,
        batch_size=config.batch_size,
        steps=recipe.steps,
        rounds=len(recipe.stages) - 1,
        device=device.type,
        seconds_per_step=step,
        seconds=(SPREAD[0] * quickest * work, SPREAD[1] * max(*times, step) * work),
        busy=busy,
        trial_seconds=time.monotonic() - began,
    )


def _timed_steps(
    model: torch.nn.Module, bags: BagSet, config: TrainConfig, device: torch.device
) -> tuple[Sequence[float], float]:
    """Seconds of each step but the first, and the share of its processors that this process got meanwhile."""
    ticks, processor = [], []

    def tick(step: int, loss: float) -> None:
        _wait(device)
        ticks.append(time.perf_counter())
        processor.append(time.process_time())

    fit(model, bags, config, device=device, progress=False, on_step=tick)  # type: ignore[arg-type]
    wall = ticks[-1] - ticks[0]
    share = (processor[-1] - processor[0]) / max(1e-9, wall * torch.get_num_threads())
    return np.diff(ticks).tolist(), share


def pseudo_label_steps(recipe: Recipe, photos: int) -> float:
    """How many training steps the pseudo-labels of all rounds take as long as."""
    return PSEUDO_LABEL_COST * (len(recipe.stages) - 1) * photos / recipe.stages[0].batch_size


def busy_words(share: float, *, threads: int, load: float | None = None) -> str | None:
    """Say that other programs keep the processors busy; None if they do not.

    Args:
        share: of its threads' time this process computed.
        load: programs that want a processor, on average over the last minute; None asks the system.

    >>> busy_words(0.4, threads=2, load=12.0)
    'The machine is busy: this got 40 % of its 2 processors (load average 12.0)'
    >>> busy_words(0.9, threads=2, load=2.1)
    """
    if share >= BUSY_SHARE:
        return None
    if load is None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float(threads + 1)
    if load <= threads:
        return None  # slow for another reason, such as a disk
    words = f"{100 * share:.0f} % of its {threads} processor{'s' * (threads != 1)}"
    return f"The machine is busy: this got {words} (load average {load:.1f})"


def duration(seconds: float) -> str:
    """
    >>> duration(42), duration(400), duration(9000)
    ('42 s', '7 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _wait(device: torch.device) -> None:
    """Until a device that works on its own is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
