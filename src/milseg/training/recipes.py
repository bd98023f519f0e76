"""How each backbone is trained: named settings, each with where its numbers come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from milseg.config import InferenceConfig, TrainConfig
from milseg.errors import unknown_name
from milseg.models.backbones import backbone_row


@dataclass(frozen=True, kw_only=True)
class Table1Settings:
    """How a backbone is trained on VOC.

    Attributes:
        mil: MIL-FCN.
        oracle_learning_rate: the oracle's own; everything else is as for MIL-FCN.
        output_stride: pixels a place.
        score_scale: multiplies the transferred rows (see `VocOptions`).
        note: where the numbers come from.
    """

    mil: TrainConfig
    oracle_learning_rate: float
    output_stride: int
    score_scale: float = 1.0
    note: str


def paper_recipe() -> Table1Settings:
    """The paper's setting ("Experiments"): SGD, learning rate 1e-4, momentum 0.9, weight decay 5e-4, 10,000
    steps.

    Command: `milseg reproduce voc --root VOCDIR`. Paper: 25.05 mean IU on VOC 2011 val. Not measured here:
    VGG-16's weights are a download of 528 MB.
    """
    return Table1Settings(
        mil=TrainConfig(),
        oracle_learning_rate=1e-4,
        output_stride=32,
        note="the paper's setting (learning rate 1e-4)",
    )


def mobilenet_recipe() -> Table1Settings:
    """MobileNetV2: rows at 0.3 of their size, the score layer at 10 times the body's rate, 150 steps of 16.

    Command: `milseg reproduce voc --root VOCDIR --tags tags.csv --classes cat,cow,dog,horse,person,sheep --backbone
    mobilenet_v2 --weights FILE`. The README's table has the figures.
    """
    return Table1Settings(
        mil=TrainConfig(
            max_steps=150, batch_size=16, learning_rate=3e-5, score_rate=10.0, schedule="linear", dropout=True
        ),
        oracle_learning_rate=1e-3,
        output_stride=16,
        score_scale=0.3,
        note="tried on validation masks: four settings of MIL-FCN's rates and row scale, two rates of the oracle",
    )


def squeezenet_recipe() -> Table1Settings:
    """SqueezeNet: rows at 0.02 of their size, as its scores are eight times MobileNetV2's (docs/squeezenet.md)."""
    return Table1Settings(
        mil=TrainConfig(max_steps=150, batch_size=16, learning_rate=1e-5, score_rate=0.3, schedule="linear"),
        oracle_learning_rate=1e-4,
        output_stride=16,
        score_scale=0.02,
        note="tried on validation masks: four settings of MIL-FCN's rates and row scale, two rates of the oracle",
    )


RECIPES: dict[str, Table1Settings] = {
    "vgg16": paper_recipe(),
    "mobilenet_v2": mobilenet_recipe(),
    "squeezenet1_0": squeezenet_recipe(),
}


def recipe_for(backbone: str) -> Table1Settings:
    """The backbone's recipe; one without its own takes the paper's at its network's own stride."""
    row = backbone_row(backbone)
    if backbone in RECIPES:
        return RECIPES[backbone]
    paper = paper_recipe()
    return Table1Settings(
        mil=paper.mil,
        oracle_learning_rate=paper.oracle_learning_rate,
        output_stride=row.strides[0],
        note="the paper's setting for VGG-16, not tuned for this network",
    )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How `milseg train` trains: a rule first, then rounds on one's own masks.

    Attributes:
        stages: the rule's training, then one for each round; later ones go on from the weights before.
        own: how the masks of a round are made, with the tags known.
        sure: the least probability of a pixel of such a mask; see `milseg.training.pseudo_labels`.
        inference: how the trained network's maps become masks.
        output_stride, score_scale, note: as in `Table1Settings`.
    """

    stages: tuple[TrainConfig, ...]
    own: InferenceConfig = field(default_factory=InferenceConfig)
    sure: float = 0.5
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    output_stride: int
    score_scale: float
    note: str

    @property
    def steps(self) -> int:
        """Of all stages together."""
        return sum(stage.max_steps for stage in self.stages)

    def with_steps(self, total: int) -> Recipe:
        """The same with so many steps in all, each stage its share."""
        if len(self.stages) == 1:
            return replace(self, stages=(replace(self.stages[0], max_steps=total),))
        shares = [stage.max_steps * total // self.steps for stage in self.stages]
        shares[0] += total - sum(shares)
        pairs = zip(self.stages, shares, strict=True)
        return replace(self, stages=tuple(replace(stage, max_steps=n) for stage, n in pairs if n))


def paper_training(backbone: str) -> Recipe:
    """The paper's rule alone, its maps interpolated: `milseg train ... --recipe paper`."""
    # A backbone without a recipe of its own takes MobileNetV2's rates, which suit networks with batch norm.
    recipe = RECIPES[backbone] if backbone in RECIPES else RECIPES["mobilenet_v2"]
    return Recipe(
        stages=(recipe.mil,),
        output_stride=recipe_for(backbone).output_stride,
        score_scale=recipe.score_scale,
        note=recipe.note,
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
    flip=True,
)
# As the CRF's authors set it but for the width in colour (13 there), which was tried on validation masks; at half the
# photo's size, with half as many iterations, for speed.
REFINE = "crf(iterations=5,scale=2,bilateral_sigma_rgb=8)"
VIEWS = (0.75, 1.0, 1.5)
WALK = 2  # steps among places that look alike


# Networks that no norm ends: their features are of any size (docs/squeezenet.md).
UNNORMALISED = ("vgg16", "squeezenet1_0")


def _pooled(backbone: str) -> TrainConfig:
    return replace(POOLED, standardize_features=backbone in UNNORMALISED)


def fast_training(backbone: str) -> Recipe:
    """Weighted pooling, several views, walk, CRF: minutes on two cores. `milseg train ... --recipe fast`.

    docs/masks-worth-using.md has the figures of each step.
    """
    strides = backbone_row(backbone).strides
    return Recipe(
        stages=(_pooled(backbone),),
        own=InferenceConfig(scales=VIEWS, flip=True, random_walk=WALK, refine=REFINE, refine_side=320),
        inference=InferenceConfig(scales=VIEWS, flip=True, random_walk=WALK, refine=REFINE),
        output_stride=16 if 16 in strides else strides[0],
        score_scale=RECIPES[backbone].score_scale if backbone in RECIPES else 0.3,
        note="tried with MobileNetV2 on validation masks of six classes of animals; other networks take it over",
    )


def best_training(backbone: str) -> Recipe:
    """More steps of `fast`, then two rounds on one's own masks: about an hour on two cores. The default.

    docs/masks-worth-using.md has the figures of each step.
    """
    pooled = _pooled(backbone)
    own = replace(pooled, max_steps=500, mask_weight=1.0, rule_weight=0.5, zoom=1.5)
    stages = (replace(pooled, max_steps=800), own, replace(own, max_steps=300))
    return replace(fast_training(backbone), stages=stages)


TRAIN_RECIPES: dict[str, Callable[[str], Recipe]] = {
    "paper": paper_training,
    "fast": fast_training,
    "best": best_training,
}


def find_recipe(name: str, backbone: str) -> Recipe:
    """The recipe of that name for a backbone.

    Raises:
        UserError: no such recipe or backbone.
    """
    backbone_row(backbone)
    if name not in TRAIN_RECIPES:
        raise unknown_name("recipe", name, TRAIN_RECIPES)
    return TRAIN_RECIPES[name](backbone)
