"""Settings of the training loop and of the way from maps to masks, whichever command asks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, TypeVar

from milseg.config.fields import Limits, check_fields
from milseg.errors import UserError, unknown_name

READINGS = ("scores", "labels")
PRECISIONS = ("float32", "bfloat16", "float16")
# What a run had before there was a choice: its files do not say.
EARLIER = {"precision": "float32", "standardize_features": False, "optimizer": "sgd"}
# What a run may go on with otherwise than it began.
ROUNDING_ONLY = ("accumulate", "compile")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train; the defaults are the paper's for VGG-16 ("Experiments").

    Attributes:
        rule: a name from the table of rules, or one's own as package.module:function.
        max_steps: updates of the weights.
        batch_size: photos an update (the authors' later public code accumulates 20).
        learning_rate: of the body's weights; biases take twice this.
        score_rate: times the learning rate, for the score layer.
        optimizer: "sgd", "adamw" or another name of `milseg.training.optimizer`, options in parentheses.
        momentum: of SGD and RMSprop; the first beta of AdamW and its relatives.
        weight_decay: on weights, not on biases.
        standardize_features: let the score layer learn as if its features had mean 0 and deviation 1; for networks
            that no batch norm ends, see `milseg.training.feature_standardizer`.
        schedule: of the learning rate: "constant", "linear" (down to 0), "cosine" or another name of
            `milseg.training.optimizer`, options in parentheses.
        longest_side: larger photos are made this small while training, pixels; none keeps their own size.
        augment: augmentations of the photos with their options, such as "flip,scale(most=1.5),jitter"; see
            `milseg.data.transforms`. "none" for none.
        dropout: keep the classifier's dropout layers on.
        warmup: steps in which the learning rate rises from 0.
        max_gradient: longer gradients are made this long (norm over all weights); none leaves them.
        frozen_stride: layers up to this output stride keep the classifier's weights; 0 trains all.
        mask_weight: weight of the cross entropy to the bags' masks beside the rule's loss, as in a round of self-
            training; 0 for the rule alone, and then no mask is read.
        rule_weight: weight of the rule's loss.
        seed: of the order of photos, augmentations and dropout.
        checkpoint_every: steps between checkpoints.
        precision: float32, or bfloat16 or float16 for the network's sums; weights and loss stay float32.
        accumulate: the wide and the tall photos of a batch (of each process's part of it) go through the network in so
            many pieces each.
        compile: compile the network with torch.compile.
    """

    rule: str = "max"
    max_steps: int = 10_000
    batch_size: int = 20
    learning_rate: float = 1e-4
    score_rate: float = 1.0
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    standardize_features: bool = False
    schedule: str = "constant"
    longest_side: int | None = None
    augment: str = "none"
    dropout: bool = True
    warmup: int = 0
    max_gradient: float | None = None
    frozen_stride: int = 0
    mask_weight: float = 0.0
    rule_weight: float = 1.0
    seed: int = 0
    checkpoint_every: int = 200
    precision: str = "float32"
    accumulate: int = 1
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("warmup", "frozen_stride", "mask_weight", "rule_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum is {self.momentum}; expected 0 to below 1")
        if self.standardize_features and not self.optimizer.startswith("sgd"):
            raise UserError(
                f"standardize_features with the optimizer {self.optimizer}: its steps are those of sgd alone; choose "
                "sgd, or leave standardize_features out"
            )
        if self.max_gradient is not None and not self.max_gradient > 0:
            raise UserError(f"max_gradient is {self.max_gradient}; expected a number above 0, or none")
        for name in ("batch_size", "checkpoint_every", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.max_steps < 0:
            raise UserError(f"max_steps is {self.max_steps}; expected 0 or more")
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate is {self.learning_rate}; expected a number above 0")
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """How a photo becomes a mask; the defaults are the paper's: the network's own map, interpolated.

    Attributes:
        scales: sizes at which the network sees the photo, times its (limited) size; the maps are averaged.
        flip: also see it mirrored.
        prior: how strongly the photo's predicted tags weigh its map; 0 does not, 1 multiplies each class by its
            probability.
        random_walk: steps of a random walk among places that look alike to the network, before the refiner; 0 for none.
        refine: none, or a refiner with its options, such as crf or crf(iterations=5).
        refine_side: the refiner sees larger photos made this small, pixels.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    prior: float = 0.0
    random_walk: int = 0
    refine: str = "none"
    refine_side: int = 512

    LIMITS: ClassVar[Mapping[str, Limits]] = {
        "scales": Limits(least=0.1, most=8, entries=(1, 16)),
        "prior": Limits(least=0, most=10),
        "random_walk": Limits(least=0, most=100),
        "refine": Limits(length=(1, 500)),
        "refine_side": Limits(least=16, most=8192),
    }
    # Model folders that were written earlier stay readable.
    RENAMED: ClassVar[Mapping[str, str]] = {"walk": "random_walk"}

    def __post_init__(self) -> None:
        check_fields(self)


def check_least(options: object, **least: float) -> None:
    """Refuse numbers below the least, by the name that is typed; None is what was not given.

    Raises:
        UserError: names the option, the value and what was expected.
    """
    for name, bound in least.items():
        value = getattr(options, name)
        if value is not None and not value >= bound:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected {bound:g} or more")


def check_above_zero(options: object, *names: str) -> None:
    """Refuse numbers that are not above 0, as `check_least` does."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected a number above 0")


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: expected 0 to {2**32 - 1}")


def seconds_of(text: str) -> float:
    """Seconds of a duration such as 90s, 30m, 2h, 1h30m; a bare number is minutes.

    >>> seconds_of("1h30m"), seconds_of("45")
    (5400.0, 2700.0)
    """
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if (
        not parts
        or "".join(a + b for a, b in parts) != text.strip()
        or (len(parts) > 1 and "" in dict(parts).values())
    ):
        raise UserError(f"duration {text!r}: expected such as 90s, 30m or 1h30m")
    return sum(float(amount) * units[unit or "m"] for amount, unit in parts)


Options = TypeVar("Options")


def shared_settings(kind: type[Options], options: object, **changes: Any) -> Options:
    """Settings of one command from those of another: every field that both have, by name, and then the changes.

    >>> from pathlib import Path
    >>> from milseg.config import CompareOptions, EvaluateOptions
    >>> given = CompareOptions(source=Path("photos"), tags=Path("tags.csv"), split="train")
    >>> found = shared_settings(EvaluateOptions, given, split="val")
    >>> found.tags.name, found.split
    ('tags.csv', 'val')
    """
    return kind(**{**_common(kind, options), **changes})


def overridden_by(config: Options, options: object) -> Options:
    """The dataclass with those settings of a command that both have, by name, and that are not None."""
    return overridden(config, **_common(type(config), options))


def _common(kind: type[Any], options: object) -> dict[str, Any]:
    known = {field.name for field in fields(kind)}
    return {name: value for name, value in vars(options).items() if name in known}


def overridden(config: Options, **given: Any) -> Options:
    """The dataclass with those of the given values that are not None, for options that default to a recipe's.

    >>> overridden(TrainConfig(max_steps=5), max_steps=None, seed=3).max_steps
    5
    """
    known = {field.name for field in fields(config)}  # type: ignore[arg-type]
    assert set(given) <= known, set(given) - known
    return replace(config, **{key: value for key, value in given.items() if value is not None})  # type: ignore[type-var]
