from __future__ import annotations

import pytest
import torch
from torch import nn

from milseg.models.backbones import BACKBONES, build_fcn
from milseg.models.folded import ActivatedConv, folded


def random_norms(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.1, generator=generator)


@pytest.mark.parametrize("backbone", ["tiny", "mobilenet_v2", "resnet18", "resnet50"])
def test_folding_keeps_the_scores(backbone: str) -> None:
    model = build_fcn(backbone, 3, output_stride=BACKBONES[backbone].strides[1]).eval()
    random_norms(model)
    nn.init.normal_(model.score_layer.weight, std=0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quick = folded(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in quick.modules())
    photo = torch.randn(1, 3, 70, 90)
    with torch.inference_mode():
        expected, found = model(photo), quick(photo)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert (quick.stride, quick.offset, quick.field) == (model.stride, model.offset, model.field)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize(("backbone", "joined"), [("tiny", 7), ("mobilenet_v2", 35), ("resnet18", 1)])
def test_a_relu_after_a_convolution_in_a_sequence_is_part_of_it(backbone: str, joined: int) -> None:
    quick = folded(build_fcn(backbone, 3).eval())
    assert sum(isinstance(module, ActivatedConv) for module in quick.modules()) == joined
    # In a residual block one ReLU serves several places, which only its own code knows: it stays.
    left = sum(isinstance(module, nn.ReLU | nn.ReLU6) for module in quick.modules()) - joined
    assert left == (8 if backbone == "resnet18" else 0)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(inplace=True)])
def test_one_call_is_convolution_then_relu(activation: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, stride=2, padding=2, dilation=2, groups=2)
    for tensor in conv.parameters():
        tensor.data.normal_(std=3.0, generator=generator)
    photo = torch.randn(2, 4, 17, 23, generator=generator)
    joined = ActivatedConv(conv, activation)
    with torch.inference_mode():
        expected = activation(conv(photo))
        assert (expected.max() > 6) == isinstance(activation, nn.ReLU)
        torch.testing.assert_close(joined(photo), expected)
        # What oneDNN is not asked for goes one after the other.
        torch.testing.assert_close(joined.double()(photo.double()), expected.double(), rtol=1e-4, atol=1e-4)


def test_without_the_call_the_relu_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milseg.models.folded._has_call", lambda: False)
    quick = folded(build_fcn("tiny", 3).eval())
    assert not any(isinstance(module, ActivatedConv) for module in quick.modules())


def test_a_network_for_export_has_torch_layers_alone() -> None:
    quick = folded(build_fcn("tiny", 3).eval(), one_call=False)
    assert not any(isinstance(module, ActivatedConv | nn.BatchNorm2d) for module in quick.modules())


def test_nothing_to_fold_nothing_copied() -> None:
    model = build_fcn("squeezenet1_0", 3).eval()
    assert folded(model) is model
