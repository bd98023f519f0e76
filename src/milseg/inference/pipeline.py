"""From a photo to its score map, stage by stage: the one way that every command takes.

    network with tta -> known tags or prior -> random walk -> class bias -> refiner

Each stage takes a score map and returns one. A stage whose setting is off returns the map as it is. The mask is the
top class of the last map at each pixel of the photo (`ScoreMap.argmax_mask`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from milseg.config import InferenceConfig
from milseg.data.image import UInt8, fit_size, resize_photo
from milseg.inference.affinity import photo_transition_matrix
from milseg.inference.prior import Prior
from milseg.inference.score_map import ScoreMap
from milseg.inference.tiling import Network
from milseg.inference.tta import tta_score_map
from milseg.models.fcn import FCN
from milseg.refine import find_refiner


@dataclass(frozen=True, kw_only=True)
class Job:
    """One photo, and everything that its stages need besides the settings.

    Attributes:
        photo: uint8 [H, W, 3].
        network: computes the scores.
        features: the network whose inner maps the random walk follows; None if there is none.
        longest_side: larger photos are made this small for the network, pixels.
        prior: the model's calibration; None for a model without one.
        class_bias: float [C].
        allowed: bool [C], the classes that known tags leave; None if no tags are known.
        maps, transitions: results of earlier settings for the same photo; `maps` of None keeps neither.
    """

    photo: UInt8
    network: Network
    features: FCN | None
    longest_side: int | None
    prior: Prior | None
    class_bias: torch.Tensor
    allowed: torch.Tensor | None = None
    maps: dict[Hashable, ScoreMap] | None = None
    transitions: dict[Hashable, torch.Tensor] = field(default_factory=dict)


def predict_scores(job: Job, config: InferenceConfig, _: None) -> ScoreMap:
    """Return the network's score map, with test-time augmentation; on the CPU."""
    found = tta_score_map(
        job.network, job.photo, longest_side=job.longest_side, scales=config.scales, flip=config.flip
    )
    return found.map(lambda scores: scores.float().cpu())


def apply_tags_or_prior(job: Job, config: InferenceConfig, scores: ScoreMap) -> ScoreMap:
    """Rule out the classes that known tags exclude. Without known tags, weigh the classes by the prior."""
    if job.allowed is not None:
        return scores.with_classes(job.allowed)
    if not config.prior or job.prior is None:
        return scores
    return scores.with_prior(job.prior, config.prior)


def walk_randomly(job: Job, config: InferenceConfig, scores: ScoreMap) -> ScoreMap:
    """Spread the scores to cells that look alike to the network (`milseg.refine.random_walk`)."""
    if not config.random_walk:
        return scores
    assert job.features is not None, "an exported network has no inner maps; `Segmenter` refuses it"
    cells = (scores.scores.shape[1:], scores.stride, scores.offset, scores.input_size)
    transition = job.transitions.get(cells)
    if transition is None:
        transition = photo_transition_matrix(job.features, job.photo, scores)
        if job.maps is not None:
            job.transitions[cells] = transition
    return scores.random_walk(transition, steps=config.random_walk)


def add_class_bias(job: Job, config: InferenceConfig, scores: ScoreMap) -> ScoreMap:
    """Add the user's bias to the scores of each class."""
    return scores.with_class_bias(job.class_bias) if job.class_bias.any() else scores


def refine(job: Job, config: InferenceConfig, scores: ScoreMap) -> ScoreMap:
    """Interpolate the map to the size at which the refiner sees the photo, and refine its probabilities there."""
    if config.refine == "none":
        return scores
    size = fit_size(job.photo.shape[0], job.photo.shape[1], config.refine_side)
    refiner = find_refiner(config.refine)
    probs = refiner(resize_photo(job.photo, size), scores.probabilities_at(size))
    return ScoreMap(scores=probs, stride=1, offset=0.0, input_size=size)


class Stage(NamedTuple):
    """A step to the next score map, and the settings that it reads."""

    run: Callable[[Job, InferenceConfig, Any], ScoreMap]
    settings: tuple[str, ...]


COARSE_STAGES = (
    Stage(predict_scores, ("scales", "flip")),
    Stage(apply_tags_or_prior, ("prior",)),
    Stage(walk_randomly, ("random_walk",)),
    Stage(add_class_bias, ()),
)


def coarse_map(job: Job, config: InferenceConfig) -> ScoreMap:
    """Return the map before the refiner.

    If the job keeps its maps, stages whose settings were asked for before are not computed again.
    """
    scores, settings = None, tuple[Hashable, ...]()
    for stage in COARSE_STAGES:
        settings = (*settings, *(getattr(config, name) for name in stage.settings))
        kept = None if job.maps is None else job.maps.get((stage.run, settings))
        scores = stage.run(job, config, scores) if kept is None else kept
        if job.maps is not None:
            job.maps[stage.run, settings] = scores
    assert scores is not None
    return scores
