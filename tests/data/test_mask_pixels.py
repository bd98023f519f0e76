"""Class numbers from mask files of every kind of pixel."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from milseg.data.image import open_mask
from milseg.errors import UserError

VALUES = np.array([[0, 1, 2], [255, 2, 0]], dtype=np.uint8)


def grey_png(path: Path, rows: list[list[int]], bits: int) -> Path:
    """A grey PNG of few bits a pixel, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed = b""
    for row in rows:
        line = "".join(f"{value:0{bits}b}" for value in row)
        line += "0" * (-len(line) % 8)
        packed += b"\0" + int(line, 2).to_bytes(len(line) // 8, "big")
    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), bits, 0, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(packed)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    return path


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16", "I", "F"])
def test_the_same_numbers_in_any_kind_of_grey(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(VALUES)
    if mode in ("RGB", "RGBA", "LA"):
        image = image.convert(mode)
    elif mode != "L":
        image = Image.fromarray(VALUES.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    path = tmp_path / ("x.tif" if mode in ("I", "F") else "x.png")
    image.save(path)
    found = open_mask(path)
    assert found.dtype == np.uint8
    assert found.tolist() == VALUES.tolist()


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_of_few_bits_is_not_spread_over_all_values(tmp_path: Path, bits: int) -> None:
    rows = [[0, 1, 2], [3, 2, 0]]
    assert open_mask(grey_png(tmp_path / "x.png", rows, bits)).tolist() == rows


def test_what_holds_no_class_numbers_is_refused(tmp_path: Path) -> None:
    deep = np.array([[0, 256], [65535, 1]], dtype=np.uint16)
    fractions = np.array([[0.0, 0.5]], dtype=np.float32)
    see_through = np.dstack([VALUES, VALUES, VALUES, [[255, 255, 0], [255, 255, 255]]]).astype(np.uint8)
    for name, pixels, words in (
        ("deep.png", deep, "values of 16 bits or more that holds 65535"),
        ("soft.tif", fractions, "a mask of fractions"),
        ("alpha.png", see_through, "a mask with RGBA pixels in colours"),
    ):
        Image.fromarray(pixels).save(tmp_path / name)
        with pytest.raises(UserError, match=words):
            open_mask(tmp_path / name)
