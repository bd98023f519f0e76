"""From a photo's bytes to its mask as one network, so that a file of it needs nothing of milseg.

What `milseg.inference.segmenter` does step by step in Python, with sizes that are known only when a photo comes: made
smaller, normalised, seen in one view or several, weighed by the prior, interpolated, top class. Refiners stay
outside.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from milseg.data.image import MEAN, STD
from milseg.inference.model_folder import ModelSpec
from milseg.inference.score_map import bilinear_weights, read_at
from milseg.models.fcn import FCN

# Stands for a prior's infinite intercept: its sigmoid is 1 just as well.
CERTAIN = 1e4
OUTPUTS = ("mask", "scores", "tags", "confidence")
# The network alone, for `milseg predict`: the names of its padded input and of what comes out of it.
INNER = ("image", "network_scores")


class _WholePool(nn.Module):
    """Max pooling whose last window may reach over the edge (`ceil_mode`), said in a way that any size can be exported.

    One less than the stride of the smallest number at the lower and right edges lets the same windows begin.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        assert isinstance(pool.stride, int), "a pool of the backbones steps alike down and across"
        self.more = pool.stride - 1
        self.pool = nn.MaxPool2d(pool.kernel_size, pool.stride, pool.padding, pool.dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.pool(F.pad(x, (0, self.more, 0, self.more), value=-torch.inf))
        return pooled


def _of_any_size(model: FCN) -> FCN:
    """The same network without `ceil_mode`, whose sizes torch.export cannot follow; a copy where it has any."""
    if not any(isinstance(module, nn.MaxPool2d) and module.ceil_mode for module in model.modules()):
        return model
    found = copy.deepcopy(model)
    for parent in list(found.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MaxPool2d) and child.ceil_mode:
                setattr(parent, name, _WholePool(child))
    return found


class PhotoGraph(nn.Module):
    """uint8 photos in, masks out.

    Sizes are computed as tensors and turned into whole numbers by `.item()`: what is exported then holds for every
    size, 1 x 1 included, and rounds as `milseg.data.image.fit_size` does.

    Args:
        model, spec: as `milseg.inference.model_folder.load_model` gives them.
        inner: also return the two tensors of `INNER`.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: FCN, spec: ModelSpec, *, inner: bool = False) -> None:
        super().__init__()
        self.network, self.inner = _of_any_size(model).eval(), inner
        self.longest_side, self.config = spec.longest_side, spec.inference
        self.prior = spec.prior if spec.inference.prior else None
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None])
        self.register_buffer("std", torch.tensor(STD)[:, None, None])

    def forward(self, photo: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Segment photos of one size.

        Args:
            photo: uint8 [N, H, W, 3], RGB.

        Returns:
            mask uint8 [N, H, W]; scores float32 [N, C, h, w], the map it was drawn from; tags float32 [N, C], the
            highest probability of each class at any place; confidence float32 [N], the mean probability of the top
            class over the places.
        """
        sides = torch.stack([torch.full((), side, dtype=torch.float64) for side in photo.shape[1:3]])
        seen = sides
        if self.longest_side is not None:
            shrink = self.longest_side / sides.max().clamp_min(self.longest_side)
            seen = (sides * shrink).round().clamp_min(1)
        scores, stride, inner = self._look(photo.permute(0, 3, 1, 2), seen)
        if self.prior is not None:
            scores = scores + self.config.prior * self._log_prior(scores)[:, :, None, None]
        p = scores.softmax(dim=1).flatten(2)
        rows, columns = (
            self._places(
                (torch.arange(photo.shape[i + 1]) + 0.5) * (seen[i] / sides[i]).float() - 0.5, stride
            )
            for i in (0, 1)
        )
        fine = read_at(scores, rows, columns)
        kind = torch.uint8 if scores.shape[1] <= 256 else torch.int16
        found = (fine.argmax(dim=1).to(kind), scores, p.amax(dim=2), p.amax(dim=1).mean(dim=1))
        return (*found, *inner) if self.inner else found

    def _places(self, pixels: torch.Tensor, stride: float) -> torch.Tensor:
        return (pixels - self.network.offset) / stride

    def _look(
        self, pixels: torch.Tensor, seen: torch.Tensor
    ) -> tuple[torch.Tensor, float, tuple[torch.Tensor, torch.Tensor]]:
        """The merged map, its stride, and the first view's padded image and scores; see `milseg.inference.tta`."""
        scales, flip = self.config.scales, self.config.flip
        if scales == (1.0,) and not flip:
            image, scores = self._view(pixels, seen, flip=False)
            return scores, self.network.stride, (image, scores + 0.0)
        half = self.network.stride // 2
        height, width = _whole(seen)
        grid = [
            torch.arange(-(-side // half)) * float(half) + self.network.offset for side in (height, width)
        ]
        total: torch.Tensor | None = None
        inner = None
        for scale in scales:
            size = (seen * scale).round().clamp_min(1)
            image, scores = self._view(pixels, size, flip=flip)
            inner = inner or (image, scores + 0.0)
            rows, columns = ((grid[i] + 0.5) * (size[i] / seen[i]).float() - 0.5 for i in (0, 1))
            down = bilinear_weights(self._places(rows, self.network.stride), scores.shape[2])
            photos = pixels.shape[0]
            views = [(scores[:photos], columns)]
            if flip:
                views.append((scores[photos:], size[1].float() - 1 - columns))
            for one, at in views:
                across = bilinear_weights(self._places(at, self.network.stride), scores.shape[3])
                p = (down @ (one @ across.T)).softmax(dim=1)
                total = p if total is None else total + p
        assert total is not None
        assert inner is not None
        mean = total / (len(scales) * (1 + flip))
        return mean.clamp_min(torch.finfo(mean.dtype).tiny).log(), half, inner

    def _view(
        self, pixels: torch.Tensor, size: torch.Tensor, *, flip: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The padded image and the network's scores of it; with `flip`, the mirrored photos after the others."""
        height, width = _whole(size)
        least = self.network.minimum
        tall, broad = _whole(size.clamp_min(least))
        torch._check(tall >= height)
        torch._check(broad >= width)
        torch._check(tall >= least)
        torch._check(broad >= least)
        smaller = F.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)
        image = smaller.to(torch.float32).div(255.0).sub(self.mean).div(self.std)
        if flip:
            image = torch.cat([image, image.flip(3)])
        image = F.pad(image, (0, broad - width, 0, tall - height))
        # Not the network's own forward: it asks in Python whether there is anything to pad.
        border = self.network.image_padding
        inside = F.pad(image, (border,) * 4) if border else image
        return image, self.network.score_layer(self.network.head(self.network.body(inside)))

    def _log_prior(self, scores: torch.Tensor) -> torch.Tensor:
        """log P(class is in the photo), [N, C]; see `milseg.inference.prior`, which takes one photo."""
        assert self.prior is not None
        best = scores.log_softmax(dim=1).flatten(2).amax(dim=2).double().clamp(max=-1e-7)
        evidence = (best - (1 - best.exp()).log()).clamp(-30, 30).float()
        slope, intercept = (
            torch.tensor(v).clamp(max=CERTAIN) for v in (self.prior.slope, self.prior.intercept)
        )
        return F.logsigmoid(slope * evidence + intercept)


def _whole(sides: torch.Tensor) -> tuple[int, int]:
    """Two positive whole numbers of float64 [2], as sizes that an export leaves open."""
    whole = sides.to(torch.int64)
    height, width = whole[0].item(), whole[1].item()
    torch._check(height >= 1)
    torch._check(width >= 1)
    # Whole numbers when run; symbols while being exported, which `int` would not take.
    return cast(int, height), cast(int, width)
