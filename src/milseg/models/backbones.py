"""How each torchvision classifier is cast into a fully convolutional network.

A new backbone is one row of `milseg.models.backbone_table.BACKBONES`, and here a function that takes it apart, if none
of these does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from milseg.errors import UserError, unknown_name
from milseg.models.backbone_table import backbone_row
from milseg.models.fcn import FCN, DensePool, _one
from milseg.utils.registry import load_object

VGG_PADDINGS = ("same", "pad100", "valid")
# Parts of a classifier: feature layers, layers before the scores, the layer of scores as a 1x1 convolution.
Parts = tuple[nn.Module, nn.Sequential, nn.Conv2d]


def linear_to_conv(linear: nn.Linear, kernel: int = 1, *, padding: int = 0) -> nn.Conv2d:
    """A fully connected layer as the convolution that computes the same on a kernel x kernel window.

    The weights are the linear layer's own memory, seen as [out, in, kernel, kernel]: nothing is copied.
    """
    channels = linear.in_features // kernel**2
    # On the meta device the layer costs no memory and no random numbers before it gets its weights.
    conv = nn.Conv2d(channels, linear.out_features, kernel, padding=padding, device="meta")
    conv.weight = nn.Parameter(linear.weight.detach().view(linear.out_features, channels, kernel, kernel))
    conv.bias = nn.Parameter(linear.bias.detach())
    return conv


def vgg_parts(network: Any) -> Parts:
    """Body to pool5; fc6, fc7 and their dropout; fc8."""
    for layer in network.features:
        if isinstance(layer, nn.MaxPool2d):
            # As Caffe pools. The same at multiples of 32; at other sizes no border pixels are lost.
            layer.ceil_mode = True
    fc6, fc7, fc8 = (network.classifier[i] for i in (0, 3, 6))
    dropout = network.classifier[2].p
    head = nn.Sequential(
        linear_to_conv(fc6, 7, padding=3),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        linear_to_conv(fc7),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
    )
    return network.features, head, linear_to_conv(fc8)


def squeezenet_parts(network: Any) -> Parts:
    """Already convolutional: dropout, then the 1x1 convolution; its ReLU is left out (see FCN)."""
    return network.features, nn.Sequential(network.classifier[0]), network.classifier[1]


def mobilenet_parts(network: Any) -> Parts:
    return network.features, nn.Sequential(network.classifier[0]), linear_to_conv(network.classifier[1])


def resnet_parts(network: Any) -> Parts:
    names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    body = nn.Sequential(OrderedDict((name, getattr(network, name)) for name in names))
    return body, nn.Sequential(), linear_to_conv(network.fc)


def convnext_parts(network: Any) -> Parts:
    """The classifier's layer norm works on each place by itself, so the map keeps it."""
    return network.features, nn.Sequential(network.classifier[0]), linear_to_conv(network.classifier[2])


def tiny_parts(network: Any) -> Parts:
    return network.features, nn.Sequential(), linear_to_conv(network.classifier)


def make_classifier(backbone: str, classes: int, *, seed: int = 0) -> nn.Module:
    """The classifier with its authors' random start; the same seed gives the same weights.

    The global random state is left as it was.
    """
    row = backbone_row(backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return row.make(classes)


def dilate(module: nn.Module, wanted: int) -> None:
    """Take away the strides beyond `wanted` and dilate what follows, in place.

    A layer that loses its stride computes all the places in between as well, and every later layer reaches
    as many times further, so that it meets the same inputs as before (Long et al. 2015, section 3.2, "filter
    rarefaction"). The old places keep their values exactly, at the borders too: padding grows likewise.
    """
    _dilate(module, wanted, stride=1, dilation=1)


def _dilate(parent: nn.Module, wanted: int, *, stride: int, dilation: int) -> tuple[int, int]:
    """Walk the children of `parent`; returns the stride and the dilation after the last one."""
    entry = stride
    for name, child in parent.named_children():
        if name == "downsample":
            # The shortcut of a residual block runs beside its main path, which the walk has just passed.
            for conv in child.modules():
                if isinstance(conv, nn.Conv2d):
                    conv.stride = (stride // entry,) * 2
        elif isinstance(child, nn.Conv2d | nn.MaxPool2d):
            step = _one(child.stride)
            keep = stride * step <= wanted
            if isinstance(child, nn.Conv2d):
                child.dilation = (_one(child.dilation) * dilation,) * 2
                child.padding = (_one(child.padding) * dilation,) * 2  # type: ignore[arg-type]
                child.stride = child.stride if keep else (1, 1)
            elif not keep:
                assert child.ceil_mode, "a pool that drops its last places cannot be made dense"
                assert _one(child.padding) == 0
                dense = DensePool(_one(child.kernel_size), dilation=dilation, extra=(step - 1) * dilation)
                setattr(parent, name, dense)
            stride, dilation = (stride * step, dilation) if keep else (stride, dilation * step)
        else:
            stride, dilation = _dilate(child, wanted, stride=stride, dilation=dilation)
    return stride, dilation


def cast_classifier(
    backbone: str,
    network: nn.Module,
    *,
    output_stride: int | None = None,
    vgg_padding: str = "same",
    frozen_batch_norm: bool = True,
) -> FCN:
    """Cast a classifier into a fully convolutional network.

    Args:
        backbone: a name in `BACKBONES`.
        network: the classifier, as `make_classifier` or `load_classifier` gives it; taken over, not copied:
            do not use it afterwards.
        output_stride: pixels from place to place; None keeps the network's own.
        vgg_padding: "same" pads fc6 by 3 places; "pad100" pads the photo by 100 pixels in the first
            convolution, as the FCN authors did; "valid" pads nothing: one place for each whole 7x7 window.
        frozen_batch_norm: see `FCN`.

    Raises:
        UserError: unknown backbone or padding, or a stride that the backbone does not have.
    """
    row = backbone_row(backbone)
    stride = row.strides[0] if output_stride is None else output_stride
    if stride not in row.strides:
        raise UserError(
            f"{backbone} has no output stride {stride}; choose one of {', '.join(map(str, row.strides))}"
        )
    if vgg_padding not in VGG_PADDINGS:
        raise unknown_name("VGG padding", vgg_padding, VGG_PADDINGS)
    if vgg_padding != "same" and backbone != "vgg16":
        raise UserError(f"{backbone} has no fc6 to pad: VGG padding {vgg_padding!r} is for vgg16 only")
    take_apart: Callable[[Any], Parts] = load_object(row.parts)
    body, head, score_layer = take_apart(network)
    if vgg_padding != "same":
        fc6 = head[0]
        assert isinstance(fc6, nn.Conv2d)
        fc6.padding = (0, 0)
    dilate(nn.ModuleList([body, head]), stride)
    return FCN(
        body,
        head,
        score_layer,
        native_stride=row.strides[0],
        image_padding=99 if vgg_padding == "pad100" else 0,
        classify_by=row.classify_by,
        frozen_batch_norm=frozen_batch_norm,
        return_layers=row.return_layers,
    )


def build_fcn(
    backbone: str,
    classes: int,
    *,
    output_stride: int | None = None,
    vgg_padding: str = "same",
    frozen_batch_norm: bool = True,
    seed: int = 0,
) -> FCN:
    """A network without pre-training: random start, cast. See `cast_classifier` for the arguments.

    >>> build_fcn("squeezenet1_0", 21, output_stride=8).offset
    17.0
    """
    return cast_classifier(
        backbone,
        make_classifier(backbone, classes, seed=seed),
        output_stride=output_stride,
        vgg_padding=vgg_padding,
        frozen_batch_norm=frozen_batch_norm,
    )
