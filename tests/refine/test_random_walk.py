from __future__ import annotations

import math

import pytest
import torch

from milseg.models.backbone_table import BACKBONES
from milseg.models.backbones import build_fcn
from milseg.models.fcn import geometry, spatial_layers
from milseg.refine.random_walk import random_walk, transition_matrix, walking_size


def slow_transitions(features: list[torch.Tensor], power: float) -> list[list[float]]:
    """Every pair by itself."""
    places = features[0][0].numel()
    centred = []
    for layer in features:
        flat = layer.flatten(1).tolist()
        means = [sum(row) / places for row in flat]
        centred.append(
            [[row[i] - mean for row, mean in zip(flat, means, strict=True)] for i in range(places)]
        )
    rows = []
    for i in range(places):
        weights = []
        for j in range(places):
            alike = 0.0
            for layer in centred:
                a, b = layer[i], layer[j]
                length = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
                alike += max(0.0, sum(x * y for x, y in zip(a, b, strict=True)) / length)
            weights.append((1.0 if i == j else alike / len(centred)) ** power)
        rows.append([weight / sum(weights) for weight in weights])
    return rows


def test_transitions_equal_every_pair_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(channels, 3, 4, generator=generator) for channels in (5, 2)]
    for power in (4, 1.5):
        expected = torch.tensor(slow_transitions(features, power))
        torch.testing.assert_close(transition_matrix(features, power=power), expected, rtol=1e-4, atol=1e-6)


def test_a_step_is_the_mean_over_where_it_may_come_to() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(3, 2, 3, generator=generator)
    step = torch.rand(6, 6, generator=generator)
    step /= step.sum(dim=1, keepdim=True)
    p = [[float(x) for x in row] for row in scores.softmax(dim=0).flatten(1)]
    for _ in range(2):
        p = [[sum(float(step[i, j]) * row[j] for j in range(6)) for i in range(6)] for row in p]
    sharp = torch.tensor(p) ** 3
    expected = (sharp / sharp.sum(dim=0)).view(3, 2, 3)
    torch.testing.assert_close(
        random_walk(scores, step, steps=2, sharpness=3).exp(), expected, rtol=1e-4, atol=1e-6
    )


def test_what_a_part_says_spreads_to_its_like_and_no_further() -> None:
    """The network is sure of one place of a thing; the rest of it follows, what looks otherwise does not."""
    look = torch.tensor([[1.0, 1.0, 1.0, -1.0, -1.0, -1.0]]).view(1, 1, 6)
    scores = torch.zeros(2, 1, 6)
    scores[0] = 0.4
    scores[1, 0, 0] = 6.0
    after = random_walk(scores, transition_matrix([look]), steps=2)
    assert after.argmax(dim=0)[0].tolist() == [1, 1, 1, 0, 0, 0]
    assert scores.argmax(dim=0)[0].tolist() == [1, 0, 0, 0, 0, 0]


def test_ruled_out_classes_stay_out_and_a_photo_of_one_colour_stays_finite() -> None:
    scores = torch.randn(3, 4, 4)
    scores[1] = -torch.inf
    after = random_walk(scores, transition_matrix([torch.ones(2, 4, 4)]), steps=2)
    assert torch.isfinite(after).all()
    assert float(after[1].max()) < -200
    torch.testing.assert_close(after.exp().sum(dim=0), torch.ones(4, 4))


def test_a_large_map_walks_on_a_coarser_grid_and_keeps_its_detail() -> None:
    scores = torch.zeros(2, 96, 128)
    scores[1, 40:44] = 3.0  # a stripe of four rows
    scores[0] += 1.0
    height, width = walking_size(96, 128)
    assert height * width <= 4096 < 96 * 128
    after = random_walk(scores, torch.eye(height * width), steps=2)
    assert after.shape == scores.shape
    assert torch.equal(after.argmax(dim=0), scores.argmax(dim=0))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_has_layers_to_look_at(backbone: str) -> None:
    row = BACKBONES[backbone]
    model = build_fcn(backbone, 2, output_stride=row.strides[-1]).eval()
    with torch.inference_mode():
        maps = model.features(torch.rand(1, 3, 70, 96))
    assert len(maps) == len(row.return_layers) == 3
    assert all(m.values.shape[0] == 1 and m.values.shape[2] >= 5 for m in maps)
    strides = [m.stride for m in maps]
    assert strides == sorted(strides)
    assert strides[-1] <= geometry(spatial_layers(model.body)).stride
