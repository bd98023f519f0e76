"""The fully connected CRF: every pixel talks to every other, by nearness and colour."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import pad

from milseg.photos import UInt8
from milseg.refine.lattice import Lattice, build_lattice

# pydensecrf clips so too: a class that is ruled out by a probability of 0 can still win.
LEAST = 1e-5
# Sums of rows and the softmax are quick where rows fill whole registers.
LANES = 8


@torch.no_grad()
def dense_crf(
    photo: UInt8,
    probs: torch.Tensor,
    *,
    iterations: int = 10,
    spatial_sigma: float = 3.0,
    spatial_weight: float = 3.0,
    bilateral_sigma_xy: float = 80.0,
    bilateral_sigma_rgb: float = 13.0,
    bilateral_weight: float = 10.0,
) -> torch.Tensor:
    """Mean-field inference in a fully connected CRF with Gaussian edge potentials.

    Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011,
    algorithm 1 with the Potts model: from Q = probs, repeat

        Q_i(l) <- softmax_l(log p_i(l) + sum_m w_m sum_j k_m(i, j) Q_j(l) / sqrt(n_m(i) n_m(j))),

    k of equation 3, n_m(i) = sum_j k_m(i, j). Kernels and their normalisation are those of the authors' program (as
    `pydensecrf` by default): the permutohedral lattice, j = i included.

    Args:
        photo: uint8 [H, W, 3].
        probs: float [C, H, W], the network's probabilities, clipped to at least 1e-5.
        iterations: 0 gives back the clipped probabilities.
        spatial_sigma, spatial_weight: of the smoothness kernel, in pixels.
        bilateral_sigma_xy, bilateral_sigma_rgb, bilateral_weight: of the appearance kernel, in pixels and in
            steps of 0 to 255.

    The defaults of the kernels are the example of `pydensecrf`, 13 for the colours.

    Returns:
        float32 [C, H, W] on the device of `probs`; sums to 1 over the classes.

    >>> photo = np.zeros((4, 6, 3), np.uint8)
    >>> photo[:, 3:] = 255
    >>> probs = torch.full((2, 4, 6), 0.45)
    >>> probs[0, :, :3] = probs[1, :, 3:] = 0.55
    >>> probs[:, 0, 0] = torch.tensor([0.4, 0.6])  # noise
    >>> dense_crf(photo, probs).argmax(dim=0)[0].tolist()
    [0, 0, 0, 1, 1, 1]
    """
    classes, height, width = probs.shape
    unary = probs.reshape(classes, -1).to(torch.float32).clamp(LEAST, 1.0).log().T
    unary = pad(unary, (0, -classes % LANES), value=-torch.inf).contiguous()
    kernels = [
        _normalised(build_lattice(features), weight)
        for features, weight in (
            (_features(photo, spatial_sigma, None, probs.device), spatial_weight),
            (_features(photo, bilateral_sigma_xy, bilateral_sigma_rgb, probs.device), bilateral_weight),
        )
        if weight
    ]
    q = unary.softmax(dim=1)
    for _ in range(iterations):
        scores = unary.clone()
        for kernel in kernels:
            scores += kernel.filter(q)
        q = scores.softmax(dim=1)
    return q[:, :classes].T.reshape(classes, height, width).contiguous()


def _features(photo: UInt8, sigma_xy: float, sigma_rgb: float | None, device: torch.device) -> torch.Tensor:
    """Position and, with `sigma_rgb`, colour of each pixel in standard deviations, float32 [2 or 5, H W]."""
    height, width = photo.shape[:2]
    x = (torch.arange(width, device=device) / sigma_xy).expand(height, width)
    y = (torch.arange(height, device=device) / sigma_xy)[:, None].expand(height, width)
    rows = torch.stack((x, y)).flatten(1)
    if sigma_rgb is None:
        return rows
    colours = torch.from_numpy(np.array(photo)).to(device).flatten(0, 1).T / sigma_rgb
    return torch.cat((rows, colours))


def _normalised(lattice: Lattice, weight: float) -> Lattice:
    """The kernel with the square root of each pixel's sum divided out on both sides, times `weight`."""
    ones = torch.ones(len(lattice.weights), 1, device=lattice.weights.device)
    return lattice.scaled((weight**0.5) * (lattice.filter(ones)[:, 0] + 1e-20).rsqrt())
