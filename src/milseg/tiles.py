"""The network on photos of any size: in tiles where the whole would take too much memory, with the same scores.

A place sees `field` pixels. Tiles overlap by that much and begin at multiples of the network's stride, so that each
place is taken from a tile that holds all it sees, or ends where the photo ends: no seam, whatever the tile.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch

from milseg.errors import UserError
from milseg.photos import UInt8, normalise

# Larger photos go through in tiles; at 4 million pixels MobileNetV2's widest layers take 0.8 GB.
TILE_PIXELS = 2048 * 2048
SMALLEST = 64 * 64


class Network(Protocol):
    """All that prediction asks of a network: where its places lie, and their scores."""

    stride: int
    offset: float
    field: int

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """The (h, w) of the score map of a photo of so many pixels."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """float32 [1, 3, H, W], normalised, to scores [1, C, h, w]."""


class Piece(NamedTuple):
    """A tile along one axis: its pixels [start, stop), and the places [first, last) that are taken from it."""

    start: int
    stop: int
    first: int
    last: int


def pieces(
    pixels: int, places: int, side: int, *, stride: int, offset: float, field: int
) -> tuple[Piece, ...]:
    """Cut an axis into tiles of at most about `side` pixels, of equal length, that give each place once.

    >>> pieces(100, 25, 60, stride=4, offset=0.0, field=11)
    (Piece(start=0, stop=58, first=0, last=14), Piece(start=40, stop=100, first=14, last=25))
    """
    overlap = field + stride
    if pixels <= side:
        return (Piece(0, pixels, 0, places),)
    room = max(side - overlap, stride)
    count = math.ceil((pixels - overlap) / room)
    length = math.ceil((pixels + (count - 1) * overlap) / count)
    reach = (field - 1) / 2
    found: list[Piece] = []
    first = 0
    while first < places:
        # What place `first` sees begins here; before the photo's own edge nothing is cut.
        start = max(0, math.floor((offset + first * stride - reach) / stride) * stride)
        stop = min(pixels, start + length)
        if pixels - stop < stride:
            stop = pixels
        if stop == pixels:
            # The last one is as long as the others: what is too short for the network would be padded.
            start = min(start, max(0, (pixels - length) // stride * stride))
            last = places
        else:
            last = min(places, math.floor((stop - 1 - reach - offset) / stride) + 1)
        found.append(Piece(start, stop, first, last))
        first = last
    return tuple(found)


@torch.inference_mode()
def photo_tile_scores(
    network: Network, photo: UInt8, *, device: torch.device, most: int = TILE_PIXELS
) -> torch.Tensor:
    """The scores [1, C, h, w] of a photo uint8 [H, W, 3], as of the whole photo at once.

    In tiles where it has more than `most` pixels. Where the device has too little memory, tiles of a quarter of the
    pixels are tried, and so on.

    Raises:
        UserError: not even the smallest tile fits into the device's memory.
    """
    height, width = photo.shape[:2]
    while True:
        try:
            if height * width <= most:
                return _scores(network, photo, device)
            return _in_tiles(network, photo, device, math.isqrt(most))
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            smaller = min(most, height * width) // 4
            if smaller < SMALLEST or math.isqrt(smaller) <= network.field + 2 * network.stride:
                raise UserError(
                    f"a photo of {width} x {height} pixels does not fit into the memory of {device}, not even in "
                    "tiles; free some, take --device cpu, or a smaller --longest-side"
                ) from error
            most = smaller
        # After the handler, which holds the tensors of the failed call.
        if device.type == "cuda":
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the CPU's allocator, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def _in_tiles(network: Network, photo: UInt8, device: torch.device, side: int) -> torch.Tensor:
    height, width = photo.shape[:2]
    size = network.map_size(height, width)
    geometry = {"stride": network.stride, "offset": network.offset, "field": network.field}
    rows = pieces(height, size[0], side, **geometry)  # type: ignore[arg-type]
    columns = pieces(width, size[1], side, **geometry)  # type: ignore[arg-type]
    found: torch.Tensor | None = None
    for row in rows:
        for column in columns:
            part = _scores(network, photo[row.start : row.stop, column.start : column.stop], device)
            if found is None:
                # On the CPU: a map of a large photo may be larger than what is left on the device.
                found = torch.empty(1, part.shape[1], *size)
            above, left = row.start // network.stride, column.start // network.stride
            found[:, :, row.first : row.last, column.first : column.last] = part[
                :, :, row.first - above : row.last - above, column.first - left : column.last - left
            ]
    assert found is not None
    return found


def _scores(network: Network, photo: UInt8, device: torch.device) -> torch.Tensor:
    image = normalise(photo)[None].to(device, memory_format=torch.channels_last)
    return network(image).float()
