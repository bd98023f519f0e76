"""Decisions after training from the tags of photos: the image-level prior, and whether refinement does harm."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from milseg.config import InferenceConfig
from milseg.data.bags import PRESENT, BagSet, load_photo
from milseg.data.image import UInt8
from milseg.data.masks import class_counts
from milseg.inference.model_folder import ModelSpec
from milseg.inference.prior import fit_prior, tag_evidence
from milseg.inference.segmenter import Segmenter
from milseg.models.fcn import FCN

# A refiner or a random walk that takes more than a third of the tags out of the masks does harm.
LEAST_RECALL = 2 / 3


def calibrated(model: FCN, spec: ModelSpec, inference: InferenceConfig, held_out: BagSet) -> ModelSpec:
    """Return the spec with its inference, and with the prior that it asks for; opens photos, never masks.

    Args:
        held_out: bags that the network did not learn from. Without any, the prior is left out.
    """
    if not inference.prior or not len(held_out):
        return replace(spec, inference=replace(inference, prior=0.0), prior=None)
    segmenter = Segmenter(model, spec, inference=replace(inference, prior=0.0))
    evidence = [
        tag_evidence(segmenter.score_map(load_photo(bag)).scores).double().numpy() for bag in held_out.bags
    ]
    tags = np.array([bag.tags for bag in held_out.bags], dtype=np.int64)
    return replace(spec, inference=inference, prior=fit_prior(np.array(evidence), tags, spec.classes))


def tagged_classes(tags: tuple[int, ...], classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the numbers of the classes that a bag's tags name, the background left out.

    >>> tagged_classes((1, 1, 0), ("background", "cat", "dog")).tolist()
    [1]
    """
    return np.flatnonzero((np.array(tags) == PRESENT) & (np.array(classes) != "background"))


def tag_recall(masks: Iterable[UInt8], bags: BagSet) -> float:
    """Return the share of the bags' tags, background apart, of which their masks show a pixel; nan without tags.

    >>> from milseg.data.bags import Bag
    >>> bag = Bag(name="a", photo=np.zeros((1, 2, 3), np.uint8), tags=(1, 1, 1))
    >>> bags = BagSet(name="", classes=("background", "cat", "dog"), bags=(bag,), tags_from="here")
    >>> tag_recall([np.array([[0, 2]], np.uint8)], bags)
    0.5
    """
    masked = tagged = 0
    for bag, mask in zip(bags.bags, masks, strict=True):
        numbers = tagged_classes(bag.tags, bags.classes)
        tagged += len(numbers)
        masked += int(np.count_nonzero(class_counts(mask)[numbers]))
    return masked / tagged if tagged else math.nan


def drop_harmful_refinement(
    model: FCN, spec: ModelSpec, inference: InferenceConfig, bags: BagSet
) -> tuple[InferenceConfig, list[str]]:
    """Return the inference without the refiner or random walk that removes tags from the masks, and notes on it.

    Both smooth a map. If a class's scores are hardly above those around it, they smooth the class away. First the
    refiner and then the walk is dropped, if the masks show less than two thirds of the tags that they show without it.
    Opens photos, never masks.
    """
    if inference.refine == "none" and not inference.random_walk:
        return inference, []
    recalls = _recalls(Segmenter(model, spec, inference=replace(inference, prior=0.0)), bags)
    notes: list[str] = []
    for name, off in (("refine", {"refine": "none"}), ("random_walk", {"random_walk": 0})):
        without = replace(inference, **off)
        recall, recall_without = (recalls[each.refine, each.random_walk] for each in (inference, without))
        if without == inference or not recall < LEAST_RECALL * recall_without:
            continue
        notes.append(
            f"{name} {getattr(inference, name)} is left out: of the tags of {len(bags)} photos its masks show "
            f"{100 * recall:.0f} %, those without it {100 * recall_without:.0f} %"
        )
        inference = without
    return inference, notes


def _recalls(segmenter: Segmenter, bags: BagSet) -> dict[tuple[str, int], float]:
    """Return the tag recall of the masks with and without the refiner and the random walk, by (refine, steps)."""
    inference = segmenter.inference
    variants = {
        (refine, steps): replace(inference, refine=refine, random_walk=steps)
        for refine in dict.fromkeys((inference.refine, "none"))
        for steps in dict.fromkeys((inference.random_walk, 0))
    }
    masked, tagged = dict.fromkeys(variants, 0), 0
    for bag in bags.bags:
        numbers = tagged_classes(bag.tags, bags.classes)
        tagged += len(numbers)
        for key, mask in segmenter.masks(load_photo(bag), variants).items():
            masked[key] += int(np.count_nonzero(class_counts(mask)[numbers]))
    return {key: count / tagged if tagged else math.nan for key, count in masked.items()}
