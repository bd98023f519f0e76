"""Case 28: each photo of a run has numbers of its own, whoever reads it."""

from __future__ import annotations

import numpy as np
import torch

from milseg.data.transforms import Sample, Transform, find_transforms
from milseg.training.grad_accumulation import dropout_of, pieces_of


def test_bags_of_a_step_and_steps_draw_different_numbers() -> None:
    transforms = find_transforms("scale(most=2),jitter,blur(probability=1)")
    mask = np.zeros((96, 96), dtype=np.uint8)
    photo = np.random.default_rng(0).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    sample = Sample(photo=photo, size=(96, 96), tags=(1,), mask=mask)

    def drawn(transform: Transform) -> list[bytes]:
        return [transform(sample, seed=0, position=position).photo.tobytes() for position in range(40)]

    for transform in transforms:
        photos = drawn(transform)
        assert len(set(photos)) > 30, transform.name  # some sizes come twice
        assert photos == drawn(transform), transform.name


def test_workers_that_share_a_batch_drop_different_units() -> None:
    """Three workers with the same seed, a part of the batch each: together what one draws for all."""
    network = torch.nn.Sequential(torch.nn.Dropout(0.5)).train()
    ones, parts = torch.ones(6, 64), []
    torch.manual_seed(3)
    whole = network(ones)
    for rows in pieces_of(list(range(6)), 3):
        torch.manual_seed(3)
        with dropout_of(network, rows, 6):
            parts.append(network(ones[rows]))
    assert torch.equal(torch.cat(parts), whole)
    assert len({tuple(part.flatten().tolist()) for part in parts}) == 3
