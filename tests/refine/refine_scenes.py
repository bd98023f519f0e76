"""Photos and probabilities for the tests of refiners."""

from __future__ import annotations

import numpy as np
import torch


def scene(height: int, width: int, *, seed: int = 0, grain: float = 6.0) -> np.ndarray:
    """Blocks and slopes of colour with camera noise, uint8 [H, W, 3]."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (-(-height // 40), -(-width // 50), 3))
    photo = np.kron(blocks, np.ones((40, 50, 1)))[:height, :width]
    photo += np.linspace(-40, 40, width)[None, :, None] + np.linspace(-30, 30, height)[:, None, None]
    photo += random.normal(0, grain, photo.shape)
    return photo.clip(0, 255).astype(np.uint8)


def coarse_probs(
    classes: int, height: int, width: int, *, seed: int = 0, sharpness: float = 3.0
) -> torch.Tensor:
    """What a network would say: a coarse random map, interpolated; float32 [C, H, W]."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(1, classes, max(1, height // 16), max(1, width // 16), generator=generator)
    fine = torch.nn.functional.interpolate(scores * sharpness, size=(height, width), mode="bilinear")
    return fine.softmax(dim=1)[0]
