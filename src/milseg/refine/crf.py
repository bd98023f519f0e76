"""The fully connected CRF: every pixel is compared with every other, by nearness and colour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import interpolate, pad

from milseg.data.image import UInt8
from milseg.errors import UserError
from milseg.refine.permutohedral import LANES, Lattice, build_lattice

# pydensecrf clips so too: a class that is ruled out by a probability of 0 can still win.
LEAST = 1e-5


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
    scale: int = 1,
    max_pixels: int = 1_000_000,
) -> torch.Tensor:
    """Run mean-field inference in a fully connected CRF with Gaussian edge potentials.

    Krähenbühl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NIPS 2011,
    algorithm 1 with the Potts model: from Q = probs, repeat

        Q_i(l) <- softmax_l(log p_i(l) + sum_m w_m sum_j k_m(i, j) Q_j(l) / sqrt(n_m(i) n_m(j))),

    k of equation 3, n_m(i) = sum_j k_m(i, j). Kernels and their normalisation are those of the authors' program
    (`pydensecrf` with its defaults): the permutohedral lattice, j = i included.

    Args:
        photo: uint8 [H, W, 3].
        probs: float [C, H, W], the network's probabilities, clipped to at least 1e-5.
        iterations: 0 gives back the clipped probabilities.
        spatial_sigma, spatial_weight: of the smoothness kernel, in pixels.
        bilateral_sigma_xy, bilateral_sigma_rgb, bilateral_weight: of the appearance kernel, in pixels and in
            steps of 0 to 255. The defaults of both kernels are those of `pydensecrf`'s example.
        scale: above 1, infer on photo and probabilities made smaller by this factor, kernels with them; what the CRF
            changed is brought back by `joint_upsample`. Time falls with the square.
        max_pixels: larger photos get the least scale at which no more pixels are left. Memory is bounded by it: at
            most 3.5 KB for each such pixel with up to 24 classes, which only noise needs, beside copies of `probs`.

    Returns:
        float32 [C, H, W] on the device of `probs`; sums to 1 over the classes.

    Raises:
        UserError: sizes that differ, or a setting out of range.

    >>> photo = np.zeros((4, 6, 3), np.uint8)
    >>> photo[:, 3:] = 255
    >>> probs = torch.full((2, 4, 6), 0.45)
    >>> probs[0, :, :3] = probs[1, :, 3:] = 0.55
    >>> probs[:, 0, 0] = torch.tensor([0.4, 0.6])  # noise
    >>> dense_crf(photo, probs).argmax(dim=0)[0].tolist()
    [0, 0, 0, 1, 1, 1]
    """
    height, width = probs.shape[1:]
    if photo.shape != (height, width, 3):
        raise UserError(
            f"photo {list(photo.shape)}; expected [{height}, {width}, 3], as the probabilities have it"
        )
    if min(spatial_sigma, bilateral_sigma_xy, bilateral_sigma_rgb) <= 0:
        raise UserError("a sigma of the CRF is 0 or less; expected more")
    if min(spatial_weight, bilateral_weight, iterations) < 0 or min(scale, max_pixels) < 1:
        raise UserError(
            "crf: expected weights and iterations of 0 or more, scale and max_pixels of 1 or more"
        )
    while -(-height // scale) * -(-width // scale) > max_pixels:
        scale += 1
    log_probs = probs.to(torch.float32).clamp(LEAST, 1.0).log()
    guide = torch.from_numpy(np.array(photo)).to(probs.device).permute(2, 0, 1).to(torch.float32)
    small = (-(-height // scale), -(-width // scale))
    colours, unary = (guide, log_probs) if scale == 1 else (_shrunk(guide, small), _shrunk(log_probs, small))
    kernels = (
        (_positions(small, spatial_sigma / scale, probs.device), spatial_weight),
        (
            torch.cat(
                (
                    _positions(small, bilateral_sigma_xy / scale, probs.device),
                    colours.flatten(1) / bilateral_sigma_rgb,
                )
            ),
            bilateral_weight,
        ),
    )
    q = mean_field(unary.flatten(1), [pair for pair in kernels if pair[1]], iterations).view_as(unary)
    if scale == 1:
        return q
    change = q.clamp_min(1e-30).log() - unary
    return (log_probs + joint_upsample(change, colours, guide, bilateral_sigma_rgb)).softmax(dim=0)


def mean_field(
    log_probs: torch.Tensor, kernels: Sequence[tuple[torch.Tensor, float]], iterations: int
) -> torch.Tensor:
    """Run mean-field inference of the Potts model over N points.

    Args:
        log_probs: float32 [C, N].
        kernels: features in standard deviations, float32 [d, N], and weight, for each Gaussian.
        iterations: 0 gives the softmax of `log_probs`.

    Returns:
        float32 [C, N].
    """
    classes = len(log_probs)
    unary = pad(log_probs.T, (0, -classes % LANES), value=-torch.inf).contiguous()
    lattices = [_normalised(build_lattice(features), weight) for features, weight in kernels]
    q = _softmax(unary)
    for _ in range(iterations):
        scores = unary
        for lattice in lattices:
            scores = lattice.filter(q).add_(scores)
        q = _softmax(scores)
    return q[:, :classes].T.contiguous()


def _softmax(rows: torch.Tensor) -> torch.Tensor:
    """Return the softmax of each row of [N, C].

    torch's own takes five times as long if a row does not fill a register of 16 numbers.
    """
    if rows.shape[1] > LANES:
        return rows.softmax(dim=1)
    exponentials = (rows - rows.amax(dim=1, keepdim=True)).exp_()
    return exponentials.div_(exponentials.sum(dim=1, keepdim=True))


def joint_upsample(
    values: torch.Tensor, colours: torch.Tensor, guide: torch.Tensor, sigma_rgb: float
) -> torch.Tensor:
    """Bilinear upsampling that follows the photo's edges.

    Kopf et al., "Joint Bilateral Upsampling", SIGGRAPH 2007, equation 3, over the four nearest cells: the bilinear
    weight times exp(-|I_p - I_q|^2 / (2 sigma^2)), normalised.

    Args:
        values: [C, h, w].
        colours: [3, h, w], the photo made as small.
        guide: [3, H, W], the photo.
        sigma_rgb: in the photo's unit.

    Returns:
        [C, H, W].

    >>> guide = torch.tensor([0.0, 0.0, 0.0, 255.0]).expand(3, 1, 4)
    >>> colours, values = torch.tensor([0.0, 255.0]).expand(3, 1, 2), torch.tensor([[[0.0, 1.0]]])
    >>> joint_upsample(values, colours, guide, 13.0).round().tolist()
    [[[0.0, 0.0, 0.0, 1.0]]]
    """
    rows = _nearest_two(guide.shape[1], values.shape[1], guide.device)
    columns = _nearest_two(guide.shape[2], values.shape[2], guide.device)
    total = torch.full(guide.shape[1:], 1e-30, device=guide.device)
    upsampled = torch.zeros(len(values), *guide.shape[1:], device=guide.device)
    for row, row_weight in rows:
        for column, column_weight in columns:
            near = colours.index_select(1, row).index_select(2, column)
            weight = (guide - near).square_().sum(dim=0).mul_(-0.5 / sigma_rgb**2).exp_()
            # If no cell has the pixel's colour, the weights become bilinear.
            weight = (weight + 1e-6) * row_weight[:, None] * column_weight
            total += weight
            upsampled += values.index_select(1, row).index_select(2, column).mul_(weight)
    return upsampled / total


def _nearest_two(pixels: int, cells: int, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return the two nearest cells of each pixel of an axis and their bilinear weights: int64 and float32 [pixels]."""
    position = ((torch.arange(pixels, device=device) + 0.5) * (cells / pixels) - 0.5).clamp(0, cells - 1)
    low = position.floor()
    share = position - low
    first = low.long()
    return [(first, 1 - share), ((first + 1).clamp_max(cells - 1), share)]


def _shrunk(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the means over the cells of a coarser grid, [C, h, w]."""
    return interpolate(values[None], size=size, mode="area")[0]


def _positions(size: tuple[int, int], sigma: float, device: torch.device) -> torch.Tensor:
    """Return x and y of each pixel in standard deviations, float32 [2, H W]."""
    x = (torch.arange(size[1], device=device) / sigma).expand(size)
    y = (torch.arange(size[0], device=device) / sigma)[:, None].expand(size)
    return torch.stack((x, y)).flatten(1)


def _normalised(lattice: Lattice, weight: float) -> Lattice:
    """Return the kernel with the square root of each pixel's sum divided out on both sides, times `weight`."""
    starts = lattice.slice.starts
    ones = torch.ones(len(starts), 1, device=starts.device)
    return lattice.scaled((weight**0.5) * (lattice.filter(ones)[:, 0] + 1e-20).rsqrt())
