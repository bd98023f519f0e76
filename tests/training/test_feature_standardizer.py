"""The score layer's steps on standardised features, against a network that really standardises them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from milseg.config import TrainConfig
from milseg.data.bags import Bag, BagSet
from milseg.data.image import normalise
from milseg.errors import UserError
from milseg.models.fcn import FCN
from milseg.training.feature_standardizer import LEAST, FeatureStandardizer
from milseg.training.trainer import BIAS_RATE, fit

CONFIG = TrainConfig(
    rule="weighted-pooling",
    max_steps=8,
    batch_size=2,
    learning_rate=3e-3,
    score_rate=10.0,
    weight_decay=0.0,
    warmup=3,
    schedule="linear",
    standardize_features=True,
)


def bags(count: int = 5) -> BagSet:
    """Photos of several sizes with a red or a blue square."""
    random = np.random.default_rng(0)
    made = []
    for i in range(count):
        number = 1 + i % 2
        photo = random.integers(100, 140, (14 + i, 20 - i, 3)).astype(np.uint8)
        photo[3:9, 2:8] = (230, 20, 20) if number == 1 else (20, 20, 230)
        tags = (1, int(number == 1), int(number == 2))
        made.append(Bag(name=f"b{i}", photo=photo, tags=tags, mask=None))
    return BagSet(name="toy", classes=("background", "red", "blue"), bags=tuple(made), tags_from="here")


def network() -> FCN:
    """Rectified features of unequal size, no norm; rows that are not zero."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU())
    model = FCN(body, nn.Sequential(nn.Dropout(0.0)), nn.Conv2d(6, 3, 1))
    with torch.no_grad():
        body[0].weight.mul_(torch.tensor([1.0, 3.0, 10.0, 0.3, 5.0, 2.0])[:, None, None, None])
        body[0].bias.add_(1.0)
    return model


def features(model: FCN, bag: Bag) -> torch.Tensor:
    """[D, places] of one photo."""
    with torch.no_grad():
        return model.head(model.body(normalise(bag.photo)[None]))[0].flatten(1).double()


def measured(model: FCN, found: BagSet, *, longest_side: int | None = None) -> FeatureStandardizer:
    standard = FeatureStandardizer(model.score_layer.in_channels, bias_rate=BIAS_RATE)
    standard.measure(model, found.bags, longest_side=longest_side)
    return standard


def explicit(model: FCN, standard: FeatureStandardizer) -> FCN:
    """The same scores from a batch norm with these statistics in front of the score layer."""
    rows, biases = model.score_layer.weight.detach().flatten(1), model.score_layer.bias.detach()
    norm = nn.BatchNorm2d(len(standard.mean), affine=False, eps=0.0)
    norm.running_mean.copy_(standard.mean)
    norm.running_var.copy_(standard.deviation**2)
    made = FCN(model.body, nn.Sequential(norm), nn.Conv2d(rows.shape[1], len(rows), 1))
    made.set_rows(rows * standard.deviation, biases + rows @ standard.mean)
    return made


@pytest.mark.parametrize("limit", [None, 0.3])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_steps_are_those_of_a_network_that_standardises(limit: float | None, momentum: float) -> None:
    config = replace(CONFIG, max_gradient=limit, momentum=momentum)
    model, other = network(), network()
    slow = explicit(other, measured(other, bags()))
    plain = network()
    found = fit(model, bags(), config, progress=False)
    expected = fit(slow, bags(), replace(config, standardize_features=False), progress=False)
    assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in expected], rel=1e-4)
    photo = normalise(bags().bags[0].photo)[None]
    torch.testing.assert_close(model(photo), slow(photo), rtol=1e-3, atol=1e-4)
    fit(plain, bags(), replace(config, standardize_features=False), progress=False)
    assert float((model(photo) - plain(photo)).detach().abs().max()) > 0.01  # steps in W and b are others


def test_what_is_measured() -> None:
    model = network()
    standard = measured(model, bags())
    each = [features(model, bag) for bag in bags().bags]
    mean = torch.stack([one.mean(dim=1) for one in each]).mean(dim=0)
    square = torch.stack([one.square().mean(dim=1) for one in each]).mean(dim=0)
    torch.testing.assert_close(standard.mean, mean.float())
    torch.testing.assert_close(standard.deviation, (square - mean**2).sqrt().float())


def test_photos_are_seen_at_the_size_of_training() -> None:
    model = network()
    small = measured(model, bags(), longest_side=9)
    assert not torch.allclose(small.deviation, measured(model, bags()).deviation, rtol=0.01)


def test_a_feature_that_never_fires_is_not_blown_up() -> None:
    model = network()
    with torch.no_grad():
        model.body[0].bias[3] = -1e6
    standard = measured(model, bags())
    least = LEAST * float(standard.deviation[[0, 1, 2, 4, 5]].square().sum().div(6).sqrt())
    assert float(standard.deviation[3]) == pytest.approx(least, rel=1e-4)
    with torch.no_grad():
        model.body[0].bias.fill_(-1e6)
    assert measured(model, bags()).deviation.tolist() == [1.0] * 6


def test_measuring_leaves_the_network_as_it_was() -> None:
    model = network()
    model.train()
    model.head[0].eval()
    measured(model, bags())
    assert model.training
    assert model.body.training
    assert not model.head[0].training
    assert not model.score_layer._forward_pre_hooks
    with pytest.raises(UserError, match="missing"):
        measured(model, replace(bags(), bags=(replace(bags().bags[0], photo=Path("missing.jpg")),)))
    assert not model.score_layer._forward_pre_hooks


def test_a_stopped_run_goes_on_with_what_it_measured(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(step: int, loss: float) -> None:
        if step == 4:
            raise Stop

    config = replace(CONFIG, checkpoint_every=2, max_gradient=0.3)
    whole, resumed = network(), network()
    history = fit(whole, bags(), config, progress=False)
    with pytest.raises(Stop):
        fit(network(), bags(), config, out=tmp_path, progress=False, on_step=stop)
    with torch.no_grad():
        resumed.body[0].weight.mul_(7)  # what is measured anew would be something else
    again = fit(resumed, bags(), config, out=tmp_path, resume=True, progress=False)
    assert [r["loss"] for r in again] == [r["loss"] for r in history]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    kept = load_file(tmp_path / "checkpoint.safetensors")
    # Training may lay the network out with channels last, which rounds otherwise.
    torch.testing.assert_close(kept["standard.mean"], measured(network(), bags()).mean, rtol=1e-5, atol=0.0)


def test_large_features_are_learned_from_as_well_as_small_ones() -> None:
    """Features a hundred times as large and rows a hundredth: the same scores, so the same steps."""
    small, large = network(), network()
    with torch.no_grad():
        for parameter in large.body.parameters():
            parameter.mul_(100)
        large.score_layer.weight.div_(100)
    rows = replace(CONFIG, frozen_stride=2, max_gradient=1.0)
    losses = [[r["loss"] for r in fit(model, bags(), rows, progress=False)] for model in (small, large)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
