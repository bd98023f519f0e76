"""The same network with fewer layers, for inference: batch norm as part of the convolution before it."""

from __future__ import annotations

import copy

import torch
from torch import nn

from milseg.models.fcn import FCN


def folded(model: FCN) -> FCN:
    """A copy for inference that gives the same scores up to rounding; the model itself stays as it is.

    In evaluation mode batch norm multiplies each channel by gamma / sqrt(variance + eps) and adds a number, which the
    rows of the convolution before it can do as well. Weights lie channels-last, which CPUs compute fastest. A network
    without batch norm comes back itself: there is nothing to save.

    >>> from milseg.models.backbones import build_fcn
    >>> model, photo = build_fcn("tiny", 3).eval(), torch.rand(1, 3, 20, 30)
    >>> with torch.inference_mode():
    ...     bool(torch.allclose(folded(model)(photo), model(photo), atol=1e-5))
    True
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return model
    network = copy.deepcopy(model).eval().requires_grad_(False)
    _fold(network)
    return network.to(memory_format=torch.channels_last)


def _fold(parent: nn.Module) -> None:
    before: tuple[str, nn.Module] | None = None
    for name, child in list(parent.named_children()):
        if isinstance(child, nn.BatchNorm2d) and before is not None and isinstance(before[1], nn.Conv2d):
            setattr(parent, before[0], _together(before[1], child))
            setattr(parent, name, nn.Identity())
        else:
            _fold(child)
        before = (name, child)


def _together(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    # In double precision, so that only the result is rounded.
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    bias = 0.0 if conv.bias is None else conv.bias.double()
    found = copy.deepcopy(conv)
    found.weight = nn.Parameter(
        (conv.weight.double() * scale[:, None, None, None]).to(conv.weight.dtype), requires_grad=False
    )
    found.bias = nn.Parameter(
        (norm.bias.double() + (bias - norm.running_mean.double()) * scale).to(conv.weight.dtype),
        requires_grad=False,
    )
    return found
