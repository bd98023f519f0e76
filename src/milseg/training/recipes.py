"""The table of recipes of `milseg train`: named settings, each with where its numbers come from; loads nothing heavy.

A recipe is one function and one row of `RECIPES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from milseg.config import InferenceConfig, TrainConfig
from milseg.errors import unknown_name
from milseg.models.backbone_table import backbone_row
from milseg.training.table1_settings import TABLE1_SETTINGS, table1_settings


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How `milseg train` trains: a rule first, then rounds of self-training on pseudo-labels.

    Attributes:
        stages: the rule's training, then one for each round; later ones go on from the weights before.
        pseudo_label_inference: how the pseudo-labels of a round are made, with the tags known.
        min_confidence: the least probability of a pixel of a pseudo-label; see `milseg.training.pseudo_labels`.
        inference: how the trained network's maps become masks.
        output_stride: pixels a cell.
        score_scale: multiplies the transferred rows.
        note: where the numbers come from.
    """

    stages: tuple[TrainConfig, ...]
    pseudo_label_inference: InferenceConfig = field(default_factory=InferenceConfig)
    min_confidence: float = 0.5
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    output_stride: int
    score_scale: float
    note: str

    @property
    def steps(self) -> int:
        """The steps of all stages together."""
        return sum(stage.max_steps for stage in self.stages)

    def with_steps(self, total: int) -> Recipe:
        """Return the recipe with `total` steps, each stage its share."""
        if len(self.stages) == 1:
            return replace(self, stages=(replace(self.stages[0], max_steps=total),))
        shares = [stage.max_steps * total // self.steps for stage in self.stages]
        shares[0] += total - sum(shares)
        pairs = zip(self.stages, shares, strict=True)
        return replace(self, stages=tuple(replace(stage, max_steps=n) for stage, n in pairs if n))


def paper_training(backbone: str) -> Recipe:
    """Return the paper's rule alone, its maps interpolated: `milseg train ... --recipe paper`."""
    # Other backbones take MobileNetV2's rates, which suit networks with batch norm.
    settings = TABLE1_SETTINGS.get(backbone, TABLE1_SETTINGS["mobilenet_v2"])
    return Recipe(
        stages=(settings.mil,),
        output_stride=table1_settings(backbone).output_stride,
        score_scale=settings.score_scale,
        note=settings.note,
    )


POOLED = TrainConfig(
    rule="weighted-pooling",
    max_steps=250,
    batch_size=16,
    learning_rate=1e-3,
    score_rate=10.0,
    schedule="linear",
    warmup=20,
    max_gradient=10.0,
    frozen_stride=8,
    augment="flip",
)
# The CRF's authors' settings but for the width in colour (13 there), which was tried on validation masks; at half the
# photo's size, with half as many iterations, for speed.
REFINE = "crf(iterations=5,scale=2,bilateral_sigma_rgb=8)"
TTA_SCALES = (0.75, 1.0, 1.5)
SCALE = "scale(most=1.5)"  # of the photos in rounds, whose masks say what a window shows
RANDOM_WALK_STEPS = 2


# Networks without batch norm: their features are of any size (docs/squeezenet.md).
WITHOUT_BATCH_NORM = ("vgg16", "squeezenet1_0")


def _pooled(backbone: str) -> TrainConfig:
    return replace(POOLED, standardize_features=backbone in WITHOUT_BATCH_NORM)


def fast_training(backbone: str) -> Recipe:
    """Return weighted pooling with TTA, random walk and CRF: minutes on two cores. `milseg train ... --recipe fast`.

    docs/masks-worth-using.md has the figures of each step.
    """
    strides = backbone_row(backbone).strides
    inference = InferenceConfig(scales=TTA_SCALES, flip=True, random_walk=RANDOM_WALK_STEPS, refine=REFINE)
    return Recipe(
        stages=(_pooled(backbone),),
        pseudo_label_inference=replace(inference, refine_side=320),
        inference=inference,
        output_stride=16 if 16 in strides else strides[0],
        score_scale=TABLE1_SETTINGS[backbone].score_scale if backbone in TABLE1_SETTINGS else 0.3,
        note="tried with MobileNetV2 on validation masks of six classes of animals; other networks take it over",
    )


def best_training(backbone: str) -> Recipe:
    """Return more steps of `fast`, then two rounds on pseudo-labels: about an hour on two cores. The default.

    docs/masks-worth-using.md has the figures of each step.
    """
    pooled = _pooled(backbone)
    augment = f"flip,{SCALE}"
    on_masks = replace(pooled, max_steps=500, mask_weight=1.0, rule_weight=0.5, augment=augment)
    stages = (replace(pooled, max_steps=800), on_masks, replace(on_masks, max_steps=300))
    return replace(fast_training(backbone), stages=stages)


@dataclass(frozen=True, kw_only=True)
class RecipeRow:
    """One row of the table: the function backbone -> recipe, and one line for listings."""

    make: Callable[[str], Recipe]
    about: str


RECIPES: dict[str, RecipeRow] = {
    "paper": RecipeRow(make=paper_training, about="the paper's rule alone, its maps interpolated; minutes"),
    "fast": RecipeRow(
        make=fast_training,
        about="weighted pooling, test-time augmentation, random walk, CRF; minutes",
    ),
    "best": RecipeRow(
        make=best_training,
        about="fast with more steps and two rounds on pseudo-labels; about an hour on two cores; the default",
    ),
}


def find_recipe(name: str, backbone: str) -> Recipe:
    """Return the recipe of that name for a backbone.

    Raises:
        UserError: no such recipe or backbone.
    """
    backbone_row(backbone)
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name].make(backbone)
