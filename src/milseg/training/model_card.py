"""The model card of a model folder: what it learned from, how well it names tags, what it is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torchvision

from milseg._version import __version__
from milseg.data.bags import BagSet
from milseg.inference.model_folder import ModelSpec
from milseg.training.recipes import Recipe


def model_card(
    spec: ModelSpec,
    recipe: Recipe,
    *,
    bags: BagSet,
    learned_from: int,
    held_out: int,
    transfer: str,
    kept: dict[str, Any] | None,
    seconds: float,
    notes: Sequence[str] = (),
) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        kept: the row of selection.json whose weights are in the folder.
        seconds: of training.
        notes: what was left out of the recipe, and why.
    """
    left_out = "\n\n" + "\n".join(f"- {note}" for note in notes) if notes else ""
    counts = "\n".join(f"| {name} | {n} |" for name, n in bags.tag_counts().items() if name != "background")
    of_bags = "".join(f"- {note}\n" for note in bags.notes)
    return f"""---
library_name: milseg
pipeline_tag: image-segmentation
tags:
- weakly-supervised
- multiple-instance-learning
---

# {", ".join(name for name in spec.classes if name != "background")}

Masks learned from image tags alone, with milseg {__version__}: no pixel mask was used for training, tuning or stopping.

    milseg predict PHOTOS --model THIS_FOLDER --out MASKS

## Data

{bags.name}: {learned_from} photos to learn from, {held_out} held out for model selection. Tags from: {bags.tags_from}.

| Tag | photos |
|---|---:|
{counts}

{of_bags}
## Network and training

{spec.backbone}, output stride {spec.output_stride}, photos at most {spec.longest_side} pixels long.
Trained with {training_words(recipe)}; learning rate {recipe.stages[0].learning_rate:g}, seed {recipe.stages[0].seed};
{seconds:.0f} seconds. Settings: {recipe.note}.{left_out}

{_selection(kept, held_out)}

The score layer started from:

{transfer}

## Versions

milseg {__version__}, torch {torch.__version__}, torchvision {torchvision.__version__}.

## Limits

The masks were scored against no true mask here. Tags teach what tells photos apart: an object that always comes with
its surroundings (boats with water) may be masked together with them. Look at the masks before you rely on them.
"""


def training_words(recipe: Recipe) -> str:
    """A recipe's stages in words.

    >>> from milseg.training.recipes import fast_training
    >>> training_words(fast_training("mobilenet_v2"))
    'rule weighted-pooling, 250 steps of 16'
    """
    first = recipe.stages[0]
    words = f"rule {first.rule}, {first.max_steps} steps of {first.batch_size}"
    rounds = [str(stage.max_steps) for stage in recipe.stages[1:]]
    return f"{words}, then {' and '.join(rounds)} steps on pseudo-labels" if rounds else words


def _selection(kept: dict[str, Any] | None, held_out: int) -> str:
    if kept is None:
        return "No weights were selected."
    if not held_out or kept["tag_average_precision"] is None:
        why = "no tag tells the held-out photos apart" if held_out else "nothing was held out"
        return f"The weights are those after step {kept['step']}, the last: {why}, so there was no selection."
    rows = "\n".join(
        f"| {name} | {'-' if value is None else f'{value:.1f}'} |"
        for name, value in kept["per_class"].items()
    )
    return (
        f"The weights are those after step {kept['step']}, chosen by mean tag average precision on the held-out "
        f"photos: {kept['tag_average_precision']:.1f} %.\n\n| Tag | average precision, % |\n|---|---:|\n{rows}"
    )
