from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from milseg.models.backbone_table import BACKBONES
from milseg.models.backbones import build_fcn
from milseg.models.fuse import LARGE, JoinedConv, fused


def random_norms(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.1, generator=generator)


@pytest.mark.parametrize(
    "backbone", ["tiny", "mobilenet_v2", "resnet18", "resnet50", "squeezenet1_0", "convnext_tiny"]
)
def test_folding_keeps_the_scores(backbone: str) -> None:
    model = build_fcn(backbone, 3, output_stride=BACKBONES[backbone].strides[1]).eval()
    random_norms(model)
    nn.init.normal_(model.score_layer.weight, std=0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quick = fused(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in quick.modules())
    assert not any(parameter.requires_grad for parameter in quick.parameters())
    for size in ((70, 90), (200, 41)):
        photos = torch.randn(2, 3, *size)
        with torch.inference_mode():
            expected, found = model(photos), quick(photos)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert (quick.stride, quick.offset, quick.field) == (model.stride, model.offset, model.field)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("backbone", "with_relu"), [("tiny", 7), ("mobilenet_v2", 35), ("resnet18", 1), ("squeezenet1_0", 25)]
)
def test_a_relu_that_works_on_one_convolution_alone_is_part_of_it(backbone: str, with_relu: int) -> None:
    model = build_fcn(backbone, 3).eval()
    relus = sum(isinstance(module, nn.ReLU | nn.ReLU6) for module in model.modules())
    quick = fused(model)
    # In a residual block one ReLU serves several places, which only its own code knows: it stays.
    left = sum(isinstance(module, nn.ReLU | nn.ReLU6) for module in quick.modules())
    assert (relus - left, left) == (with_relu, 8 if backbone == "resnet18" else 0)


def test_every_convolution_of_one_by_one_is_a_product() -> None:
    quick = fused(build_fcn("mobilenet_v2", 3).eval())
    points = [m for m in quick.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert len(points) > 30
    assert all(isinstance(point, JoinedConv) for point in points)


@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.ReLU6(inplace=True)])
@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (3, {"stride": 2, "padding": 2, "dilation": 2, "groups": 2}),
        (1, {}),
        (1, {"bias": False}),
        (1, {"stride": 2}),
        (1, {"padding": 1}),
        (1, {"groups": 2}),
        (1, {"dilation": 2}),
    ],
)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_one_call_is_convolution_then_relu(
    activation: nn.Module | None, kernel: int, options: dict[str, Any], layout: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(4, 8, kernel, **options)
    for tensor in conv.parameters():
        tensor.data.normal_(std=3.0, generator=generator)
    photo = torch.randn(2, 4, 17, 23, generator=generator).contiguous(memory_format=layout)
    joined = JoinedConv(conv, activation)
    with torch.inference_mode():
        expected = conv(photo)
        assert expected.max() > 6
        assert expected.min() < 0
        if activation is not None:
            expected = activation(expected)
        torch.testing.assert_close(joined(photo), expected)


def test_large_weights_lie_once_and_serve_maps_of_any_size() -> None:
    channels = 8
    conv = nn.Conv2d(channels, LARGE // (channels * 49) + 1, 7, padding=6, dilation=2)
    joined = JoinedConv(conv, nn.ReLU())
    assert not hasattr(joined, "weight")
    for size in ((3, 5), (20, 20), (41, 33)):
        photo = torch.randn(1, channels, *size)
        with torch.inference_mode():
            torch.testing.assert_close(joined(photo), conv(photo).relu(), rtol=1e-4, atol=1e-4)


def test_without_the_calls_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milseg.models.fuse._has_calls", lambda model: False)
    quick = fused(build_fcn("tiny", 3).eval())
    assert not any(isinstance(module, JoinedConv) for module in quick.modules())
    model = build_fcn("squeezenet1_0", 3).eval()
    assert fused(model) is model


def test_double_precision_is_left_to_torch() -> None:
    quick = fused(build_fcn("tiny", 3).eval().double())
    assert not any(isinstance(module, JoinedConv) for module in quick.modules())
    with torch.inference_mode():
        assert quick(torch.zeros(1, 3, 20, 30, dtype=torch.float64)).dtype == torch.float64


def test_a_network_for_export_has_torch_layers_alone() -> None:
    quick = fused(build_fcn("tiny", 3).eval(), one_call=False)
    assert not any(isinstance(module, JoinedConv | nn.BatchNorm2d) for module in quick.modules())
