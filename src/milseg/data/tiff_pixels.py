"""The strips and tiles of a TIFF file as numbers: unpacked, turned, put together.

Source: Adobe, "TIFF Revision 6.0", 1992; "TIFF Technical Note 3" (floating-point predictor), 2005.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin

NONE, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD = 1, 5, 8, 32946, 32773, 34925, 50000
# What libtiff unpacks as plain bytes, inside Pillow.
COMPRESSIONS = (NONE, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA, ZSTD)
NO_PREDICTOR, HORIZONTAL, FLOATING_POINT = 1, 2, 3
LSB_FIRST = 2  # of FillOrder


@dataclass(frozen=True, kw_only=True)
class TiffLayout:
    """How the pixels of one TIFF page lie in its file.

    Attributes:
        height, width, bands: of the page.
        dtype: of one value, in the file's byte order; what values of other depths are unpacked to.
        bits: of one value in the file.
        planar: each band lies by itself.
        segment: (rows, columns) of a strip or tile; tiled: the last ones are whole.
        compression, predictor, fill_order: values of these tags.
        offsets, lengths: in bytes, of each strip or tile.
    """

    height: int
    width: int
    bands: int
    dtype: np.dtype[Any]
    bits: int
    planar: bool
    segment: tuple[int, int]
    tiled: bool
    compression: int
    predictor: int
    fill_order: int
    offsets: Sequence[int]
    lengths: Sequence[int]

    @property
    def grid(self) -> tuple[int, int]:
        """How many rows and columns of strips or tiles cover the page."""
        return -(-self.height // self.segment[0]), -(-self.width // self.segment[1])

    @property
    def segments(self) -> int:
        """How many strips or tiles there are in all."""
        return self.grid[0] * self.grid[1] * (self.bands if self.planar else 1)


def read_pixels(file: BinaryIO, layout: TiffLayout, bands: int) -> NDArray[Any]:
    """The first `bands` bands of a page, [H, W, bands], in the machine's byte order.

    A strip or tile of no length is 0, as programs write those that are empty.

    Raises:
        ValueError, OSError: data cut short or damaged.
    """
    result = np.zeros((layout.height, layout.width, bands), dtype=layout.dtype.newbyteorder("="))
    for number, plane, top, left in _places(layout, bands):
        length = layout.lengths[number]
        if not length:
            continue
        file.seek(layout.offsets[number])
        data = file.read(length)
        rows, columns = layout.segment
        if not layout.tiled:
            rows = min(rows, layout.height - top)
        values = _segment(data, layout, rows, columns)
        target = result[top : top + rows, left : left + columns]
        values = values[: target.shape[0], : target.shape[1]]
        if layout.planar:
            target[..., plane] = values[..., 0]
        else:
            target[...] = values[..., :bands]
    return result


def _places(layout: TiffLayout, bands: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, band, top row and left column of each strip or tile that is needed."""
    down, across = layout.grid
    for plane in range(bands if layout.planar else 1):
        for i in range(down):
            for j in range(across):
                number = (plane * down + i) * across + j
                yield number, plane, i * layout.segment[0], j * layout.segment[1]


def _segment(data: bytes, layout: TiffLayout, rows: int, columns: int) -> NDArray[Any]:
    """One strip or tile, [rows, columns, bands in it]."""
    bands = 1 if layout.planar else layout.bands
    row_bytes = -(-columns * bands * layout.bits // 8)
    data = _unpacked(data, layout, row_bytes, rows)
    raw = np.frombuffer(data, dtype=np.uint8, count=row_bytes * rows).reshape(rows, row_bytes)
    if layout.predictor == FLOATING_POINT:
        return _undo_floating_point(raw, layout.dtype, columns, bands)
    if layout.bits == 8 * layout.dtype.itemsize:
        values = raw.reshape(-1).view(layout.dtype).reshape(rows, columns, bands)
    else:
        values = _packed_integers(raw, layout.bits, columns * bands).astype(layout.dtype)
        values = values.reshape(rows, columns, bands)
    values = values.astype(layout.dtype.newbyteorder("="))
    if layout.predictor == HORIZONTAL:
        # Sums wrap around, as the differences did.
        kind = np.dtype(f"u{values.dtype.itemsize}")
        np.add.accumulate(values.view(kind), axis=1, dtype=kind, out=values.view(kind))
    return values


def _unpacked(data: bytes, layout: TiffLayout, row_bytes: int, rows: int) -> bytes:
    """The plain bytes of a strip or tile; never more than `rows` of `row_bytes`, whatever it would unpack to."""
    if layout.compression != NONE:
        return _by_libtiff(data, layout.compression, layout.fill_order, row_bytes, rows)
    if len(data) < row_bytes * rows:
        raise ValueError(f"{len(data):,} bytes in a strip or tile of {row_bytes * rows:,}")
    if layout.fill_order == LSB_FIRST:
        return np.packbits(np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")).tobytes()
    return data


def _by_libtiff(data: bytes, compression: int, fill_order: int, row_bytes: int, rows: int) -> bytes:
    """Unpack by Pillow's libtiff: as the one strip of a grey picture whose pixels are the bytes."""
    tags = [
        (256, 4, row_bytes),
        (257, 4, rows),
        (258, 3, 8),
        (259, 3, compression),
        (262, 3, 1),
        (266, 3, fill_order),
        (273, 4, 0),
        (277, 3, 1),
        (278, 4, rows),
        (279, 4, len(data)),
    ]
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(
        struct.pack("<HHII" if kind == 4 else "<HHIHxx", tag, kind, 1, start if tag == 273 else value)
        for tag, kind, value in tags
    )
    whole = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data
    image = TiffImagePlugin.TiffImageFile(io.BytesIO(whole))
    image.load()
    return image.tobytes()


def _undo_floating_point(
    raw: NDArray[np.uint8], dtype: np.dtype[Any], columns: int, bands: int
) -> NDArray[Any]:
    """Rows of differences between bytes, the highest bytes of all values first."""
    rows, width = len(raw), columns * bands
    summed = np.add.accumulate(raw.reshape(rows, -1, bands), axis=1, dtype=np.uint8)
    planes = summed.reshape(rows, dtype.itemsize, width).transpose(0, 2, 1)
    values = np.ascontiguousarray(planes).view(dtype.newbyteorder(">"))
    return values.reshape(rows, columns, bands).astype(dtype.newbyteorder("="))


def _packed_integers(raw: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint32]:
    """`count` numbers of `bits` bits a row, packed without gaps, the highest bit first."""
    digits = np.unpackbits(raw, axis=1)[:, : count * bits].reshape(len(raw), count, bits)
    numbers = np.zeros(digits.shape[:2], dtype=np.uint32)
    for bit in range(bits):
        numbers = numbers << 1 | digits[..., bit]
    return numbers
