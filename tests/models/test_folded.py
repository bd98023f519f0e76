from __future__ import annotations

import pytest
import torch
from torch import nn

from milseg.models.backbones import BACKBONES, build_fcn
from milseg.models.folded import folded


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


def test_nothing_to_fold_nothing_copied() -> None:
    model = build_fcn("squeezenet1_0", 3).eval()
    assert folded(model) is model
