"""What a trained network's tags of photos that it did not learn from decide: its image-level prior, and whether it
bears its refiner."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from milseg.config import InferenceConfig
from milseg.data.bags import PRESENT, BagSet, load_photo
from milseg.data.image import UInt8
from milseg.data.masks import class_counts
from milseg.inference.model_folder import ModelSpec
from milseg.inference.prior import fit_prior, tag_evidence
from milseg.inference.segmenter import Segmenter
from milseg.models.fcn import FCN
from milseg.models.fuse import fused

# A refiner or a walk that loses more than a third of the tags is of no use to the network.
LEAST_SHOWN = 2 / 3


def calibrated(model: FCN, spec: ModelSpec, inference: InferenceConfig, held: BagSet) -> ModelSpec:
    """The spec with its inference, and the prior that it asks for; opens photos, never masks.

    Args:
        held: bags that the network did not learn from; with none there is nothing to calibrate on, and the prior is
            left out.
    """
    if not inference.prior or not len(held):
        return replace(spec, inference=replace(inference, prior=0.0), prior=None)
    segmenter = Segmenter(model, spec, inference=replace(inference, prior=0.0))
    evidence = [tag_evidence(segmenter.scores(load_photo(bag)).scores).double().numpy() for bag in held.bags]
    tags = np.array([bag.tags for bag in held.bags], dtype=np.int64)
    return replace(spec, inference=inference, prior=fit_prior(np.array(evidence), tags, spec.classes))


def tag_recall(masks: Iterable[UInt8], bags: BagSet) -> float:
    """The share of the bags' tags, background apart, of which their masks show a pixel; nan where there is no tag.

    >>> from milseg.data.bags import Bag
    >>> bag = Bag(name="a", photo=np.zeros((1, 2, 3), np.uint8), tags=(1, 1, 1))
    >>> bags = BagSet(name="", classes=("background", "cat", "dog"), bags=(bag,), tags_from="here")
    >>> tag_recall([np.array([[0, 2]], np.uint8)], bags)
    0.5
    """
    things = [name != "background" for name in bags.classes]
    shown = tagged = 0
    for bag, mask in zip(bags.bags, masks, strict=True):
        present = (np.array(bag.tags) == PRESENT) & things
        tagged += int(present.sum())
        shown += int((class_counts(mask)[: len(present)][present] > 0).sum())
    return shown / tagged if tagged else math.nan


def drop_harmful_refinement(
    model: FCN, spec: ModelSpec, inference: InferenceConfig, bags: BagSet
) -> tuple[InferenceConfig, list[str]]:
    """The inference less what takes the tags out of the masks, and a sentence on each thing left out.

    Refiner and walk make maps smoother; a map that is hardly surer of a thing than of what is around it they smooth
    away. Left out is the refiner, and then the walk, if the masks show less than two thirds of the tags that they show
    without it. Opens photos, never masks.
    """
    if inference.refine == "none" and not inference.random_walk:
        return inference, []
    network, told = fused(model), []

    def share(config: InferenceConfig) -> float:
        segmenter = Segmenter(model, spec, inference=replace(config, prior=0.0), network=network)
        return tag_recall((segmenter.segment(load_photo(bag)).mask for bag in bags.bags), bags)

    found = share(inference)
    for name, without in (("refine", {"refine": "none"}), ("random_walk", {"random_walk": 0})):
        less = replace(inference, **without)
        if less == inference:
            continue
        other = share(less)
        if not found < LEAST_SHOWN * other:
            continue
        told.append(
            f"{name} {getattr(inference, name)} is left out: of the tags of {len(bags)} photos its masks show "
            f"{100 * found:.0f} %, those without it {100 * other:.0f} %"
        )
        inference, found = less, other
    return inference, told
