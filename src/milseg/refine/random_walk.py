"""A random walk among the cells of a score map: scores spread to cells that look alike to the network.

A network's scores are highest where a class is most typical, the face of a cat. They fade towards its flank, though
the network's inner maps show that both are fur of one piece. AffinityNet (Ahn and Kwak, "Learning Pixel-level Semantic
Affinity with Image-level Supervision for Weakly Supervised Semantic Segmentation", CVPR 2018, section 3.3) spreads
probabilities along a learned affinity. This affinity costs no training: it is the cosine of the features of several of
the classifier's layers. docs/masks-worth-using.md has its effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

# Tried on training photos (docs/masks-worth-using.md): the weight of affinity, and how peaked the result is.
POWER, SHARPNESS = 4, 3
# Cells that walk together: the transition matrix of as many takes 64 MiB. Larger maps walk on a coarser grid.
MOST_CELLS = 4096
LEAST = -80.0  # log probability; exp of less is no float32


def transition_matrix(features: Sequence[torch.Tensor], *, power: float = POWER) -> torch.Tensor:
    """Return the probability of a step from each cell to each other, [N, N] with N = h w; each row sums to 1.

    The affinity of two cells is the cosine of their features less the photo's mean, negative values as 0, averaged
    over the layers. Its `power` is the weight of the step.

    Args:
        features: float [F, h, w] of each layer, at the same cells; F differs.

    >>> two_of_a_kind = torch.tensor([[[1.0, 1.0, -2.0]]])
    >>> transition_matrix([two_of_a_kind]).tolist()
    [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    """
    cells = features[0][0].numel()
    affinity = torch.zeros(cells, cells, device=features[0].device)
    for layer in features:
        flat = layer.flatten(1).float()
        flat = F.normalize(flat - flat.mean(dim=1, keepdim=True), dim=0)
        affinity += (flat.T @ flat).clamp_min_(0)
    # Where all cells look the same nothing is left beside the mean; each is still alike to itself.
    affinity = (affinity / len(features)).fill_diagonal_(1.0).pow_(power)
    return affinity / affinity.sum(dim=1, keepdim=True)


def random_walk(
    scores: torch.Tensor, transition: torch.Tensor, *, steps: int, sharpness: float = SHARPNESS
) -> torch.Tensor:
    """Return the log probabilities of a map after `steps` steps, sharpened.

    Args:
        scores: float [C, h, w], logits; -inf for classes that are ruled out everywhere.
        transition: [N, N], as `transition_matrix` gives it, for the cells of `walking_size`.
        steps: 1 or more.
        sharpness: the result is the softmax of this times the log; walking evens out.

    Returns:
        float32 [C, h, w]; ruled out classes are below -200.
    """
    log_p = scores.float().log_softmax(dim=0).clamp_min_(LEAST)
    size = walking_size(scores.shape[1], scores.shape[2])
    coarse = F.adaptive_avg_pool2d(log_p.exp(), size)  # the identity for maps that walk on their own cells
    p = coarse.flatten(1).T
    for _ in range(steps):
        p = transition @ p
    change = p.T.reshape(coarse.shape).log().clamp_min_(LEAST) - coarse.log().clamp_min_(LEAST)
    if change.shape != log_p.shape:
        change = F.interpolate(change[None], size=log_p.shape[1:], mode="bilinear")[0]
    return log_p.add_(change).mul_(sharpness).log_softmax(dim=0)


def walking_size(height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) of the grid on which a map of height x width cells walks.

    >>> walking_size(30, 40), walking_size(300, 400)
    ((30, 40), (55, 73))
    """
    shrink = max(1.0, math.sqrt(height * width / MOST_CELLS))
    return max(1, int(height / shrink)), max(1, int(width / shrink))
