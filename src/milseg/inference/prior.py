"""Image-level prior: which classes a photo shows at all, weighed into its score map.

A map is made cell by cell, and a few cells of an absent class cost as much as a present class. The evidence of the
whole photo is steadier. The probability that the photo shows a class, as a factor on the class's map, is the
image-level prior of Pinheiro & Collobert 2015, section 3.3. It is calibrated on bags by their tags alone. At prediction
it uses the photo's predicted tags, never true ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from milseg.config.fields import MOST_ENTRIES, Limits, check_fields
from milseg.data.bags import PRESENT, UNKNOWN
from milseg.errors import UserError

BACKGROUND_NAME = "background"
FEWEST = 5  # bags with the tag, and as many without it, that calibrating a class takes


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Each class's tag probability, 1 / (1 + exp(-(slope * evidence + intercept))).

    Attributes:
        slope, intercept: one number a class; slope 0 with an infinite intercept leaves the class alone.
    """

    slope: tuple[float, ...]
    intercept: tuple[float, ...]

    LIMITS: ClassVar[Mapping[str, Limits]] = {
        "slope": Limits(least=-1e6, most=1e6, entries=(1, MOST_ENTRIES)),
        "intercept": Limits(least=-1e6, most=1e6, entries=(1, MOST_ENTRIES), infinite=True),
    }

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.slope) != len(self.intercept):
            raise UserError(
                f"slope has {len(self.slope)} numbers and intercept {len(self.intercept)}; expected one a class"
            )

    def log_probability(self, evidence: torch.Tensor) -> torch.Tensor:
        """Return log P(class is in the photo) from `tag_evidence`, [C] to [C]; 0 for classes left alone."""
        slope, intercept = (torch.tensor(v, dtype=evidence.dtype) for v in (self.slope, self.intercept))
        return torch.nn.functional.logsigmoid(slope * evidence.cpu() + intercept)


def tag_evidence(scores: torch.Tensor) -> torch.Tensor:
    """Return the log-odds of each class at its most probable cell, [C] from [C, h, w].

    >>> tag_evidence(torch.tensor([[[0.0, 1.0]], [[0.0, 3.0]]])).round(decimals=4).tolist()
    [0.0, 2.0]
    """
    log_p = scores.float().log_softmax(dim=0).flatten(1)
    best = log_p.amax(dim=1)
    # log(1 - p) without the loss of digits near p = 1.
    rest = torch.log(-torch.expm1(best.clamp(max=-1e-7)))
    return (best - rest).clamp(-30, 30)


def fit_prior(evidence: NDArray[np.float64], tags: NDArray[np.int64], classes: Sequence[str]) -> Prior:
    """Calibrate each class on bags by their tags: logistic regression of the tag on the evidence.

    The background is left alone, and so is a class that fewer than `FEWEST` bags have or lack.

    Args:
        evidence: [N, C], of bags that the network did not learn from. tags: [N, C] of PRESENT, ABSENT, UNKNOWN.
    """
    slopes, intercepts = [], []
    for number, name in enumerate(classes):
        known = tags[:, number] != UNKNOWN
        present = tags[known, number] == PRESENT
        slope, intercept = 0.0, math.inf
        if name != BACKGROUND_NAME and min(present.sum(), (~present).sum()) >= FEWEST:
            fitted = LogisticRegression(C=1.0).fit(evidence[known, number : number + 1], present)
            slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
            if slope <= 0:  # evidence against its own class is no evidence
                slope, intercept = 0.0, math.inf
        slopes.append(slope)
        intercepts.append(intercept)
    return Prior(slope=tuple(slopes), intercept=tuple(intercepts))


def apply_prior(scores: torch.Tensor, prior: Prior, strength: float = 1.0) -> torch.Tensor:
    """Return the scores [C, h, w] plus `strength` times each class's log-probability.

    In probabilities: each class's map times P(class)^strength, then normalised again.
    """
    log_p = prior.log_probability(tag_evidence(scores)).to(scores.device, scores.dtype)
    return scores + strength * log_p[:, None, None]
