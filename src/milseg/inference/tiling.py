"""The network on photos of any size: in tiles where the whole would take too much memory, with the same scores.

A place sees `field` pixels. Tiles overlap by that much and begin at multiples of the network's stride, so that each
place is taken from a tile that holds all it sees, or ends where the photo ends: no seam, whatever the tile.

A field of hundreds of pixels would have the network compute much of a large photo twice. So its layers run in parts,
each of which sees little: the lowest in tiles of the photo, the others in tiles of the map that the part before makes.
Such a map has fewer numbers, and a tile of it covers more of the photo. It is kept for as many rows as the next part
asks for.
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

# Larger photos go through in tiles; of 1 million pixels the widest layers of MobileNetV2 take 0.2 GB.
TILE_PIXELS = 1024 * 1024
SMALLEST = 64 * 64
# A part ends where its places see more than this share of a tile's side: what tiles overlap by is computed twice.
SEAM = 0.035
# It ends on a map of no more than so many numbers for each pixel of the photo, as rows of that map are kept; where a
# network has no such map early enough, tiles of the photo are up to twice as long.
KEPT_NUMBERS = 2
# Numbers in the widest map of an upper part's tile for each pixel of a tile of the photo: 128 MiB.
UPPER_NUMBERS = 32


class Network(Protocol):
    """All that prediction asks of a network: where its places lie, and their scores."""

    stride: int
    offset: float
    field: int

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """The (h, w) of the score map of a photo of so many pixels."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """float32 [1, 3, H, W], normalised, to scores [1, C, h, w]."""


def device_of(network: Network) -> torch.device:
    """Return the device on which a network computes; the CPU for one that is no torch module."""
    if isinstance(network, nn.Module):
        return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    return torch.device("cpu")


class Part(NamedTuple):
    """Consecutive layers of a network by themselves. Lengths count places of the map, or pixels, that they take.

    Attributes:
        run: photos, or a map [B, F, h, w], to the map that the layers make of it.
        stride, offset, field: as a network's.
        length: how many places a row of so many gives.
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
    target = _target(network, device)
    while True:
        try:
            if height * width <= most:
                return network(_image(photo, target)).float()
            return _in_tiles(parts_of(network, most), photo, target)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            smaller = min(most, height * width) // 4
            lowest = parts_of(network, smaller)[0]
            if smaller < SMALLEST or lowest.side <= lowest.field + 2 * lowest.stride:
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


def parts_of(network: Network, most: int) -> tuple[Part, ...]:
    """A network cut into parts, for photos in tiles of some `most` pixels.

    One that cannot be taken apart, such as an exported one, is one part.
    """
    if not isinstance(network, FCN):
        place = Geometry(network.stride, network.offset, network.field)
        side = _lowest(most, network.field)
        return (Part(network, *place, lambda pixels: network.map_size(pixels, pixels)[0], side),)
    found, modules, layers, widest, stride = list[Part](), list[nn.Module](), list[Layer](), 1, 1

    def part() -> Part:
        side = _upper(most, widest) if found else _lowest(most, geometry(layers).field)
        return _part(modules, layers, side)

    for module in network.in_order():
        own, convolutions = list(spatial_layers(module)), _convolutions(module)
        channels = [layer.out_channels for layer in convolutions]
        # Before a convolution alone, which works in place on nothing: the map before it belongs to several tiles.
        if layers and convolutions and convolutions[0].in_channels <= KEPT_NUMBERS * stride**2:
            side = _upper(most, max(widest, *channels)) if found else math.isqrt(most)
            if geometry([*layers, *own]).field > SEAM * side:
                found.append(part())
                modules, layers, widest = [], [], 1
        modules.append(module)
        layers += own
        widest = max([widest, *channels])
        stride *= math.prod(layer.stride for layer in own)
    return (*found, part())


def _lowest(most: int, field: int) -> int:
    """The side of a tile of the photo."""
    side = math.isqrt(most)
    return max(side, min(2 * side, round(field / SEAM)))


def _upper(most: int, widest: int) -> int:
    """The side of a tile of a map, of layers that make so many channels."""
    return math.isqrt(most * UPPER_NUMBERS // widest)


def _convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [part for part in module.modules() if isinstance(part, nn.Conv2d)]


def _part(modules: Sequence[nn.Module], layers: Sequence[Layer], side: int) -> Part:
    def run(x: torch.Tensor) -> torch.Tensor:
        for module in modules:
            x = module(x)
        return x

    return Part(run, *geometry(layers), lambda places: map_length(layers, places), side)


def _in_tiles(parts: Sequence[Part], photo: UInt8, target: Target) -> torch.Tensor:
    size = (photo.shape[0], photo.shape[1])
    strips = _strips(parts[0], lambda start, stop: photo[start:stop], size, target)
    size = (parts[0].length(size[0]), parts[0].length(size[1]))
    for part in parts[1:]:
        strips = _strips(part, _Band(strips).rows, size, target)
        size = (part.length(size[0]), part.length(size[1]))
    found: torch.Tensor | None = None
    row = 0
    for strip in strips:
        if found is None:
            found = torch.empty(1, strip.shape[1], *size)
        found[:, :, row : row + strip.shape[2]] = strip
        row += strip.shape[2]
    assert found is not None
    return found


class _Band:
    """Rows of a map that comes strip by strip, from the top; rows before those asked for last are forgotten."""

    def __init__(self, strips: Iterator[torch.Tensor]) -> None:
        self._strips, self._kept, self._first = strips, list[torch.Tensor](), 0

    def rows(self, start: int, stop: int) -> torch.Tensor:
        while self._first + sum(strip.shape[2] for strip in self._kept) < stop:
            self._kept.append(next(self._strips))
        while self._first + self._kept[0].shape[2] <= start:
            self._first += self._kept.pop(0).shape[2]
        first, parts = self._first, list[torch.Tensor]()
        for strip in self._kept:
            parts.append(strip[:, :, max(0, start - first) : stop - first])
            first += strip.shape[2]
        return torch.cat(parts, dim=2)


def _strips(
    part: Part,
    rows: Callable[[int, int], UInt8 | torch.Tensor],
    size: tuple[int, int],
    target: Target,
) -> Iterator[torch.Tensor]:
    """The map of a part in strips float32 [1, C, n, w] from the top, on the CPU: it may be larger than the device.

    Args:
        rows: what the part takes, its rows from one number to another: of a photo uint8 [n, W, 3], or of a map.
        size: all of its rows and columns.
    """
    down, across = (
        pieces(n, part.length(n), part.side, stride=part.stride, offset=part.offset, field=part.field)
        for n in size
    )
    most, width = max(row.last - row.first for row in down), across[-1].last
    channels = 0  # known once a tile is done
    for row in down:
        band = rows(row.start, row.stop)
        # Made before the tiles' own maps, and as large each time, it lies where the one before lay; between them it
        # would cut the memory that they leave into pieces too small for the next tile's.
        kept = _empty(channels, most, width)
        for column in across:
            made = part.run(_image(band, target, slice(column.start, column.stop)))
            if not channels:
                channels = made.shape[1]
                kept = _empty(channels, most, width)
            strip = kept[:, :, : row.last - row.first]
            above, left = row.start // part.stride, column.start // part.stride
            strip[:, :, :, column.first : column.last] = made[
                :, :, row.first - above : row.last - above, column.first - left : column.last - left
            ]
        del band, made  # before the next ones are made
        yield strip


def _empty(channels: int, height: int, width: int) -> torch.Tensor:
    return torch.empty(1, channels, height, width, memory_format=torch.channels_last)


def _image(photo: UInt8 | torch.Tensor, target: Target, columns: slice = slice(None)) -> torch.Tensor:
    """These columns of a photo uint8 [H, W, 3], normalised, or of a map, as a network takes them."""
    part = photo[..., columns] if isinstance(photo, torch.Tensor) else normalise(photo[:, columns])[None]
    return part.to(target.device, memory_format=target.layout)
