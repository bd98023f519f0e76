"""The same network with fewer layers, for inference: batch norm, and on a CPU ReLU, in the convolution before them."""

from __future__ import annotations

import copy

import torch
from torch import nn

from milseg.models.fcn import FCN
from milseg.utils.devices import memory_format

# Weights of at least so many numbers are laid out once, which is a large part of such a layer's time. Small ones are
# not: a layout for another size of map can be much slower than torch's own choice each time.
LARGE = 2**20
# Side of the map that they are laid out for.
TYPICAL_SIDE = 20


def fused(model: FCN, *, one_call: bool = True) -> FCN:
    """A copy for inference that gives the same scores up to rounding; the model itself stays as it is.

    In evaluation mode batch norm multiplies each channel by gamma / sqrt(variance + eps) and adds a number, which the
    rows of the convolution before it can do as well. In float32 on a CPU three things more: a ReLU becomes the last
    step of its convolution, so that a map is written once; a convolution of 1 x 1 becomes the product of two matrices
    that it is; and large weights lie as oneDNN computes with them. Other weights lie as `memory_format` says. Where
    there is nothing to do, the model comes back itself.

    Args:
        one_call: do those three too; without it the network has torch's own layers alone, as its export needs.

    >>> from milseg.models.backbones import build_fcn
    >>> model, photo = build_fcn("tiny", 3).eval(), torch.rand(1, 3, 20, 30)
    >>> with torch.inference_mode():
    ...     bool(torch.allclose(fused(model)(photo), model(photo), atol=1e-5))
    True
    """
    joins = one_call and _has_calls(model)
    if not joins and not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return model
    # What will be laid out anew is not copied before: VGG-16 has half a gigabyte of it.
    large = [
        conv.weight for conv in model.modules() if isinstance(conv, nn.Conv2d) and joins and _is_large(conv)
    ]
    network = copy.deepcopy(model, {id(weight): weight for weight in large}).eval()
    _fold(network)
    if joins:
        _join(network)
    device = next((weight.device for weight in network.parameters()), torch.device("cpu"))
    return network.requires_grad_(False).to(memory_format=memory_format(network, device))


class JoinedConv(nn.Conv2d):
    """A convolution and the ReLU after it, where there is one, in one call of oneDNN; float32 on a CPU alone."""

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None = None) -> None:
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
        # oneDNN's name for the activation, and its numbers.
        self._after: tuple[str, list[float], str] = ("none", [], "")
        if activation is not None:
            bounded = isinstance(activation, nn.ReLU6)
            self._after = ("hardtanh", [0.0, 6.0], "") if bounded else ("relu", [], "")
        self._laid_out: torch.Tensor | None = None
        if _is_large(conv):
            size = [1, self.in_channels, TYPICAL_SIDE, TYPICAL_SIDE]
            self._laid_out = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight.detach(), self.padding, self.stride, self.dilation, self.groups, size
            )
            del self.weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor
        if _is_product(self):
            places = input.permute(0, 2, 3, 1)
            made = torch.ops.mkldnn._linear_pointwise(
                places, self.weight.view(self.out_channels, -1), self.bias, *self._after
            )
            return made.permute(0, 3, 1, 2)
        made = torch.ops.mkldnn._convolution_pointwise(
            input,
            self.weight if self._laid_out is None else self._laid_out,
            self.bias,
            self.padding,
            self.stride,
            self.dilation,
            self.groups,
            *self._after,
        )
        return made


def _is_product(conv: nn.Conv2d) -> bool:
    """Whether every place's output comes from its own input alone, all channels to all."""
    return conv.kernel_size == conv.stride == (1, 1) and conv.groups == 1 and conv.padding == (0, 0)


def _is_large(conv: nn.Conv2d) -> bool:
    return conv.weight.numel() >= LARGE and not _is_product(conv)


def _has_calls(model: FCN) -> bool:
    """Whether the model is for oneDNN, and this torch has the calls, which its own compiler makes too."""
    first = next(model.parameters())
    calls = ("_convolution_pointwise", "_linear_pointwise", "_reorder_convolution_weight")
    return (
        first.device.type == "cpu"
        and first.dtype == torch.float32
        and torch._C._has_mkldnn
        and all(hasattr(torch.ops.mkldnn, call) for call in calls)
    )


def _join(parent: nn.Module) -> None:
    """Every convolution that one call serves better becomes one."""
    children = [
        (name, child) for name, child in parent.named_children() if not isinstance(child, nn.Identity)
    ]
    names = [name for name, _ in children]
    for i, (name, child) in enumerate(children):
        if not isinstance(child, nn.Conv2d):
            _join(child)
            continue
        relu = _relu_of(parent, name, names[i + 1 :])
        if relu is not None or _is_product(child) or _is_large(child):
            setattr(parent, name, JoinedConv(child, None if relu is None else getattr(parent, relu)))
        if relu is not None:
            setattr(parent, relu, nn.Identity())


def _relu_of(parent: nn.Module, name: str, following: list[str]) -> str | None:
    """What the ReLU is called that works on a convolution's map alone.

    In a sequence it is what follows; SqueezeNet names it after its convolution. In other modules nothing says so.
    """
    after = following[0] if isinstance(parent, nn.Sequential) and following else f"{name}_activation"
    return after if isinstance(getattr(parent, after, None), nn.ReLU | nn.ReLU6) else None


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
