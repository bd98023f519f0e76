"""Random bags, and the slow way to go through them: one number at a time."""

from __future__ import annotations

import math

import torch

from milseg.data.bags import UNKNOWN


def random_case(seed=0, batch=3, classes=4, height=3, width=5, dtype=torch.float64):
    """Scores, tags (background present in every bag) and valid cells, the first two bags padded."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, classes, height, width, generator=g, dtype=dtype) * 2
    tags = torch.randint(0, 2, (batch, classes), generator=g, dtype=torch.int8)
    tags[:, 0] = 1
    valid = torch.ones(batch, height, width, dtype=torch.bool)
    valid[0, :, -2:] = False
    if batch > 1:
        valid[1, -1] = False
    return scores, tags, valid


def random_extras(seed, valid, classes=4):
    """About four segments a bag, some cells in none; and masks."""
    g = torch.Generator().manual_seed(seed)
    return {
        "segments": torch.randint(-1, 4, valid.shape, generator=g),
        "masks": torch.randint(0, classes, valid.shape, generator=g),
    }


class Bag:
    """One bag as plain numbers: the valid cells in reading order, the classes with a known tag."""

    def __init__(self, scores, tags, valid, segments=None, masks=None):
        classes = len(tags)
        self.known = [c for c in range(classes) if tags[c] != UNKNOWN]
        self.present = [c for c in self.known if tags[c] == 1]
        self.absent = [c for c in self.known if tags[c] == 0]
        self.front = [c for c in self.present if c != 0]
        height, width = valid.shape
        where = [(y, x) for y in range(height) for x in range(width) if valid[y, x]]
        self.s = [{c: float(scores[c, y, x]) for c in self.known} for y, x in where]
        self.n = len(self.s)
        self.p = [softmax(cell) for cell in self.s]
        self.segment = None if segments is None else [int(segments[y, x]) for y, x in where]
        self.mask = None if masks is None else [int(masks[y, x]) for y, x in where]


def bags_of(scores, tags, valid, segments=None, masks=None):
    none = [None] * len(scores)
    parts = (
        scores,
        tags,
        valid,
        none if segments is None else segments,
        none if masks is None else masks,
    )
    return [Bag(*part) for part in zip(*parts, strict=True)]


def slow(equation, scores, tags, valid):
    """`equation(bag)` for each bag, as a tensor."""
    return torch.tensor([equation(bag) for bag in bags_of(scores, tags, valid)], dtype=scores.dtype)


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def softmax(values):
    """Of a dict of numbers."""
    total = sum(math.exp(v) for v in values.values())
    return {k: math.exp(v) / total for k, v in values.items()}
