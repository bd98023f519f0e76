"""Settings of `milseg check` and `milseg train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from milseg.config.configs import check_above_zero, check_least, check_seed, seconds_of
from milseg.config.source import SourceOptions
from milseg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CheckOptions(SourceOptions):
    """Look at photos and tags before training: counts, unreadable photos, tags that cannot be told apart, time.

    Attributes:
        mapping: YAML file from class names to ILSVRC categories.
        backbone: network whose training time is estimated.
        max_steps: steps that are estimated; none: those of the recipe best.
        max_pixels: larger photos are named, not decoded.
        device: auto, cpu, cuda or mps.
        json: print JSON in place of the report.
    """

    mapping: Path | None = None
    backbone: str = "mobilenet_v2"
    max_steps: int | None = None
    max_pixels: int = 100_000_000
    device: str = "auto"
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainOptions(SourceOptions):
    """Train on photos with tags; no mask is read. The result is a model folder for `milseg predict`.

    Attributes:
        out: the model folder.
        mapping: YAML file from class names to ILSVRC categories, for names that ILSVRC does not know.
        backbone: network to cast; auto takes resnet50 on a GPU and mobilenet_v2 elsewhere.
        weights: imagenet (torchvision's download), a .safetensors or .pth file in torchvision's layout, or none.
        output_stride: pixels a place: 32, 16 or 8; none takes the recipe's.
        vgg_padding: fc6 padding of VGG: same, or the original's pad100.
        score_scale: multiplies the transferred rows; none takes the recipe's.
        recipe: paper (its rule alone), fast, or best (with rounds on its own masks); none: best, and fast where a time
            budget is too short for it.
        rule: how to learn from tags: max (the paper), another rule's name, or package.module:function; options in
            parentheses.
        rounds: how often the network learns from its own masks after the rule; none takes the recipe's, if those masks
            show the tags.
        random_walk: steps of the random walk by affinity, in place of the recipe's; 0 for none.
        refine: what the masks are refined by: none, or a refiner's name; none given takes the recipe's, if it leaves
            the tags in the masks.
        frozen_stride: layers up to this output stride keep the classifier's weights; 0 trains all.
        max_steps: updates of the weights in all; none takes the recipe's.
        time_budget: train for about this long, such as 30m, 2h or 90s. A few trial steps say how many fit, one at
            least.
        batch_size: photos an update.
        learning_rate: of the body's weights.
        score_rate: times the learning rate, for the score layer.
        optimizer: sgd, adamw or another optimizer's name, options in parentheses; none takes the recipe's.
        momentum: of SGD; the first beta of AdamW.
        weight_decay: on weights, not on biases.
        schedule: of the learning rate: constant, linear, cosine or another name, options in parentheses.
        longest_side: larger photos are made this small, pixels; none: 320, and 512 on CUDA.
        augment: augmentations with their options, such as flip,scale(most=1.5),jitter; none given takes the recipe's,
            the word none leaves them out.
        hold_out: share of the photos kept from training, to select the best model by their tags.
        select_every: steps between selections; none: six in a run.
        checkpoint_every: steps between checkpoints.
        precision: of the network's sums: float32, bfloat16 or float16; weights and loss stay float32.
        accumulate: photos go through the network in so many pieces of the batch, to save memory.
        compile: compile the network with torch.compile first; pays in long runs on photos of one size.
        seed: of everything random.
        device: auto, cpu, cuda or mps.
        resume: go on where an earlier run into the same folder stopped.
        overwrite: start anew in a folder that already holds a run.
    """

    out: Path = Path("runs/train")
    mapping: Path | None = None
    backbone: str = "auto"
    weights: str = "imagenet"
    output_stride: int | None = None
    vgg_padding: str = "same"
    score_scale: float | None = None
    recipe: str | None = None
    rule: str | None = None
    rounds: int | None = None
    random_walk: int | None = None
    refine: str | None = None
    frozen_stride: int | None = None
    max_steps: int | None = None
    time_budget: str | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    score_rate: float | None = None
    optimizer: str | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    schedule: str | None = None
    longest_side: int | None = None
    augment: str | None = None
    hold_out: float = 0.1
    select_every: int | None = None
    checkpoint_every: int | None = None
    precision: str | None = None
    accumulate: int | None = None
    compile: bool = False
    seed: int = 0
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_least(self, max_steps=1, batch_size=1, select_every=1, checkpoint_every=1, accumulate=1)
        check_least(
            self, frozen_stride=0, random_walk=0, longest_side=16, momentum=0, weight_decay=0, hold_out=0
        )
        check_above_zero(self, "learning_rate", "score_rate", "score_scale")
        if self.hold_out >= 1:
            raise UserError(f"--hold-out {self.hold_out}: expected a share of the photos, from 0 to below 1")
        if self.rounds is not None and not 0 <= self.rounds <= 20:
            raise UserError(f"--rounds {self.rounds}: expected 0 to 20")
        if self.time_budget is not None:
            seconds_of(self.time_budget)
