"""How well a model names what is in a photo: model selection from tags, without any mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from milseg.data.bags import PRESENT, UNKNOWN, BagSet, load_photo
from milseg.inference.tta import tta_score_map
from milseg.models.fcn import FCN
from milseg.models.fuse import fused
from milseg.utils.parallel import prefetch_map


@dataclass(frozen=True, kw_only=True)
class TagScores:
    """Tag average precision on some bags, in percent.

    Attributes:
        mean_average_precision: over the classes that some bags have and some have not; nan if there is none.
        per_class: average precision; nan for a class that all or none of the bags have.
        predicted_share: mean share of the places whose top class is each class, 0 to 100.
        never_predicted: classes that are among the tags but top nowhere; the background, which is no tag, is not told.
    """

    mean_average_precision: float
    per_class: dict[str, float]
    predicted_share: dict[str, float]
    never_predicted: tuple[str, ...]


def photo_tag_scores(scores: torch.Tensor) -> NDArray[np.float64]:
    """Return the highest log-probability of each class at any cell, float64 [C], from scores [C, h, w]."""
    best = scores.float().log_softmax(dim=0).flatten(1).amax(dim=1)
    return np.asarray(best.double().cpu().numpy())


def average_precisions(
    scores: NDArray[np.float64], tags: NDArray[np.int64], classes: Sequence[str]
) -> dict[str, float]:
    """Average precision of each class, in percent, unknown tags left out; the background has none.

    Args:
        scores: [N, C]. tags: [N, C] of PRESENT, ABSENT, UNKNOWN.

    >>> average_precisions(np.array([[.9], [.1]]), np.array([[1], [0]]), ["cat"])
    {'cat': 100.0}
    """
    found = {}
    for number, name in enumerate(classes):
        known = tags[:, number] != UNKNOWN
        if name == "background":
            continue
        present = tags[known, number] == PRESENT
        decidable = present.any() and not present.all()
        found[name] = (
            100 * float(average_precision_score(present, scores[known, number])) if decidable else math.nan
        )
    return found


def score_tags(model: FCN, bags: BagSet, *, longest_side: int | None = None) -> TagScores:
    """Score the model's tags on a set; opens photos, never masks. The model is left in evaluation mode."""
    network = fused(model.eval())
    rows, shares = [], np.zeros(len(bags.classes))
    for _, photo in prefetch_map(load_photo, bags.bags, workers=1):
        scores = tta_score_map(network, photo, longest_side=longest_side).scores
        rows.append(photo_tag_scores(scores))
        top = scores.argmax(dim=0).flatten().cpu().numpy()
        shares += np.bincount(top, minlength=len(bags.classes)) / top.size
    tags = np.array([bag.tags for bag in bags.bags], dtype=np.int64)
    per_class = average_precisions(np.array(rows), tags, bags.classes)
    defined = [value for value in per_class.values() if not math.isnan(value)]
    return TagScores(
        mean_average_precision=float(np.mean(defined)) if defined else math.nan,
        per_class=per_class,
        predicted_share={
            name: float(100 * share / len(bags)) for name, share in zip(bags.classes, shares, strict=True)
        },
        never_predicted=tuple(
            name
            for number, name in enumerate(bags.classes)
            if name != "background" and shares[number] == 0 and (tags[:, number] == PRESENT).any()
        ),
    )


def remedies(*, learning_rate: float, pretrained: bool, mapped: bool, without_rows: Sequence[str]) -> str:
    """What to try against a collapse, of what was not given.

    Args:
        learning_rate: the one in use.
        pretrained: the network started from weights that were given.
        mapped: --mapping was given.
        without_rows: classes for which the classifier had no row to start from.

    >>> remedies(learning_rate=0.001, pretrained=True, mapped=False, without_rows=())
    'Try a --learning-rate below 0.001'
    """
    tries = [f"a --learning-rate below {learning_rate:g}"]
    if not pretrained:
        tries.append("weights that were pre-trained on images (--weights imagenet)")
    elif without_rows:
        names = ", ".join(without_rows)
        where = "other rows in the file of --mapping" if mapped else "ILSVRC's names for them by --mapping"
        tries.append(f"{where}, as the score layer has no rows to start from for {names}")
    return f"Try {' or '.join(tries)}"


def collapse(found: TagScores, advice: str) -> str | None:
    """A sentence when the model has collapsed, with what to try; None while it has not."""
    top, share = max(found.predicted_share.items(), key=lambda item: item[1])
    if share >= 99 and top == "background":
        return f"all background: {share:.1f} % of the places. {advice}."
    # The background may well cover nearly all of photos of small things; another class hardly does.
    if top != "background" and share >= (95 if len(found.predicted_share) > 2 else 99):
        return f"one class everywhere: {top} tops {share:.1f} % of the places. {advice}."
    if found.never_predicted:
        names = ", ".join(found.never_predicted)
        more = "More photos with these tags, or more steps, may help"
        return f"never predicted though tagged: {names}. {more}. {advice}."
    return None
