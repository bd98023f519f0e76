"""Choices that make a target for every cell: EM-Fixed, EM-Adapt and CCNN's constrained distributions.

The targets are constants of the step; the loss is the mean over the valid cells of the cross entropy to
them. Class 0 is the background. A class whose tag is unknown is in no target.
"""

from __future__ import annotations

import torch

from milseg.data.bags import BACKGROUND


def choose_em_fixed(
    losses: torch.Tensor,
    present: torch.Tensor,
    selectable: torch.Tensor,
    masks: torch.Tensor | None = None,
    *,
    foreground: float = 5.0,
    background: float = 3.0,
) -> torch.Tensor:
    """Add a fixed bias to the scores of present classes; the top class of each cell is its target.

        y = arg max over c of s_c + b_c,  b_c = foreground, background (c = 0), or 0 for absent c

    Absent classes stay in the arg max, as in the source.

    Source: Papandreou et al. 2015, "Weakly- and Semi-Supervised Learning of a DCNN for Semantic Image
        Segmentation", section 3.2, equations 8 to 10 and Algorithm 1.

    Args:
        losses: loss map [B, C, h, w]; present: [B, C]; selectable: bool [B, C, h, w].

    Returns:
        weights [B, C, h, w] that sum to 1 in each bag.

    Example: the class is 1 behind everywhere, and its bonus is 2 more than the background's.
        >>> losses = torch.tensor([[[[0.3133] * 4], [[1.3133] * 4]]])
        >>> seen = torch.ones(1, 2, 1, 4, dtype=torch.bool)
        >>> choose_em_fixed(losses, torch.tensor([[1.0, 1.0]]), seen)[0, 1].tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """
    bias = torch.full_like(present, foreground)
    bias[:, BACKGROUND] = background
    biased = (present * bias)[:, :, None, None] - losses
    return _one_hot(biased.masked_fill(~selectable, -torch.inf), present, selectable)


def choose_em_adapt(
    losses: torch.Tensor,
    present: torch.Tensor,
    selectable: torch.Tensor,
    masks: torch.Tensor | None = None,
    *,
    background: float = 0.4,
    foreground: float = 0.2,
    rounds: int = 5,
) -> torch.Tensor:
    """Biases chosen for each photo so that the background and each present class win a share of the cells.

    In each round, for the background and then each present class c: with d_i = max over c' of s_c' - s_c at
    cell i, add to s_c the smallest bias that makes it win its share, the n-th smallest of d (and 1e-4, or it
    would tie there). Then the top class among the present ones is each cell's target. The shares are met but
    for what later classes take.

    Source: Papandreou et al. 2015, section 3.2 (EM-Adapt: background at least 40 %, each present foreground
        class at least 20 %); the order of steps as in the authors' public layer, which visits the classes in
        random order where this one takes them as they come.

    Args:
        losses: loss map [B, C, h, w]; present: [B, C]; selectable: bool [B, C, h, w].

    Returns:
        weights [B, C, h, w] that sum to 1 in each bag.

    Example: 1 cell in 5 goes to the class, the one where it is least behind.
        >>> losses = torch.tensor([[[[0.1, 0.1, 0.2, 0.1, 0.1]], [[2.3, 2.4, 1.7, 2.5, 2.6]]]])
        >>> seen = torch.ones(1, 2, 1, 5, dtype=torch.bool)
        >>> choose_em_adapt(losses, torch.tensor([[1.0, 1.0]]), seen, foreground=0.1)[0, 1].gt(0).tolist()
        [[False, False, True, False, False]]
    """
    scores = (-losses).masked_fill(present[:, :, None, None] == 0, -torch.inf).flatten(2).clone()
    cells = selectable.any(dim=1).flatten(1)
    count = cells.sum(dim=1)
    for _ in range(rounds):
        for c in range(losses.shape[1]):
            here = present[:, c] > 0
            if not here.any():
                continue
            behind = (scores.amax(dim=1) - scores[:, c]).masked_fill(~cells, torch.inf).sort(dim=1).values
            share = background if c == BACKGROUND else foreground
            nth = (share * count).long().minimum(count - 1).clamp_min(0)
            bias = behind.gather(1, nth[:, None])
            raised = here[:, None] & (count > 0)[:, None] & (bias > 0)
            scores[:, c] += torch.where(raised, bias + 1e-4, torch.zeros_like(bias))
    return _one_hot(scores.view_as(losses), present, selectable)


def choose_ccnn(
    losses: torch.Tensor,
    present: torch.Tensor,
    selectable: torch.Tensor,
    masks: torch.Tensor | None = None,
    *,
    background_low: float = 0.3,
    background_high: float = 0.7,
    foreground_low: float = 0.05,
    slack: float = 2.0,
    rounds: int = 20,
) -> torch.Tensor:
    """The distribution nearest to the network's output whose class areas meet the constraints.

        min over P of KL(P || p)   with the mean over the cells of
        P_0 between background_low and background_high (1 where no foreground class is present),
        P_c at least foreground_low for present c > 0, softly: its multiplier is at most `slack`,
        P_c = 0 for absent c

    Its dual: P_c is p_c exp(u_c) normalised at each cell, one multiplier u_c a class, found by coordinate
    ascent in log space; each coordinate is solved exactly, by bisection.

    Source: Pathak, Krahenbuhl & Darrell 2015, "Constrained Convolutional Neural Networks for Weakly
        Supervised Segmentation", section 4, equations 3 to 6; the numbers from the authors' public layer.

    Args:
        losses: loss map [B, C, h, w]; present: [B, C]; selectable: bool [B, C, h, w].
        slack: upper bound of a foreground class's multiplier (the source's penalty on violations).
        rounds: at most so many passes over the classes; it ends before when nothing moves.

    Returns:
        weights [B, C, h, w], the distribution at each valid cell, divided by the number of cells.

    Example: an output that is background everywhere; it may fill 70 % of the photo.
        >>> losses = -torch.tensor([0.99, 0.01]).log().view(1, 2, 1, 1).expand(1, 2, 1, 4)
        >>> seen = torch.ones(1, 2, 1, 4, dtype=torch.bool)
        >>> target = choose_ccnn(losses, torch.tensor([[1.0, 1.0]]), seen)
        >>> [round(x, 3) for x in target.sum(dim=(2, 3))[0].tolist()]
        [0.7, 0.3]
    """
    here = present > 0
    cells = selectable.any(dim=1).flatten(1)
    count = cells.sum(dim=1).clamp_min(1)
    base = (-losses).flatten(2).masked_fill(~here[:, :, None], -torch.inf)
    u = torch.zeros_like(present)
    moving = here.any(dim=1)
    for _ in range(rounds):
        before = u.clone()
        for c in range(losses.shape[1]):
            if not here[:, c].any():
                continue
            low = torch.full_like(u[:, c], background_low if c == BACKGROUND else foreground_low)
            high = torch.full_like(low, background_high if c == BACKGROUND else 1.0)
            shifted = base + u[:, :, None]
            shifted[:, c] = -torch.inf
            odds = base[:, c] - shifted.logsumexp(dim=1)
            solved = _multiplier(odds, cells, count, low, high)
            if c != BACKGROUND:
                solved = solved.clamp(0.0, slack)
            u[:, c] = torch.where(here[:, c] & moving, solved, u[:, c])
        moving = (u - before).abs().amax(dim=1) > 1e-5
        if not moving.any():
            break
    target = (base + u[:, :, None]).softmax(dim=1)
    usable = cells & here.any(dim=1, keepdim=True)
    target = torch.where(usable[:, None], target, torch.zeros_like(target)) / count[:, None, None]
    return target.view_as(losses) * selectable


def _multiplier(
    odds: torch.Tensor, cells: torch.Tensor, count: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> torch.Tensor:
    """The u nearest to 0 with the mean of sigmoid(odds + u) between low and high; odds [B, n] -> [B]."""

    def area(u: torch.Tensor) -> torch.Tensor:
        return (torch.sigmoid(odds + u[:, None]) * cells).sum(dim=1) / count

    zero = torch.zeros_like(low)
    now = area(zero)
    goal = torch.where(now < low, low, high)
    left, right = torch.full_like(low, -100.0), torch.full_like(low, 100.0)
    for _ in range(40):
        middle = (left + right) / 2
        below = area(middle) < goal
        left, right = torch.where(below, middle, left), torch.where(below, right, middle)
    return torch.where((now < low) | (now > high), (left + right) / 2, zero)


def _one_hot(scores: torch.Tensor, present: torch.Tensor, selectable: torch.Tensor) -> torch.Tensor:
    """Weight 1/n on the top class of each of a bag's n selectable cells; 0 for a bag with nothing present."""
    top = torch.zeros_like(scores).scatter_(1, scores.argmax(dim=1, keepdim=True), 1.0)
    cells = selectable.any(dim=1, keepdim=True)
    usable = cells & (present > 0).any(dim=1)[:, None, None, None]
    return top * usable / cells.sum(dim=(2, 3), keepdim=True).clamp_min(1)
