"""SBD's masks: one matrix out of a MATLAB 5 file, without scipy."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from milseg.data.types import MAX_PIXELS, UInt8
from milseg.errors import UserError

MAT_MATRIX, MAT_COMPRESSED, MAT_STRUCT, MAT_UINT8 = 14, 15, 2, 9


def open_mat(path: Path, max_pixels: int = MAX_PIXELS) -> UInt8:
    """Read an SBD mask, uint8 [H, W].

    Raises:
        UserError: missing, damaged, or no SBD mask.
    """
    try:
        return read_segmentation(path.read_bytes(), max_pixels)
    except FileNotFoundError:
        raise UserError(f"{path}: no such mask") from None
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise UserError(
            f"{path}: damaged, or not an SBD mask ({error}); expected a MATLAB 5 file with GTcls.Segmentation"
        ) from None


def read_segmentation(data: bytes, max_pixels: int = MAX_PIXELS) -> UInt8:
    """`GTcls.Segmentation` of a MATLAB 5 file, uint8 [H, W]; nothing else in the file is decoded.

    Written here because a damaged file can end the whole process inside `scipy.io.loadmat`.

    Source: MathWorks, "MAT-File Level 5 File Format": a 128-byte header, then elements of type, length,
    content.

    Raises:
        ValueError, struct.error, zlib.error: damaged, of another kind, or more than `max_pixels` pixels.
    """
    if data[124:128] not in (b"\x00\x01IM", b"\x01\x00MI"):
        raise ValueError("no MATLAB 5 header")
    order = "<" if data[126:128] == b"IM" else ">"
    # What lies beside the mask is small: a file that inflates far beyond it is refused, not unpacked.
    limit = max_pixels + 2**26
    for kind, content in _mat_elements(data[128:], order):
        if kind == MAT_COMPRESSED:
            inflate = zlib.decompressobj()
            content = inflate.decompress(content, limit)
            if not inflate.eof:
                raise ValueError("compressed data cut short or too large")
            kind, content = next(_mat_elements(content, order), (0, b""))
        if kind != MAT_MATRIX:
            continue
        flags, _, name, *rest = _mat_elements(content, order)
        if name[1] == b"GTcls" and struct.unpack_from(order + "I", flags[1])[0] & 255 == MAT_STRUCT:
            return _mat_field(rest, b"Segmentation", order, max_pixels)
    raise ValueError("no struct GTcls")


def _mat_elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Each element's (type, content)."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(order + "2I", data, at)
        if kind >> 16:
            # Up to four bytes lie in the tag itself: length in the upper half, content in the second word.
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            # Elements start at multiples of eight bytes, but for compressed ones.
            start, end = at + 8, at + 8 + (size if kind == MAT_COMPRESSED else -(-size // 8) * 8)
        if start + size > min(len(data), end):
            raise ValueError("cut short")
        yield kind, data[start : start + size]
        at = end


def _mat_field(parts: list[tuple[int, bytes]], field: bytes, order: str, max_pixels: int) -> UInt8:
    """The uint8 matrix in one field of a 1 x 1 struct; `parts` are its name length, names, and values."""
    (_, width), (_, names), *values = parts
    step = struct.unpack(order + "i", width)[0]
    if step <= 0:
        raise ValueError("field names of no length")
    fields = [names[i : i + step].split(b"\0")[0] for i in range(0, len(names), step)]
    if field not in fields[: len(values)]:
        raise ValueError(f"no field {field.decode()}")
    flags, shape, _, *content = _mat_elements(values[fields.index(field)][1], order)
    kind = struct.unpack_from(order + "I", flags[1])[0] & 255
    if kind != MAT_UINT8 or len(shape[1]) != 8 or len(content) != 1:
        raise ValueError(f"{field.decode()} is no two-dimensional uint8 matrix")
    height, length = struct.unpack(order + "2i", shape[1])
    pixels = np.frombuffer(content[0][1], dtype=np.uint8)
    if min(height, length) < 1 or height * length != pixels.size or pixels.size > max_pixels:
        raise ValueError(f"{pixels.size:,} pixels for {length} x {height}, limit {max_pixels:,}")
    # MATLAB stores column by column.
    return np.ascontiguousarray(pixels.reshape(length, height).T)
