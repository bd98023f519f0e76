"""How alike the cells of a photo's score map are to the network: the transition matrix of the random walk."""

from __future__ import annotations

import torch

from milseg.data.image import UInt8, normalise, resize_photo
from milseg.inference.score_map import ScoreMap, read_at
from milseg.inference.tiling import device_of
from milseg.models.fcn import FCN
from milseg.refine.random_walk import transition_matrix, walking_size
from milseg.utils.devices import memory_format

# The photo whose inner maps are compared: times as large as the score map's input, but at most LONGEST pixels long.
LARGER, LONGEST = 1.5, 480


@torch.inference_mode()
def photo_transition_matrix(network: FCN, photo: UInt8, score_map: ScoreMap) -> torch.Tensor:
    """Return the transition matrix between the cells of a photo's map, float32 [N, N] on the CPU.

    The network sees the photo `LARGER` times as large as for the map, because inner maps are coarse.

    Args:
        photo: uint8 [H, W, 3].
    """
    longest = min(LONGEST, round(LARGER * max(score_map.input_size)))
    shrink = longest / max(photo.shape[:2])
    size = (max(1, round(photo.shape[0] * shrink)), max(1, round(photo.shape[1] * shrink)))
    device = device_of(network)
    layout = memory_format(network, device)
    image = normalise(resize_photo(photo, size))[None].to(device, memory_format=layout)
    height, width = score_map.scores.shape[-2:]
    rows, columns = (
        _walk_centres(cells, walk_cells, score_map, pixels / input_pixels)
        for cells, walk_cells, pixels, input_pixels in zip(
            (height, width), walking_size(height, width), size, score_map.input_size, strict=True
        )
    )
    layers = []
    for values, stride, offset in network.features(image):
        positions = ((axis.to(device) - offset) / stride for axis in (rows, columns))
        layers.append(read_at(values[0].float(), *positions))
    return transition_matrix(layers).cpu()


def _walk_centres(cells: int, walk_cells: int, score_map: ScoreMap, scale: float) -> torch.Tensor:
    """Return the centres of the cells that walk, along one axis, in pixels of the photo that is compared.

    Args:
        cells, walk_cells: of the map, and of the coarser grid on which a large map walks.
        scale: of this photo, relative to the map's input.
    """
    cell = (torch.arange(walk_cells) + 0.5) * (cells / walk_cells) - 0.5
    return (cell * score_map.stride + score_map.offset + 0.5) * scale - 0.5
