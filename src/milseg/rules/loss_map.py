"""The pixelwise loss map and the weights on it: the one idea on which every rule stands.

"This loss map can be masked, re-weighted, or otherwise manipulated to choose and select instances for
computing the loss and back-propagation for learning" (paper, "Fully convolutional MIL").
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from milseg.data.bags import UNKNOWN


def log_probs(scores: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    """Log of the softmax over the classes of each bag, in float32 or better.

    A class whose tag is unknown leaves its bag's softmax: its log probability is -inf and it takes no
    gradient.

    Args:
        scores: [B, C, h, w].
        tags: int8 [B, C] of PRESENT, ABSENT, UNKNOWN.

    Returns:
        [B, C, h, w].
    """
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    unknown = (tags == UNKNOWN)[:, :, None, None]
    return scores.masked_fill(unknown, -torch.inf).log_softmax(dim=1)


def loss_map(scores: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
    """-log p(c) at each cell for every class, [B, C, h, w]; 0 for classes whose tag is unknown.

    >>> float(loss_map(torch.zeros(1, 2, 1, 1), torch.ones(1, 2))[0, 0])  # -log(1/2)
    0.6931471824645996
    """
    return (-log_probs(scores, tags)).masked_fill((tags == UNKNOWN)[:, :, None, None], 0.0)


def weighted_loss(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The loss of each bag, sum of weights * loss map, [B].

    Args:
        losses: loss map [B, C, h, w].
        weights: [B, C, h, w], constants of the step: no gradient flows into the choice.
    """
    return (weights.detach().to(losses.dtype) * losses).sum(dim=(1, 2, 3))


def shown_weights(
    rule: Callable[[torch.Tensor], torch.Tensor], scores: torch.Tensor, tags: torch.Tensor
) -> torch.Tensor:
    """What a rule taught each instance, as weights on the loss map with the same gradient.

    With g the derivative of the rule's loss by the scores at a cell and p the softmax there, the weights are
    w = W p - g with the smallest W that keeps them non-negative. They exist when g sums to 0 over the
    classes, as it does for any rule of the softmax; for a choosing rule they are the rule's own weights.

    Args:
        rule: scores -> loss [B], the tags and everything else already bound.
        scores: [B, C, h, w].
        tags: int8 [B, C].

    Returns:
        [B, C, h, w], non-negative.

    Raises:
        ValueError: the rule works on raw scores (g does not sum to 0), so no such weights exist.

    Example:
        >>> scores, tags = torch.zeros(1, 2, 1, 1), torch.ones(1, 2)
        >>> first = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
        >>> shown_weights(lambda s: weighted_loss(loss_map(s, tags), first), scores, tags).flatten()
        tensor([1., 0.])
    """
    leaf = scores.detach().requires_grad_()
    (g,) = torch.autograd.grad(rule(leaf).sum(), leaf)
    if float(g.sum(dim=1).abs().max()) > 1e-4 * max(1.0, float(g.abs().max())):
        raise ValueError(
            "this rule works on raw scores: its gradient does not sum to 0 over the classes; show -g itself"
        )
    p = log_probs(scores.detach(), tags).exp()
    smallest = torch.finfo(p.dtype).tiny
    ratio = torch.where(p > 0, g / p.clamp_min(smallest), torch.zeros_like(g))
    total = ratio.amax(dim=1, keepdim=True).clamp_min(0.0)
    return (total * p - g).clamp_min(0.0)
