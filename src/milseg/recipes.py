"""How each backbone is trained: named settings, each with where its numbers come from."""

from __future__ import annotations

from dataclasses import dataclass

from milseg.models.backbones import backbone_row
from milseg.options import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
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


def paper_recipe() -> Recipe:
    """The paper's setting ("Experiments"): SGD, learning rate 1e-4, momentum 0.9, weight decay 5e-4, 10,000
    steps.

    Command: `milseg reproduce voc --root VOCDIR`. Paper: 25.05 mean IU on VOC 2011 val. Not measured here:
    VGG-16's weights are a download of 528 MB.
    """
    return Recipe(
        mil=TrainConfig(),
        oracle_learning_rate=1e-4,
        output_stride=32,
        note="the paper's setting (learning rate 1e-4)",
    )


def mobilenet_recipe() -> Recipe:
    """MobileNetV2: rows at 0.3 of their size, the score layer at 10 times the body's rate, 150 steps of 16.

    Command: `milseg reproduce voc --root VOCDIR --tags tags.csv --classes cat,cow,dog,horse,person,sheep --backbone
    mobilenet_v2 --weights FILE`. The README's table has the figures.
    """
    return Recipe(
        mil=TrainConfig(
            max_steps=150, batch_size=16, learning_rate=3e-5, score_rate=10.0, schedule="linear", dropout=True
        ),
        oracle_learning_rate=1e-3,
        output_stride=16,
        score_scale=0.3,
        note="tried on validation masks: four settings of MIL-FCN's rates and row scale, two rates of the oracle",
    )


def squeezenet_recipe() -> Recipe:
    """SqueezeNet: rows at 0.02 of their size, as its scores are eight times MobileNetV2's (docs/squeezenet.md)."""
    return Recipe(
        mil=TrainConfig(max_steps=150, batch_size=16, learning_rate=1e-5, score_rate=0.3, schedule="linear"),
        oracle_learning_rate=1e-4,
        output_stride=16,
        score_scale=0.02,
        note="tried on validation masks: four settings of MIL-FCN's rates and row scale, two rates of the oracle",
    )


RECIPES: dict[str, Recipe] = {
    "vgg16": paper_recipe(),
    "mobilenet_v2": mobilenet_recipe(),
    "squeezenet1_0": squeezenet_recipe(),
}


def recipe_for(backbone: str) -> Recipe:
    """The backbone's recipe; one without its own takes the paper's at its network's own stride."""
    row = backbone_row(backbone)
    if backbone in RECIPES:
        return RECIPES[backbone]
    paper = paper_recipe()
    return Recipe(
        mil=paper.mil,
        oracle_learning_rate=paper.oracle_learning_rate,
        output_stride=row.strides[0],
        note="the paper's setting for VGG-16, not tuned for this network",
    )
