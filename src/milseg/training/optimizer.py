"""Optimizers and learning rate schedules by name; a new one is one function and one row.

Each name may have options in parentheses, as in `sgd(nesterov=true)` or `polynomial(power=0.9)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

from milseg.config import TrainConfig
from milseg.errors import unknown_name
from milseg.models.fcn import FCN
from milseg.utils.call_syntax import check_settings, parse_call

BIAS_RATE = 2.0  # times the rate of weights (paper, "Experiments")

Groups = list[dict[str, Any]]
OptimizerBuilder = Callable[..., torch.optim.Optimizer]  # (groups, config, *, options)
Schedule = Callable[..., float]  # (progress, *, options)
Row = TypeVar("Row", bound=Callable[..., Any])


def _sgd(groups: Groups, config: TrainConfig, *, nesterov: bool = False) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov)


def _adam_family(kind: type[torch.optim.Optimizer]) -> OptimizerBuilder:
    def build(
        groups: Groups, config: TrainConfig, *, beta2: float = 0.999, eps: float = 1e-8
    ) -> torch.optim.Optimizer:
        return kind(groups, lr=config.learning_rate, betas=(config.momentum, beta2), eps=eps)  # type: ignore[call-arg]

    return build


def _rmsprop(
    groups: Groups, config: TrainConfig, *, alpha: float = 0.99, eps: float = 1e-8
) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(
        groups, lr=config.learning_rate, momentum=config.momentum, alpha=alpha, eps=eps
    )


# `momentum` of the settings is SGD's and RMSprop's momentum, and the first beta of Adam and its relatives.
OPTIMIZERS: dict[str, OptimizerBuilder] = {
    "sgd": _sgd,
    "adamw": _adam_family(torch.optim.AdamW),
    "adam": _adam_family(torch.optim.Adam),
    "nadam": _adam_family(torch.optim.NAdam),
    "radam": _adam_family(torch.optim.RAdam),
    "adamax": _adam_family(torch.optim.Adamax),
    "rmsprop": _rmsprop,
}


def _constant(progress: float) -> float:
    return 1.0


def _linear(progress: float) -> float:
    return 1 - progress


def _cosine(progress: float, *, end: float = 0.0) -> float:
    """Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts."""
    return end + (1 - end) * (1 + math.cos(math.pi * progress)) / 2


def _polynomial(progress: float, *, power: float = 0.9, end: float = 0.0) -> float:
    """As DeepLab trains (Chen et al. 2018, section 4.1)."""
    return end + float((1 - end) * (1 - progress) ** power)


def _exponential(progress: float, *, end: float = 0.01) -> float:
    return float(end**progress)


def _step(progress: float, *, parts: int = 3, factor: float = 0.1) -> float:
    """The run in `parts` of one length; each part's rate is `factor` times that of the one before."""
    return float(factor ** int(progress * parts))


# name -> the factor of the learning rate, by how much of the run is done: 0 at the first step, below 1 at the last.
SCHEDULES: dict[str, Schedule] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "polynomial": _polynomial,
    "exponential": _exponential,
    "step": _step,
}


def find_optimizer(text: str) -> OptimizerBuilder:
    """The optimizer of that name, its options set.

    Raises:
        UserError: no such optimizer, or options that it does not have.
    """
    return _found("optimizer", text, OPTIMIZERS)


def find_schedule(text: str) -> Schedule:
    """The schedule of that name, its options set.

    Raises:
        UserError: no such schedule, or options that it does not have.
    """
    return _found("schedule", text, SCHEDULES)


def _found(kind: str, text: str, table: dict[str, Row]) -> Row:
    name, settings = parse_call(text)
    if name not in table:
        raise unknown_name(kind, name, table)
    return partial(table[name], **check_settings(kind, name, settings, table[name]))  # type: ignore[return-value]


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """The learning rate of the body's weights in step `step`, 0-based."""
    rise = min(1.0, (step + 1) / config.warmup) if config.warmup else 1.0
    return rise * config.learning_rate * find_schedule(config.schedule)(step / config.max_steps)


def parameter_groups(model: FCN, config: TrainConfig) -> Groups:
    """The optimizer's groups: weights with decay; biases at twice the rate without; the score layer at its own rate.

    What has one dimension counts as a bias, a norm layer's scale too: the paper's network has none, and decay
    would pull it towards a layer that passes nothing on.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (parameter.ndim > 1, name.startswith("score_layer."))
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "factor": (1.0 if is_weight else BIAS_RATE) * (config.score_rate if is_score else 1.0),
            "weight_decay": config.weight_decay if is_weight else 0.0,
        }
        for (is_weight, is_score), parameters in groups.items()
    ]


def build_optimizer(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer that the settings name; each group's rate is the schedule's times its `factor`.

    Raises:
        UserError: no such optimizer, options that it does not have, or values that it refuses.
    """
    return find_optimizer(config.optimizer)(groups, config)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
