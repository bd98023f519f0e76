"""`milseg list` and the names that each option takes, from the tables that do the work; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from milseg.annotations import FORMATS
from milseg.config import EXPORT_SUFFIXES, PRECISIONS, READINGS, ListOptions
from milseg.config.values import Choice
from milseg.data.source_table import SOURCES
from milseg.data.transform_table import TRANSFORMS
from milseg.models.backbone_table import BACKBONES
from milseg.refine import REFINERS
from milseg.rules import RULES
from milseg.training.optimizer import OPTIMIZERS, SCHEDULES
from milseg.training.recipes import RECIPES

# option -> the names it takes, which the command line checks before anything is read
CHOICES: dict[str, Choice] = {
    "backbone": Choice(kind="backbone", table=BACKBONES),
    "recipe": Choice(kind="recipe", table=RECIPES),
    "rule": Choice(kind="rule", table=RULES, calls=True),
    "rules": Choice(kind="rule", table=RULES, more=("cam",), calls=True),
    "refine": Choice(kind="refiner", table=REFINERS, more=("none",), calls=True),
    "kind": Choice(kind="kind", table=SOURCES),
    "format": Choice(
        kind="format", table=FORMATS, meant={"label-studio": "labelstudio", "label_studio": "labelstudio"}
    ),
    "precision": Choice(
        kind="precision", table=PRECISIONS, meant={"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    ),
    "optimizer": Choice(kind="optimizer", table=OPTIMIZERS, calls=True),
    "schedule": Choice(kind="schedule", table=SCHEDULES, calls=True),
    "augment": Choice(kind="augmentation", table=TRANSFORMS, more=("none",), calls=True),
    "reading": Choice(kind="reading", table=READINGS),
    "tags_are": Choice(kind="word for tags", table=("complete", "partial")),
    "vgg_padding": Choice(kind="VGG padding", table=("same", "pad100")),
    "competition": Choice(kind="VOC competition", table=("comp5", "comp6")),
    "device": Choice(
        kind="device", table=("auto", "cpu", "cuda", "mps"), meant={"gpu": "cuda", "metal": "mps"}
    ),
    "to": Choice(kind="format", table=EXPORT_SUFFIXES),
}


class Row(Protocol):
    """A row of any of the tables."""

    @property
    def about(self) -> str:
        """One line for listings."""


def listing() -> str:
    """Return the tables as text."""
    parts: dict[str, Mapping[str, Row]] = {
        "backbones (--backbone)": BACKBONES,
        "recipes (--recipe)": RECIPES,
        "rules (--rule)": RULES,
        "refiners (--refine)": REFINERS,
        "optimizers (--optimizer)": OPTIMIZERS,
        "learning rate schedules (--schedule)": SCHEDULES,
        "augmentations (--augment)": TRANSFORMS,
        "sources (found by looking; --kind)": SOURCES,
        "formats (--format)": FORMATS,
    }
    lines = []
    for title, table in parts.items():
        width = max(14, *map(len, table))
        lines += [title, *(f"  {name:{width}} {row.about}" for name, row in table.items()), ""]
    return "\n".join(lines).rstrip()


def show(options: ListOptions) -> None:
    """`milseg list`."""
    print(listing())
