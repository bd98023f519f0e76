"""How each backbone is trained for the paper's Table 1: the settings, and where each number comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from milseg.config import TrainConfig
from milseg.models.backbone_table import backbone_row


@dataclass(frozen=True, kw_only=True)
class Table1Settings:
    """How the two trained rows of the paper's Table 1 are trained with one backbone.

    Attributes:
        mil: of MIL-FCN.
        oracle_learning_rate: of the oracle, whose other settings are MIL-FCN's.
        output_stride: pixels a cell.
        score_scale: multiplies the transferred rows (see `VocOptions`).
        note: where the numbers come from.
    """

    mil: TrainConfig
    oracle_learning_rate: float
    output_stride: int
    score_scale: float = 1.0
    note: str


def paper_settings() -> Table1Settings:
    """Return the paper's settings: SGD, learning rate 1e-4, momentum 0.9, weight decay 5e-4, 10,000 steps.

    Command: `milseg reproduce voc --root VOCDIR`. Paper: 25.05 mean IU on VOC 2011 val. Not measured here:
    VGG-16's weights are a download of 528 MB.
    """
    return Table1Settings(
        mil=TrainConfig(),
        oracle_learning_rate=1e-4,
        output_stride=32,
        note="the paper's setting (learning rate 1e-4)",
    )


def mobilenet_settings() -> Table1Settings:
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


def squeezenet_settings() -> Table1Settings:
    """SqueezeNet: rows at 0.02 of their size, as its scores are eight times MobileNetV2's (docs/squeezenet.md)."""
    return Table1Settings(
        mil=TrainConfig(max_steps=150, batch_size=16, learning_rate=1e-5, score_rate=0.3, schedule="linear"),
        oracle_learning_rate=1e-4,
        output_stride=16,
        score_scale=0.02,
        note="tried on validation masks: four settings of MIL-FCN's rates and row scale, two rates of the oracle",
    )


TABLE1_SETTINGS: dict[str, Table1Settings] = {
    "vgg16": paper_settings(),
    "mobilenet_v2": mobilenet_settings(),
    "squeezenet1_0": squeezenet_settings(),
}


def table1_settings(backbone: str) -> Table1Settings:
    """Return the backbone's settings; other backbones take the paper's, at their network's own stride."""
    row = backbone_row(backbone)
    if backbone in TABLE1_SETTINGS:
        return TABLE1_SETTINGS[backbone]
    note = "the paper's setting for VGG-16, not tuned for this network"
    return replace(paper_settings(), output_stride=row.strides[0], note=note)
