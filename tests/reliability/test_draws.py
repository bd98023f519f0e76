"""Case 28: each photo of a run has numbers of its own, whoever reads it."""

from __future__ import annotations

import torch

from milseg.config import TrainConfig
from milseg.training.grad_accumulation import dropout_of, pieces_of
from milseg.training.schedule import batch_at, zooms_at


def test_bags_of_a_step_and_steps_draw_different_numbers() -> None:
    config = TrainConfig(batch_size=8, flip=True, zoom=2.0)
    drawn = [zoom for step in range(20) for zoom in zooms_at(step, config) or []]
    assert len({(zoom.factor, zoom.down, zoom.across) for zoom in drawn}) == 160
    flips = [tuple(batch_at(step, 40, config)[1]) for step in range(20)]
    assert len(set(flips)) >= 18
    # And the same ones again.
    assert drawn == [zoom for step in range(20) for zoom in zooms_at(step, config) or []]


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
