"""Optimizers and learning rate schedules by name; a new one is one function and one row.

Each name may have options in parentheses, as in `sgd(nesterov=true)` or `polynomial(power=0.9)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from milseg.config import TrainConfig
from milseg.errors import UserError, unknown_name
from milseg.utils.call_syntax import check_settings, parse_call

if TYPE_CHECKING:
    import torch
    from torch import nn

    from milseg.models.fcn import FCN

BIAS_RATE = 2.0  # times the rate of weights (paper, "Experiments")

Groups = list[dict[str, Any]]


class Row(NamedTuple):
    """An optimizer or a schedule.

    Attributes:
        function: (groups, config, *, options) -> optimizer; or (progress, *, options) -> factor of the learning rate.
        about: one line for listings.
        limits: the lowest and highest value of an option.
    """

    function: Callable[..., Any]
    about: str
    limits: Mapping[str, tuple[float, float]] = {}


def _sgd(groups: Groups, config: TrainConfig, *, nesterov: bool = False) -> torch.optim.Optimizer:
    import torch  # here, so that `milseg list` reads the table without it

    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov)


def _adam_family(name: str) -> Callable[..., torch.optim.Optimizer]:
    def build(
        groups: Groups, config: TrainConfig, *, beta2: float = 0.999, eps: float = 1e-8
    ) -> torch.optim.Optimizer:
        import torch

        kind: Any = getattr(torch.optim, name)
        optimizer: torch.optim.Optimizer = kind(
            groups, lr=config.learning_rate, betas=(config.momentum, beta2), eps=eps
        )
        return optimizer

    return build


def _rmsprop(
    groups: Groups, config: TrainConfig, *, alpha: float = 0.99, eps: float = 1e-8
) -> torch.optim.Optimizer:
    import torch

    return torch.optim.RMSprop(
        groups, lr=config.learning_rate, momentum=config.momentum, alpha=alpha, eps=eps
    )


BETWEEN_0_AND_1 = (0.0, 1 - 1e-6)
ADAM = {"beta2": BETWEEN_0_AND_1, "eps": (1e-16, 1.0)}
# `momentum` of the settings is SGD's and RMSprop's momentum, and the first beta of Adam and its relatives.
OPTIMIZERS: dict[str, Row] = {
    "sgd": Row(_sgd, "stochastic gradient descent with momentum (the paper)"),
    "adamw": Row(_adam_family("AdamW"), "Adam with decoupled weight decay", ADAM),
    "adam": Row(_adam_family("Adam"), "steps by the gradient's first and second moment", ADAM),
    "nadam": Row(_adam_family("NAdam"), "Adam with Nesterov momentum", ADAM),
    "radam": Row(_adam_family("RAdam"), "Adam with its variance rectified in the first steps", ADAM),
    "adamax": Row(_adam_family("Adamax"), "Adam by the infinity norm", ADAM),
    "rmsprop": Row(
        _rmsprop,
        "steps by the root mean square of the gradient",
        {"alpha": BETWEEN_0_AND_1, "eps": (1e-16, 1.0)},
    ),
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
    return float(factor ** int(progress * parts))


# The factor of the learning rate by how much of the run is done: 0 at the first step, below 1 at the last.
SCHEDULES: dict[str, Row] = {
    "constant": Row(_constant, "the same rate in all steps"),
    "linear": Row(_linear, "straight down to 0"),
    "cosine": Row(_cosine, "down to `end` as half a cosine", {"end": (0.0, 1.0)}),
    "polynomial": Row(
        _polynomial, "down to `end` by a power of what is left", {"power": (0.01, 10.0), "end": (0.0, 1.0)}
    ),
    "exponential": Row(_exponential, "down to `end` by the same factor in each step", {"end": (1e-9, 1.0)}),
    "step": Row(
        _step, "`factor` times as high in each of `parts`", {"parts": (1, 1000), "factor": (1e-9, 1.0)}
    ),
}


def find_optimizer(text: str) -> Callable[[Groups, TrainConfig], torch.optim.Optimizer]:
    """The optimizer of that name, its options set.

    Raises:
        UserError: no such optimizer, or an option that it does not have or not of that value.
    """
    return _found("optimizer", text, OPTIMIZERS)


def find_schedule(text: str) -> Callable[[float], float]:
    """The schedule of that name, its options set.

    Raises:
        UserError: no such schedule, or an option that it does not have or not of that value.
    """
    return _found("schedule", text, SCHEDULES)


def _found(kind: str, text: str, table: dict[str, Row]) -> Callable[..., Any]:
    name, settings = parse_call(text)
    if name not in table:
        raise unknown_name(kind, name, table)
    row = table[name]
    options = check_settings(kind, name, settings, row.function)
    for option, (low, high) in row.limits.items():
        if option in options and not low <= options[option] <= high:
            raise UserError(f"{kind} {name}: {option} is {options[option]}; expected {low:g} to {high:g}")
    return partial(row.function, **options)


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
        UserError: no such optimizer, or an option that it does not have or not of that value.
    """
    return find_optimizer(config.optimizer)(groups, config)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
