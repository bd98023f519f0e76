"""Attention pooling: the one rule with parameters of its own."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear

from milseg.rules.cells import cells_of, flat_scores, scores_loss


class Attention(nn.Module):
    """Learned weights on the cells, one set a class, then one softmax over the classes.

        h = s less its mean over the known classes                (an instance: its class scores)
        a_c = softmax over the cells of w_c . tanh(V h)          (gated: w_c . (tanh(V h) * sigmoid(U h)))
        z_c = sum over cells of a_c h_c
        loss = -1/|L| sum over present c of log softmax(z)_c

    The mean is taken off so that only the softmax of the scores matters. A class whose tag is unknown is 0 in
    h and takes no part in the loss.

    Source: Ilse, Tomczak & Welling 2018, "Attention-based Deep Multiple Instance Learning", equations 7 and 8,
        and 9 for the gate; 128 hidden units as in the authors' code. One attention a class as in Lu et al.
        2021 (CLAM); with `shared`, one for all as in the source.

    Args:
        classes: C, with the background.
        hidden: rows of V (and U).
        gated: with the gate.
        shared: one set of weights for all classes.
        sigmoid: a logistic loss for each class in place of the softmax.
        seed: of the first parameters, uniform within 1/sqrt(inputs); no other random numbers are touched.

    Example:
        >>> rule = Attention(3)
        >>> s = torch.zeros(2, 3, 4, 4)
        >>> tags = torch.tensor([[1, 1, 0], [1, 0, 0]])
        >>> [round(x, 4) for x in rule(s, tags, torch.ones(2, 4, 4).bool()).tolist()]
        [1.0986, 1.0986]
        >>> [name for name, _ in rule.named_parameters()], [n for n, _ in Attention(3, gated=True).named_parameters()]
        (['V', 'w'], ['V', 'w', 'U'])
    """

    def __init__(
        self,
        classes: int,
        *,
        hidden: int = 128,
        gated: bool = False,
        shared: bool = False,
        sigmoid: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def drawn(rows: int, columns: int) -> nn.Parameter:
            values = torch.rand(rows, columns, generator=generator) * 2 - 1
            return nn.Parameter(values * columns**-0.5)

        self.V = drawn(hidden, classes)
        self.w = drawn(1 if shared else classes, hidden)
        self.U = drawn(hidden, classes) if gated else None
        self.sigmoid = sigmoid

    def weights(self, scores: torch.Tensor, tags: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """a_c at every cell, [B, C or 1, h, w], 0 on padding, to be looked at."""
        _, a = self._instances_and_weights(scores, tags, valid)
        return a.view(a.shape[0], a.shape[1], *scores.shape[2:])

    def _instances_and_weights(
        self, scores: torch.Tensor, tags: torch.Tensor, valid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        s = flat_scores(scores, tags)
        cells = cells_of(tags, valid, s.dtype)
        known = cells.known[:, :, None]
        h = (s - s.sum(dim=1, keepdim=True) / known.sum(dim=1, keepdim=True).clamp_min(1)) * known
        rows = h.transpose(1, 2)
        hidden = torch.tanh(linear(rows, self.V.to(h.dtype)))
        if self.U is not None:
            hidden = hidden * torch.sigmoid(linear(rows, self.U.to(h.dtype)))
        logits = linear(hidden, self.w.to(h.dtype)).transpose(1, 2)
        return h, logits.masked_fill(~cells.valid, -torch.inf).softmax(dim=2)

    def forward(
        self,
        scores: torch.Tensor,
        tags: torch.Tensor,
        valid: torch.Tensor,
        *,
        segments: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss of each bag, [B]."""
        h, a = self._instances_and_weights(scores, tags, valid)
        return scores_loss((a * h).sum(dim=2), tags, cells_of(tags, valid, h.dtype), self.sigmoid)


def unbuilt(
    scores: torch.Tensor,
    tags: torch.Tensor,
    valid: torch.Tensor,
    *,
    segments: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Stands in for a learned rule until `RuleEntry.build(classes)` has made its parameters."""
    raise TypeError("this rule is learned: call build(classes) of its row and train what that returns")
