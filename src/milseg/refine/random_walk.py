"""A random walk among places that look alike to the network: what it says of one place spreads to its like.

A network's scores are surest where a class is most typical, the face of a cat, and fade towards its flank, though its
inner maps know that both are fur of one piece. Spreading probabilities along this affinity, as AffinityNet (Ahn and
Kwak, "Learning Pixel-level Semantic Affinity with Image-level Supervision for Weakly Supervised Semantic
Segmentation", CVPR 2018, section 3.3) does along a learned one, costs no training: the affinity is the cosine of the
features of the classifier's own layers, of several depths. docs/masks-worth-using.md has what it gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

# Tried on photos of training (docs/masks-worth-using.md): how much affinity counts for, and how sure the result is.
POWER, SHARPNESS = 4, 3
# Places that walk together: the transition matrix of so many takes 64 MiB. Larger maps walk on a coarser grid.
MOST_PLACES = 4096
LEAST = -80.0  # log probability; exp of less is no float32


def transition_matrix(features: Sequence[torch.Tensor], *, power: float = POWER) -> torch.Tensor:
    """How likely a step goes from each place to each other, [N, N] with N = h w; each row sums to 1.

    The affinity of two places is the cosine of their features less the photo's mean, below 0 as 0, averaged over the
    layers; its `power` is the weight of the step.

    Args:
        features: float [F, h, w] of each layer, at the same places; F differs.

    >>> two_of_a_kind = torch.tensor([[[1.0, 1.0, -2.0]]])
    >>> transition_matrix([two_of_a_kind]).tolist()
    [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    """
    places = features[0][0].numel()
    alike = torch.zeros(places, places, device=features[0].device)
    for layer in features:
        flat = layer.flatten(1).float()
        flat = F.normalize(flat - flat.mean(dim=1, keepdim=True), dim=0)
        alike += (flat.T @ flat).clamp_min_(0)
    # A place is like itself, also where all look the same and nothing is left beside the mean.
    alike = (alike / len(features)).fill_diagonal_(1.0).pow_(power)
    return alike / alike.sum(dim=1, keepdim=True)


def walked(
    scores: torch.Tensor, step: torch.Tensor, *, steps: int, sharpness: float = SHARPNESS
) -> torch.Tensor:
    """The log probabilities of a map after so many steps, made surer again by `sharpness`.

    Args:
        scores: float [C, h, w], logits; -inf for classes that are ruled out everywhere.
        step: as `transition_matrix` gives it, [N, N], for this map's places or, where they are more than N, for those
        of
            `walking_size`.
        steps: 1 or more.
        sharpness: the result is the softmax of this times the log; walking evens out.

    Returns:
        float32 [C, h, w]; ruled out classes are below -200.
    """
    log_p = scores.float().log_softmax(dim=0).clamp_min_(LEAST)
    size = walking_size(scores.shape[1], scores.shape[2])
    coarse = F.adaptive_avg_pool2d(log_p.exp(), size)  # the same where the sizes are
    p = coarse.flatten(1).T
    for _ in range(steps):
        p = step @ p
    change = p.T.reshape(coarse.shape).log().clamp_min_(LEAST) - coarse.log().clamp_min_(LEAST)
    if change.shape != log_p.shape:
        change = F.interpolate(change[None], size=log_p.shape[1:], mode="bilinear")[0]
    return log_p.add_(change).mul_(sharpness).log_softmax(dim=0)


def walking_size(height: int, width: int) -> tuple[int, int]:
    """The (height, width) of the grid on which a map of so many places walks.

    >>> walking_size(30, 40), walking_size(300, 400)
    ((30, 40), (55, 73))
    """
    shrink = max(1.0, math.sqrt(height * width / MOST_PLACES))
    return max(1, int(height / shrink)), max(1, int(width / shrink))
