"""The network on photos of any size: large ones in tiles, to bound the memory, with the same scores.

The receptive field of a cell is `field` pixels. Tiles overlap by that much and begin at multiples of the network's
stride. Each cell is taken from a tile that holds its whole field, or that ends where the photo ends. So there is no
seam, whatever the tile.

With a field of hundreds of pixels the network would compute much of a large photo twice. So its layers run in parts
with small fields: the lowest in tiles of the photo, the others in tiles of the map of the part before. Such a map has
fewer numbers, and a tile of it covers more of the photo. As many of its rows are held as the next part asks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import nn

from milseg.data.image import UInt8, normalise
from milseg.errors import UserError
from milseg.models.fcn import FCN, Geometry, Layer, geometry, map_length, spatial_layers
from milseg.utils.devices import memory_format

# Larger photos are cut into tiles; for 1 million pixels the widest layers of MobileNetV2 take 0.2 GB.
TILE_PIXELS = 1024 * 1024
SMALLEST = 64 * 64
# A part ends where its field exceeds this share of a tile's side, because the overlap of tiles is computed twice.
SEAM = 0.035
# A part ends on a map of at most this many numbers for each pixel of the photo, because rows of that map are held. If a
# network has no such map early enough, tiles of the photo are up to twice as long.
KEPT_NUMBERS = 2
# Numbers in the widest map of an upper part's tile for each pixel of a tile of the photo: 128 MiB.
UPPER_NUMBERS = 32


class Network(Protocol):
    """The interface that prediction needs of a network: where its cells lie, and their scores."""

    stride: int
    offset: float
    field: int

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (h, w) of the score map of a photo of height x width pixels."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """float32 [1, 3, H, W], normalised, to scores [1, C, h, w]."""


def device_of(network: Network) -> torch.device:
    """Return the device on which a network computes; the CPU for one that is no torch module."""
    if isinstance(network, nn.Module):
        return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    return torch.device("cpu")


class Part(NamedTuple):
    """Consecutive layers of a network. Lengths count cells of the map, or pixels, that enter them.

    Attributes:
        run: photos, or a map [B, F, h, w], to the map after these layers.
        stride, offset, field: as a network's.
        length: cells of a row that enter, to cells that leave.
        side: of a tile.
    """

    run: Callable[[torch.Tensor], torch.Tensor]
    stride: int
    offset: float
    field: int
    length: Callable[[int], int]
    side: int


class Target(NamedTuple):
    """Where a network takes its photos, and in which layout."""

    device: torch.device
    layout: torch.memory_format


def _target(network: Network, device: torch.device) -> Target:
    layout = memory_format(network, device) if isinstance(network, nn.Module) else torch.channels_last
    return Target(device, layout)


class Piece(NamedTuple):
    """A tile along one axis: its pixels [start, stop), and the cells [first, last) that are taken from it."""

    start: int
    stop: int
    first: int
    last: int


def pieces(
    pixels: int, cells: int, side: int, *, stride: int, offset: float, field: int
) -> tuple[Piece, ...]:
    """Cut an axis into tiles of at most about `side` pixels, of equal length, that give each cell once.

    >>> pieces(100, 25, 60, stride=4, offset=0.0, field=11)
    (Piece(start=0, stop=58, first=0, last=14), Piece(start=40, stop=100, first=14, last=25))
    """
    overlap = field + stride
    if pixels <= side:
        return (Piece(0, pixels, 0, cells),)
    room = max(side - overlap, stride)
    count = math.ceil((pixels - overlap) / room)
    length = math.ceil((pixels + (count - 1) * overlap) / count)
    reach = (field - 1) / 2
    tiles: list[Piece] = []
    first = 0
    while first < cells:
        # The field of cell `first` begins here; nothing is cut before the photo's edge.
        start = max(0, math.floor((offset + first * stride - reach) / stride) * stride)
        stop = min(pixels, start + length)
        if pixels - stop < stride:
            stop = pixels
        if stop == pixels:
            # As long as the others: the network would pad a tile that is too short.
            start = min(start, max(0, (pixels - length) // stride * stride))
            last = cells
        else:
            last = min(cells, math.floor((stop - 1 - reach - offset) / stride) + 1)
        tiles.append(Piece(start, stop, first, last))
        first = last
    return tuple(tiles)


@torch.inference_mode()
def photo_tile_scores(
    network: Network, photo: UInt8, *, device: torch.device, tile_pixels: int = TILE_PIXELS
) -> torch.Tensor:
    """Return the scores [1, C, h, w] of a photo uint8 [H, W, 3], as of the whole photo at once.

    A photo of more than `tile_pixels` is cut into tiles. If the device runs out of memory, tiles of a quarter of the
    pixels are tried, and so on.

    Raises:
        UserError: not even the smallest tile fits into the device's memory.
    """
    height, width = photo.shape[:2]
    target = _target(network, device)
    while True:
        try:
            if height * width <= tile_pixels:
                return network(_image(photo, target)).float()
            return _in_tiles(parts_of(network, tile_pixels), photo, target)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            smaller = min(tile_pixels, height * width) // 4
            lowest = parts_of(network, smaller)[0]
            if smaller < SMALLEST or lowest.side <= lowest.field + 2 * lowest.stride:
                raise UserError(
                    f"a photo of {width} x {height} pixels does not fit into the memory of {device}, not even in "
                    "tiles; free some, take --device cpu, or a smaller --longest-side"
                ) from error
            tile_pixels = smaller
        # After the handler, which holds the tensors of the failed call.
        if device.type == "cuda":
            torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device, or the CPU's allocator, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def parts_of(network: Network, tile_pixels: int) -> tuple[Part, ...]:
    """Cut a network into parts, for photos in tiles of about `tile_pixels`.

    A network that cannot be taken apart, such as an exported one, is one part.
    """
    if not isinstance(network, FCN):
        cells = Geometry(network.stride, network.offset, network.field)
        side = _photo_tile_side(tile_pixels, network.field)
        return (Part(network, *cells, lambda pixels: network.map_size(pixels, pixels)[0], side),)
    parts, modules, layers, widest, stride = list[Part](), list[nn.Module](), list[Layer](), 1, 1

    def part() -> Part:
        if parts:
            return _part(modules, layers, _map_tile_side(tile_pixels, widest))
        side = _photo_tile_side(tile_pixels, geometry(layers).field)
        return _part(modules, layers, side)

    for module in network.in_order():
        added, convolutions = list(spatial_layers(module)), _convolutions(module)
        channels = [layer.out_channels for layer in convolutions]
        # Only before a convolution, which changes nothing in place: several tiles share the map before it.
        if layers and convolutions and convolutions[0].in_channels <= KEPT_NUMBERS * stride**2:
            widest_after = max(widest, *channels)
            side = _map_tile_side(tile_pixels, widest_after) if parts else math.isqrt(tile_pixels)
            if geometry([*layers, *added]).field > SEAM * side:
                parts.append(part())
                modules, layers, widest = [], [], 1
        modules.append(module)
        layers += added
        widest = max([widest, *channels])
        stride *= math.prod(layer.stride for layer in added)
    return (*parts, part())


def _photo_tile_side(tile_pixels: int, field: int) -> int:
    """Return the side of a tile of the photo."""
    side = math.isqrt(tile_pixels)
    return max(side, min(2 * side, round(field / SEAM)))


def _map_tile_side(tile_pixels: int, widest: int) -> int:
    """Return the side of a tile of a map, for layers of at most `widest` channels."""
    return math.isqrt(tile_pixels * UPPER_NUMBERS // widest)


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)]


def _part(modules: Sequence[nn.Module], layers: Sequence[Layer], side: int) -> Part:
    def run(x: torch.Tensor) -> torch.Tensor:
        for module in modules:
            x = module(x)
        return x

    return Part(run, *geometry(layers), lambda cells: map_length(layers, cells), side)


def _in_tiles(parts: Sequence[Part], photo: UInt8, target: Target) -> torch.Tensor:
    size = (photo.shape[0], photo.shape[1])
    strips = _strips(parts[0], lambda start, stop: photo[start:stop], size, target)
    size = (parts[0].length(size[0]), parts[0].length(size[1]))
    for part in parts[1:]:
        strips = _strips(part, _Band(strips).rows, size, target)
        size = (part.length(size[0]), part.length(size[1]))
    scores: torch.Tensor | None = None
    row = 0
    for strip in strips:
        if scores is None:
            scores = torch.empty(1, strip.shape[1], *size)
        scores[:, :, row : row + strip.shape[2]] = strip
        row += strip.shape[2]
    assert scores is not None
    return scores


class _Band:
    """Rows of a map that comes strip by strip, from the top; rows before the last request are dropped."""

    def __init__(self, strips: Iterator[torch.Tensor]) -> None:
        self._strips, self._held, self._first = strips, list[torch.Tensor](), 0

    def rows(self, start: int, stop: int) -> torch.Tensor:
        while self._first + sum(strip.shape[2] for strip in self._held) < stop:
            self._held.append(next(self._strips))
        while self._first + self._held[0].shape[2] <= start:
            self._first += self._held.pop(0).shape[2]
        first, parts = self._first, list[torch.Tensor]()
        for strip in self._held:
            parts.append(strip[:, :, max(0, start - first) : stop - first])
            first += strip.shape[2]
        return torch.cat(parts, dim=2)


def _strips(
    part: Part,
    rows: Callable[[int, int], UInt8 | torch.Tensor],
    size: tuple[int, int],
    target: Target,
) -> Iterator[torch.Tensor]:
    """Yield the map of a part in strips float32 [1, C, n, w] from the top, on the CPU, whose memory is larger.

    Args:
        rows: (start, stop) to these rows of the part's input: of a photo uint8 [n, W, 3], or of a map.
        size: (height, width) of the input.
    """
    down, across = (
        pieces(n, part.length(n), part.side, stride=part.stride, offset=part.offset, field=part.field)
        for n in size
    )
    highest, width = max(row.last - row.first for row in down), across[-1].last
    channels = 0  # known once a tile is done
    for row in down:
        band = rows(row.start, row.stop)
        # Allocated before the tiles' maps and always of one size, it lies where the strip before lay. Allocated between
        # them, it would cut the memory that they free into pieces too small for the next tile's map.
        strips = _empty(channels, highest, width)
        for column in across:
            tile = part.run(_image(band, target, slice(column.start, column.stop)))
            if not channels:
                channels = tile.shape[1]
                strips = _empty(channels, highest, width)
            strip = strips[:, :, : row.last - row.first]
            above, left = row.start // part.stride, column.start // part.stride
            strip[:, :, :, column.first : column.last] = tile[
                :, :, row.first - above : row.last - above, column.first - left : column.last - left
            ]
        del band, tile  # before the next ones are allocated
        yield strip


def _empty(channels: int, height: int, width: int) -> torch.Tensor:
    return torch.empty(1, channels, height, width, memory_format=torch.channels_last)


def _image(photo: UInt8 | torch.Tensor, target: Target, columns: slice = slice(None)) -> torch.Tensor:
    """These columns of a photo uint8 [H, W, 3], normalised, or of a map, as a network takes them."""
    part = photo[..., columns] if isinstance(photo, torch.Tensor) else normalise(photo[:, columns])[None]
    return part.to(target.device, memory_format=target.layout)
