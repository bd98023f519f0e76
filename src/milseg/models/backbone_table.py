"""The table of backbones; imports nothing heavy. `milseg.models.backbones` builds networks from its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from milseg.errors import unknown_name
from milseg.utils.registry import load_object

if TYPE_CHECKING:
    from torch import nn

# How a classifier gets from a map to one vector of logits; see `milseg.models.fcn.Classify`.
ClassifyBy = Literal["window", "features", "scores"]


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One row of the table.

    Attributes:
        where: "module:function" that makes the classifier with torchvision's own random start.
        parts: "module:function" that takes such a classifier apart (and over: it must not be used afterwards).
        score: name of its last layer, whose weight has a row for each class.
        strides: the output strides it has, its own first.
        return_layers: layers whose maps say which cells look alike (`milseg.refine.random_walk`): the ends of
            its later stages.
        classify_by: how it pools.
        published: "module:name" of torchvision's published weights; empty if there are none.
        note: for listings.
    """

    where: str
    parts: str
    score: str
    strides: tuple[int, ...]
    return_layers: tuple[str, ...]
    classify_by: ClassifyBy = "features"
    published: str = ""
    note: str = ""

    @property
    def about(self) -> str:
        """One line for listings."""
        strides = f"strides {', '.join(map(str, self.strides))}"
        return f"{strides}; {self.note}" if self.note else strides

    @property
    def weights(self) -> Any:
        """The published weights, a member of torchvision's enumeration, or None."""
        return load_object(self.published) if self.published else None

    def make(self, classes: int) -> nn.Module:
        """Return the classifier with so many classes."""
        build: Callable[..., nn.Module] = load_object(self.where)
        return build(num_classes=classes)


# The first published weights of each: later recipes (V2) train with other resolutions and softened labels.
BACKBONES: Mapping[str, Backbone] = {
    "vgg16": Backbone(
        where="torchvision.models:vgg16",
        parts="milseg.models.backbones:vgg_parts",
        score="classifier.6",
        strides=(32, 16, 8),
        return_layers=("15", "22", "29"),
        classify_by="window",
        published="torchvision.models:VGG16_Weights.IMAGENET1K_V1",
        note="the paper's network; 138 million weights",
    ),
    "squeezenet1_0": Backbone(
        where="torchvision.models:squeezenet1_0",
        parts="milseg.models.backbones:squeezenet_parts",
        score="classifier.1",
        strides=(16, 8),
        return_layers=("5", "10", "12"),
        classify_by="scores",
        published="torchvision.models:SqueezeNet1_0_Weights.IMAGENET1K_V1",
        note="smallest download, 5 MB; train with --score-scale below 1",
    ),
    "mobilenet_v2": Backbone(
        where="torchvision.models:mobilenet_v2",
        parts="milseg.models.backbones:mobilenet_parts",
        score="classifier.1",
        strides=(32, 16, 8),
        return_layers=("6", "13", "17"),
        published="torchvision.models:MobileNet_V2_Weights.IMAGENET1K_V1",
        note="the default on a CPU",
    ),
    "resnet18": Backbone(
        where="torchvision.models:resnet18",
        parts="milseg.models.backbones:resnet_parts",
        score="fc",
        strides=(32, 16, 8),
        return_layers=("layer2", "layer3", "layer4"),
        published="torchvision.models:ResNet18_Weights.IMAGENET1K_V1",
    ),
    "resnet50": Backbone(
        where="torchvision.models:resnet50",
        parts="milseg.models.backbones:resnet_parts",
        score="fc",
        strides=(32, 16, 8),
        return_layers=("layer2", "layer3", "layer4"),
        published="torchvision.models:ResNet50_Weights.IMAGENET1K_V1",
        note="the default on a GPU",
    ),
    "convnext_tiny": Backbone(
        where="torchvision.models:convnext_tiny",
        parts="milseg.models.backbones:convnext_parts",
        score="classifier.2",
        strides=(32, 16, 8),
        return_layers=("3", "5", "7"),
        published="torchvision.models:ConvNeXt_Tiny_Weights.IMAGENET1K_V1",
    ),
    "tiny": Backbone(
        where="milseg.models.tiny:Tiny",
        parts="milseg.models.backbones:tiny_parts",
        score="classifier",
        strides=(4, 2),
        return_layers=("11", "17", "20"),
        note="for tests and digits; no published weights",
    ),
}


def backbone_row(name: str) -> Backbone:
    """Return the table's row.

    Raises:
        UserError: no such backbone; it lists the known names.
    """
    if name not in BACKBONES:
        raise unknown_name("backbone", name, BACKBONES)
    return BACKBONES[name]
