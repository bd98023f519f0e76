"""SGD on the score layer as if its features had mean 0 and deviation 1.

Where no norm ends it, a network gives features of one sign and of any size: the root of SqueezeNet's mean square is
about 40, one direction of 512 holds an eighth of it, and the rate that this direction bears teaches the others hardly
anything. Standardised features cure that (LeCun et al. 1998, "Efficient BackProp", section 4.3). Here the network, its
files and its scores stay as they are; only the steps of its score layer are those that it would make with such
features.
"""

from __future__ import annotations

import torch
from torch import nn

from milseg.data.bags import Bag, load_photo
from milseg.data.image import fit_size, normalise, resize_photo
from milseg.models.fcn import FCN, evaluating
from milseg.utils.parallel import prefetch_map

PHOTOS = 64  # that the features are measured on
LEAST = (
    0.05  # of the root mean square of the deviations; a feature that hardly ever fires is no surer than this
)


class FeatureStandardizer(nn.Module):
    """Turns the score layer's gradients into those for standardised features, and these into its own steps.

    Scores W f + b are V g + c with g = (f - mean) / deviation, V = W deviation and c = b + W mean. A step of SGD in V
    and c moves W by what V moves divided by the deviation, and b by what c moves less W's move times the mean. That is
    linear, so momentum can follow. Weight decay, which comes after, draws W itself towards 0.

    Args:
        features: D, the score layer's input channels.
        bias_rate: learning rate of a bias, times that of a weight.

    Attributes:
        mean, deviation: of each feature, [D]; 0 and 1 until `measure`.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, features: int, *, bias_rate: float) -> None:
        super().__init__()
        self.bias_rate = bias_rate
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))

    @torch.no_grad()
    def measure(self, model: FCN, bags: tuple[Bag, ...], *, longest_side: int | None) -> None:
        """Mean and deviation of the score layer's features over the places of these bags' photos.

        Each photo counts alike. The model is left in the mode that it was in.

        Raises:
            UserError: a photo cannot be read.
        """
        sums = torch.zeros(2, len(self.mean), dtype=torch.float64)

        def add(layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            features = given[0][0].flatten(1).cpu().double()
            sums.add_(torch.stack([features.mean(dim=1), features.square().mean(dim=1)]))

        with evaluating(model), model.score_layer.register_forward_pre_hook(add):
            for _, photo in prefetch_map(load_photo, bags, workers=1):
                size = fit_size(photo.shape[0], photo.shape[1], longest_side)
                model(normalise(resize_photo(photo, size))[None].to(model.score_layer.weight.device))
        mean, square = sums / len(bags)
        deviation = (square - mean.square()).clamp_min(0).sqrt()
        least = LEAST * float(deviation.square().mean().sqrt())
        self.mean.copy_(mean)
        self.deviation.copy_(deviation.clamp_min(least) if least else torch.ones_like(deviation))

    @torch.no_grad()
    def inward(self, layer: nn.Conv2d) -> None:
        """The gradients by W [C, D, 1, 1] and b [C] become those by V and c: what is to be measured and limited."""
        by_weight, by_bias = _gradients(layer)
        by_weight.sub_(by_bias[:, None] * self.mean).div_(self.deviation)

    @torch.no_grad()
    def outward(self, layer: nn.Conv2d) -> None:
        """Gradients by V and c become those by which SGD on W and b makes their steps."""
        by_weight, by_bias = _gradients(layer)
        by_weight.div_(self.deviation)
        by_bias.sub_(by_weight @ self.mean / self.bias_rate)


def _gradients(layer: nn.Conv2d) -> tuple[torch.Tensor, torch.Tensor]:
    """By the rows [C, D] and the biases [C], to be changed in place."""
    assert layer.bias is not None
    assert layer.weight.grad is not None
    assert layer.bias.grad is not None
    return layer.weight.grad.view(layer.out_channels, -1), layer.bias.grad
