"""The image-level prior of a trained network, calibrated on the held-out photos by their tags."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from milseg.bags import BagSet, load_photo
from milseg.checkpoint import ModelSpec
from milseg.models.fcn import FCN
from milseg.options import InferenceConfig
from milseg.prior import fit_prior, tag_evidence
from milseg.segmenter import Segmenter


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
