"""Case 8: nothing to learn from, nothing to score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from milseg.config import TrainConfig
from milseg.data.bags import BACKGROUND, VOID, Bag, BagSet
from milseg.evaluation.confusion import Evaluation
from milseg.models.backbones import build_fcn
from milseg.rules import RULES
from milseg.training.trainer import fit


def test_a_mask_of_void_alone_is_a_connected_zero() -> None:
    scores = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    tags, valid = torch.ones(2, 3, dtype=torch.int8), torch.ones(2, 4, 5, dtype=torch.bool)
    masks = torch.full((2, 4, 5), VOID)
    masks[1, 0, 0] = 1
    loss = RULES["oracle"].load().rule(scores, tags, valid, masks=masks)
    assert loss[0] == 0
    assert loss[0].requires_grad
    expected = -scores.detach().log_softmax(dim=1)[1, 1, 0, 0]
    torch.testing.assert_close(loss[1].detach(), expected)
    loss.sum().backward()
    assert scores.grad is not None
    assert not scores.grad[0].any()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("settings", [{"rule": "oracle"}, {"mask_weight": 1.0, "rule_weight": 0.0}])
def test_a_batch_of_void_alone_teaches_nothing(settings: dict[str, float]) -> None:
    photo = np.random.default_rng(0).integers(0, 255, (20, 24, 3)).astype(np.uint8)
    void = np.full((20, 24), VOID, dtype=np.uint8)
    bags = BagSet(
        name="void",
        classes=("background", "cat"),
        bags=tuple(Bag(name=f"b{i}", photo=photo, tags=(1, 1), mask=void) for i in range(2)),
        tags_from="generator",
    )
    model = build_fcn("tiny", 2, seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = TrainConfig(max_steps=2, batch_size=2, learning_rate=0.1, weight_decay=0.0, **settings)  # type: ignore[arg-type]
    assert [row["loss"] for row in fit(model, bags, config, progress=False)] == [0.0, 0.0]
    after = model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_photos_of_void_alone_have_no_score() -> None:
    evaluation = Evaluation(["background", "cat"])
    evaluation.update(np.zeros((3, 4), np.uint8), np.full((3, 4), VOID))
    scores = evaluation.compute()
    assert math.isnan(scores.mean_iu)
    assert all(math.isnan(value) for value in scores.per_class_iu.values())
    assert scores.to_json()["mean_iu"] is None
    evaluation.update(np.zeros((1, 4), np.uint8), np.full((1, 4), BACKGROUND))
    assert evaluation.compute().mean_iu == 100.0  # the void photo changes nothing
