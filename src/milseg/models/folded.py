"""The same network with fewer layers, for inference: batch norm, and on a CPU ReLU, in the convolution before them."""

from __future__ import annotations

import copy

import torch
from torch import nn

from milseg.models.fcn import FCN


def folded(model: FCN, *, one_call: bool = True) -> FCN:
    """A copy for inference that gives the same scores up to rounding; the model itself stays as it is.

    In evaluation mode batch norm multiplies each channel by gamma / sqrt(variance + eps) and adds a number, which the
    rows of the convolution before it can do as well. Weights lie channels-last, which CPUs compute fastest; there a
    ReLU becomes the last step of its convolution, so that a map is written once. A network without batch norm comes
    back itself: there is little to save.

    Args:
        one_call: join ReLU too; without it the network has torch's own layers alone, as its export needs.

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
    if one_call and _has_call():
        for module in network.modules():
            if isinstance(module, nn.Sequential):
                _with_activations(module)
    return network.to(memory_format=torch.channels_last)


class ActivatedConv(nn.Conv2d):
    """A convolution and the ReLU after it, float32 on a CPU in one call of oneDNN; elsewhere one after the other."""

    def __init__(self, conv: nn.Conv2d, activation: nn.Module) -> None:
        sizes = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            *sizes,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=conv.bias is not None,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.activation = activation
        # oneDNN's name for it, and its numbers.
        self._named: tuple[str, list[float]] = (
            ("hardtanh", [0.0, 6.0]) if isinstance(activation, nn.ReLU6) else ("relu", [])
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.device.type != "cpu" or input.dtype != torch.float32:
            found: torch.Tensor = self.activation(super().forward(input))
            return found
        name, numbers = self._named
        made: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            input,
            self.weight,
            self.bias,
            self.padding,
            self.stride,
            self.dilation,
            self.groups,
            name,
            numbers,
            "",
        )
        return made


def _has_call() -> bool:
    """Whether this torch has the call, which its own compiler makes too."""
    return torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def _with_activations(parent: nn.Sequential) -> None:
    """In a sequence what follows a convolution is what works on its map; in other modules nothing says so."""
    before: str | None = None
    for name, child in list(parent.named_children()):
        if isinstance(child, nn.Conv2d):
            before = name
        elif isinstance(child, nn.ReLU | nn.ReLU6) and before is not None:
            conv = getattr(parent, before)
            setattr(parent, before, ActivatedConv(conv, child))
            setattr(parent, name, nn.Identity())
            before = None
        elif not isinstance(child, nn.Identity):
            before = None


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
