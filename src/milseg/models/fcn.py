"""A classifier cast into a fully convolutional network, and where its places lie on the photo.

The network returns the coarse map of scores, one place every `stride` pixels; nothing here upsamples it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

# How the classifier a network was cast from gets from a map to one vector of logits:
# "window": features pooled to one window of the head's first layer (VGG's fc6);
# "features": features averaged, then head and score layer (ResNet, MobileNet, ConvNeXt, tiny);
# "scores": the rectified score map averaged (SqueezeNet).
Classify = Literal["window", "features", "scores"]

# Branches beside a block's main path: they end on the same places, so the walk along the layers leaves them
# out.
SIDE_BRANCHES = ("downsample", "expand1x1")


class DensePool(nn.Module):
    """A max pool whose stride was taken away: a window at every place instead of every `stride`-th.

    Pads the right and the bottom with -inf, so that the places the strided pool in ceil mode had are all
    there, those with a window cut off by the border included.
    """

    def __init__(self, kernel: int, *, dilation: int, extra: int) -> None:
        super().__init__()
        self.kernel, self.dilation, self.extra = kernel, dilation, extra

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x, (0, self.extra, 0, self.extra), value=-math.inf)
        return F.max_pool2d(padded, self.kernel, stride=1, dilation=self.dilation)

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, dilation={self.dilation}, extra={self.extra}"


class Layer(NamedTuple):
    """What a convolution or a pool does to a row of places; `extra` pads the right side only."""

    kernel: int
    stride: int
    padding: int
    dilation: int
    ceil: bool
    extra: int


def _one(value: int | tuple[int, ...]) -> int:
    """The one number of a setting that torch keeps as an int or as an equal pair."""
    if isinstance(value, int):
        return value
    assert len(set(value)) == 1, f"a layer that treats rows and columns differently: {value}"
    return value[0]


def spatial_layers(module: nn.Module) -> Iterator[Layer]:
    """The convolutions and pools on the main path of a network, in the order in which they run."""
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)
        yield Layer(
            _one(module.kernel_size),
            _one(module.stride),
            _one(module.padding),
            _one(module.dilation),
            False,
            0,
        )
    elif isinstance(module, nn.MaxPool2d):
        yield Layer(
            _one(module.kernel_size),
            _one(module.stride),
            _one(module.padding),
            _one(module.dilation),
            module.ceil_mode,
            0,
        )
    elif isinstance(module, nn.ZeroPad2d):
        yield Layer(1, 1, _one(module.padding), 1, False, 0)
    elif isinstance(module, DensePool):
        yield Layer(module.kernel, 1, 0, module.dilation, False, module.extra)
    else:
        for name, child in module.named_children():
            if name not in SIDE_BRANCHES:
                yield from spatial_layers(child)


class Geometry(NamedTuple):
    """Where places lie: place i is centred on pixel `offset + i * stride` and sees `field` pixels."""

    stride: int
    offset: float
    field: int


class FeatureMap(NamedTuple):
    """Features [B, F, h, w] of an inner layer; place i is centred on pixel offset + i * stride."""

    values: torch.Tensor
    stride: int
    offset: float


def geometry(layers: Iterable[Layer], *, image_padding: int = 0) -> Geometry:
    """Walk the layers: each moves the centre of place 0 by half its kernel less its padding.

    >>> geometry([Layer(3, 1, 1, 1, False, 0), Layer(2, 2, 0, 1, True, 0)])
    Geometry(stride=2, offset=0.5, field=4)
    """
    stride, offset, field = 1, -float(image_padding), 1
    for layer in layers:
        reach = layer.dilation * (layer.kernel - 1)
        offset += stride * (reach / 2 - layer.padding)
        field += stride * reach
        stride *= layer.stride
    return Geometry(stride, offset, field)


def map_length(layers: Iterable[Layer], pixels: int) -> int:
    """How many places a row of so many pixels gives; 0 where the layers would refuse it.

    >>> [map_length([Layer(3, 2, 0, 1, True, 0)], n) for n in (1, 2, 3, 4, 5)]
    [0, 1, 1, 2, 2]
    """
    length = pixels
    for layer in layers:
        room = length + layer.extra + 2 * layer.padding - layer.dilation * (layer.kernel - 1) - 1
        steps = -(-room // layer.stride) if layer.ceil else room // layer.stride
        # In ceil mode a window may hang over the end, but must begin inside.
        if layer.ceil and steps * layer.stride >= length + layer.padding:
            steps -= 1
        length = steps + 1
        if length < 1:
            return 0
    return length


class FCN(nn.Module):
    """Body, head and score layer: a photo of any size in, a coarse map of scores out.

    The scores are linear. SqueezeNet's classifier ends in a ReLU, which is left out here: below zero it
    would make every class tie with the background, whose row starts at zero, and pass no gradient.

    Batch norm is frozen by default: its layers stay in evaluation mode, so the running statistics neither
    change nor give way to those of a batch. Its scale and shift keep `requires_grad` and are trained like
    any weight. Batches of a few photos have no useful statistics, and weights whose batch norm was fused
    into the convolutions (identity plus a bias) classify nothing with it in training mode.

    Args:
        body: feature layers, photos [B, 3, H, W] to features [B, F, h, w].
        head: layers between features and scores (fc6 and fc7 of VGG; dropout; layer norm; nothing).
        score_layer: 1x1 convolution, one row for each class.
        native_stride: the stride before dilation, where it differs from the layers' own.
        image_padding: zeros put around the photo before the body (the FCN authors' pad 100 is 99 here and 1
            in the first convolution).
        classify_by: how the classifier pools; see `Classify`.
        frozen_batch_norm: keep batch norm in evaluation mode while training.
        return_layers: names of the body's layers whose maps `features` gives; None takes its last.

    Attributes:
        stride: pixels from one place to the next.
        offset: the pixel on which place 0 is centred, counted from the centre of pixel 0.
        field: pixels a place sees in each direction, edge to edge (receptive field).
        minimum: the smallest side in pixels that gives a place; smaller photos are padded.

    Example:
        >>> from milseg.models.backbones import build_fcn
        >>> model = build_fcn("tiny", 3)
        >>> model.stride, model.offset, tuple(model(torch.zeros(1, 3, 40, 64)).shape)
        (4, 0.0, (1, 3, 10, 16))
    """

    def __init__(
        self,
        body: nn.Module,
        head: nn.Sequential,
        score_layer: nn.Conv2d,
        *,
        native_stride: int | None = None,
        image_padding: int = 0,
        classify_by: Classify = "features",
        frozen_batch_norm: bool = True,
        return_layers: Iterable[str] | None = None,
    ) -> None:
        super().__init__()
        self.return_layers = (
            tuple(return_layers) if return_layers is not None else tuple(dict(body.named_children()))[-1:]
        )
        self.body, self.head, self.score_layer = body, head, score_layer
        self.image_padding = image_padding
        self.classify_by: Classify = classify_by
        self.frozen_batch_norm = frozen_batch_norm
        body_layers = tuple(spatial_layers(body))
        self._layers = (*body_layers, *spatial_layers(head), *spatial_layers(score_layer))
        self.stride, self.offset, self.field = geometry(self._layers, image_padding=image_padding)
        self.native_stride = self.stride if native_stride is None else native_stride
        self._body_minimum = next(n for n in range(1, 10_000) if map_length(body_layers, n))
        self.minimum = next(n for n in range(1, 10_000) if map_length(self._layers, n + 2 * image_padding))
        self.train()  # puts batch norm where it belongs from the start

    @property
    def classes(self) -> int:
        """The number of rows of the score layer."""
        return self.score_layer.out_channels

    def train(self, mode: bool = True) -> FCN:
        """Training mode, but for batch norm where it is frozen."""
        super().train(mode)
        if self.frozen_batch_norm:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores of every place.

        Args:
            images: float [B, 3, H, W], normalised; any H and W from 1. A side shorter than `minimum` is
                padded with zeros at its end and gives one place.

        Returns:
            float [B, C, h, w] with (h, w) = `map_size(H, W)`.
        """
        images = _at_least(images, self.minimum)
        if self.image_padding:
            images = F.pad(images, (self.image_padding,) * 4)
        scores: torch.Tensor = self.score_layer(self.head(self.body(images)))
        return scores

    def classify(self, images: torch.Tensor) -> torch.Tensor:
        """The logits of the classifier this network was cast from, with the rows the score layer has now.

        The same numbers as the original, dilated or not, and whatever the padding of fc6: a dilated body
        holds the strided one's features at every second (fourth) place. VGG pools in ceil mode here: its
        sizes that are no multiple of 32 see a few more pixels than the original's.

        Args:
            images: float [B, 3, H, W], normalised.

        Returns:
            float [B, C].
        """
        step = self.native_stride // self.stride
        features = self.body(_at_least(images, self._body_minimum))[..., ::step, ::step]
        logits: torch.Tensor
        if self.classify_by == "window":
            first = self.head[0]
            assert isinstance(first, nn.Conv2d)
            window = F.adaptive_avg_pool2d(features, _one(first.kernel_size))
            hidden = F.conv2d(window, first.weight, first.bias)
            for layer in self.head[1:]:
                hidden = layer(hidden)
            logits = self.score_layer(hidden)
        elif self.classify_by == "scores":
            logits = F.relu(self.score_layer(self.head(features))).mean((2, 3), keepdim=True)
        else:
            logits = self.score_layer(self.head(features.mean((2, 3), keepdim=True)))
        return logits.flatten(1)

    def features(self, images: torch.Tensor) -> list[FeatureMap]:
        """The maps of the layers `return_layers`, from the finest on, and where their places lie.

        Args:
            images: as in `forward`.
        """
        x = _at_least(images, self.minimum)
        if self.image_padding:
            x = F.pad(x, (self.image_padding,) * 4)
        found, passed = [], list[Layer]()
        for name, layer in self.body.named_children():
            x = layer(x)
            passed += spatial_layers(layer)
            if name in self.return_layers:
                place = geometry(passed, image_padding=self.image_padding)
                # A copy: the layer that follows may work in place.
                found.append(FeatureMap(x.clone(), place.stride, place.offset))
        assert len(found) == len(self.return_layers), (self.return_layers, "are layers of the body")
        return found

    def in_order(self) -> Iterator[nn.Module]:
        """The modules that make the scores of a photo of at least `minimum` pixels, one after the other."""
        yield nn.ZeroPad2d(self.image_padding)
        yield from _one_by_one([self.body, self.head, self.score_layer])

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """The (h, w) of the score map of a photo of so many pixels."""
        border = 2 * self.image_padding
        return (
            map_length(self._layers, max(height, self.minimum) + border),
            map_length(self._layers, max(width, self.minimum) + border),
        )

    def valid_mask(self, sizes: torch.Tensor, map_size: tuple[int, int]) -> torch.Tensor:
        """Which places belong to each photo of a padded batch.

        A place is valid when the pixel on which it is centred is in the photo (half-way between two pixels
        counts for the first). The first row and column are always valid, so that every photo has a place.

        Args:
            sizes: int64 [B, 2], each photo's own (height, width) before padding.
            map_size: (h, w) of the batch's score map.

        Returns:
            bool [B, h, w].
        """
        rows, columns = (self._inside(sizes[:, i], places) for i, places in enumerate(map_size))
        return rows[:, :, None] & columns[:, None, :]

    def _inside(self, lengths: torch.Tensor, places: int) -> torch.Tensor:
        """bool [B, places] from lengths int64 [B] in pixels."""
        centres = self.offset + self.stride * torch.arange(places, device=lengths.device)
        inside = centres.floor()[None, :] < lengths[:, None]
        inside[:, :1] = True
        return inside

    def set_rows(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Replace the score layer by one with these rows, on the device and in the type of the old one.

        Args:
            weight: float [C, D] with D the score layer's input channels; copied.
            bias: float [C]; copied.
        """
        classes, channels = weight.shape
        assert channels == self.score_layer.in_channels, (channels, self.score_layer.in_channels)
        assert bias.shape == (classes,), bias.shape
        old = self.score_layer.weight
        layer = nn.Conv2d(channels, classes, 1, device=old.device, dtype=old.dtype)
        with torch.no_grad():
            layer.weight.copy_(weight[:, :, None, None])
            layer.bias.copy_(bias)  # type: ignore[union-attr]
        self.score_layer = layer

    def scale_rows(self, factor: float) -> None:
        """Multiply the score layer's rows and biases: softer scores, the same top classes."""
        with torch.no_grad():
            for parameter in self.score_layer.parameters():
                parameter.mul_(factor)

    def replace_score_layer(
        self, classes: int, *, std: float = 0.0, generator: torch.Generator | None = None
    ) -> None:
        """A new score layer: rows from a normal distribution (all zero where `std` is 0), biases zero."""
        weight = torch.zeros(classes, self.score_layer.in_channels)
        if std:
            weight.normal_(0.0, std, generator=generator)
        self.set_rows(weight, torch.zeros(classes))


def _one_by_one(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        if isinstance(module, nn.Sequential):
            yield from _one_by_one(module)
        else:
            yield module


def _at_least(images: torch.Tensor, side: int) -> torch.Tensor:
    """Pad with zeros at the right and the bottom, up to `side` pixels; larger sides stay."""
    down, right = max(0, side - images.shape[-2]), max(0, side - images.shape[-1])
    return F.pad(images, (0, right, 0, down)) if down or right else images


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; then each layer's own mode again, dropout that was switched off included."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def freeze(model: FCN, stride: int) -> None:
    """Let the body's layers up to output stride `stride` keep their weights; all others are trained.

    The finest maps cost the most: MobileNetV2 frozen to stride 8 trains more than twice as fast on a CPU.
    """
    model.requires_grad_(True)
    reached = 1
    for layer in model.body.children():
        reached *= math.prod(part.stride for part in spatial_layers(layer))
        if reached > stride:
            break
        layer.requires_grad_(False)
