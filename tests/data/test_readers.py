"""Odd photos by the table of readers: metadata, deep PNG, HEIC, files that are none, and whatever decoders raise."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import milseg.data.image
from milseg.data.image import open_photo, read_photo
from milseg.data.readers import READERS
from milseg.errors import UserError

PIXELS = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((16, 16), np.uint8))


def jpeg(exif: bytes = b"", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert("RGB").save(file, "JPEG", exif=exif, quality=95, **options)
    return file.getvalue()


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block of an orientation (upside down) and odd entries (tag, type, count, four bytes)."""
    every = sorted([(0x0112, 3, 1, struct.pack("<HH", 3, 0)), *entries])
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in every)
    tail = struct.pack("<II", 0, 0)  # a rational of 0 / 0, and what else is read behind the entries
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(every)) + body + bytes(4) + tail


END = struct.pack("<I", 8 + 2 + 2 * 12 + 4)
ODD = {
    "a rational as the artist": (0x013B, 5, 1, END),
    "a rational as the description": (0x010E, 10, 1, END),
    "a resolution that is not a number": (0x011A, 11, 1, struct.pack("<f", float("nan"))),
    "an infinite resolution": (0x011A, 11, 1, struct.pack("<f", float("inf"))),
    "a resolution of 0 / 0": (0x011A, 5, 1, END),
    "a negative width": (0x0100, 9, 1, struct.pack("<i", -5)),
    "a value that lies outside the file": (0x010F, 2, 2**31, struct.pack("<I", 2**31)),
    "a type that does not exist": (0x0131, 99, 1, bytes(4)),
}


@pytest.mark.parametrize("entry", ODD.values(), ids=ODD)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_sound_photo_with_odd_metadata_is_a_sound_photo(
    tmp_path: Path, entry: tuple[int, int, int, bytes], suffix: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    if suffix == "jpg":
        path.write_bytes(jpeg(exif(entry)))
    else:
        Image.fromarray(PIXELS).save(path, exif=exif(entry))
    photo = open_photo(path)
    assert np.abs(photo[8::16, 8::16, 0].astype(int) - PIXELS[::-1, ::-1][8::16, 8::16]).max() <= 3


def test_metadata_that_stops_pillow_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it happens with the next version's strictness: the pixels and the orientation are read all the same."""
    import PIL.JpegImagePlugin

    def strict(self: object) -> None:
        if len(self.info.get("exif", b"")) > 40:  # type: ignore[attr-defined]
            raise ZeroDivisionError("metadata")

    monkeypatch.setattr(PIL.JpegImagePlugin.JpegImageFile, "_read_dpi_from_exif", strict)
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg(exif(ODD["a resolution of 0 / 0"]), comment=b"a comment"))
    assert np.abs(open_photo(path)[8::16, 8::16, 0].astype(int) - PIXELS[::-1, ::-1][8::16, 8::16]).max() <= 3


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    sum_ = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", sum_)


def png(
    *extra: bytes, bits: int = 8, colour: int = 2, rows: bytes = b"", size: tuple[int, int] = (1, 1)
) -> bytes:
    header = struct.pack(">2I5B", *size, bits, colour, 0, 0, 0)
    image = (
        chunk(b"IHDR", header) + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + image


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"iCCP", b"profile\0\0" + b"no zlib"),
        chunk(b"tEXt", b"Comment\0x", checksum=0),
        chunk(b"zTXt", b"Big\0\0" + zlib.compress(bytes(2**24))),
        chunk(b"eXIf", b"II*\0", checksum=7),
    ],
    ids=["ICC", "checksum", "large text", "EXIF"],
)
def test_a_png_with_damaged_metadata_is_read(tmp_path: Path, extra: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(extra, rows=b"\0\x01\x02\x03"))
    assert open_photo(path).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize(("colour", "bands"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_of_16_bits_keeps_them(tmp_path: Path, colour: int, bands: int) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (5, 7, bands), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path = tmp_path / "x.png"
    path.write_bytes(png(bits=16, colour=colour, rows=rows, size=(7, 5)))
    raster = read_photo(path)
    colours = 3 if bands > 2 else 1
    np.testing.assert_array_equal(raster.values, values[..., :colours])
    if bands in (2, 4):
        np.testing.assert_allclose(raster.alpha, values[..., -1] / 65535, atol=1e-6)


FILES = {
    b"": "an empty file",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n": "git lfs pull",
    b"%PDF-1.4\n%\xe2\xe3": "a PDF document",
    b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>': "an SVG drawing",
    b"\n<!DOCTYPE html>\n<html><title>404</title>": "a web page",
    b'{"error": "not found"}': "a JSON text",
    b"Not found": "a text file",
    bytes(600): "a file of zeros",
    b"II*\0\x10\0\0\0CR\x02\0": "Canon CR2",
    b"\0\0\0\x18ftypcrx \0\0\0\1crx isom": "Canon CR3",
    bytes(128) + b"DICM" + bytes(20): "a DICOM file",
    b"\0\0\0\x18ftypisom\0\0\2\0isommp42": "a video",
    b"\x1a\x45\xdf\xa3" + bytes(30): "a video",
    b"RIFF\0\0\0\0AVI LIST": "a video",
    b"\xff\x0a" + bytes(30): "a JPEG XL file",
    b"8BPS\0\1": "a Photoshop document",
    b"PK\x03\x04" + bytes(30): "a ZIP archive",
    b"\x93NUMPY\x01\0": "a NumPy array",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\0\x05\x16\x07\0\2\0\0Mac OS X": "what macOS keeps",
    b"\x01\x02\x03\x04 nothing known": "not an image that can be read (it begins with 01 02 03 04",
}


@pytest.mark.parametrize("data", FILES, ids=FILES.values())
def test_what_is_no_photo_is_named(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        open_photo(path)
    assert str(error.value).startswith(f"{path}: ")
    assert FILES[data] in str(error.value)


def test_a_raw_photo_in_tiff_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(
        path,
        np.zeros((8, 8), np.uint16),
        photometric="minisblack",
        extratags=[(50706, 1, 4, (1, 4, 0, 0), True)],
    )
    with pytest.raises(UserError, match=r"a camera's raw file.*develop it"):
        open_photo(path)


@pytest.mark.parametrize("name", ["a.heic", "called.jpg"])
def test_heic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    heif = pytest.importorskip("pillow_heif")
    path = tmp_path / name
    heif.from_pillow(Image.fromarray(PIXELS).convert("RGB")).save(path, quality=95, format="HEIF")
    assert np.abs(open_photo(path)[8::16, 8::16, 0].astype(int) - PIXELS[8::16, 8::16]).max() <= 4
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(UserError, match=r"a HEIC photo.*pip install 'milseg\[heic\]'"):
        open_photo(path)


RAISED = [
    OSError,
    ValueError,
    struct.error,
    ZeroDivisionError,
    OverflowError,
    SyntaxError,
    KeyError,
    AttributeError,
]


@pytest.mark.parametrize("kind", [*RAISED, TypeError, RecursionError, AssertionError, RuntimeError])
def test_whatever_a_reader_raises_is_the_photos_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Callable[[str], Exception]
) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg())

    def fail(*_: object) -> None:
        raise kind("odd")

    monkeypatch.setitem(READERS, "pillow", READERS["pillow"]._replace(read=fail))
    with pytest.raises(UserError, match=r"x\.jpg: damaged or cut short \('?odd'?\)"):
        open_photo(path)


def test_too_little_memory_is_the_photos_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(jpeg())

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(milseg.data.image, "to_rgb", fail)
    with pytest.raises(UserError, match="needs more memory than there is"):
        open_photo(path)


def test_a_limit_above_pillows_own_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = tmp_path / "x.png"
    Image.fromarray(PIXELS).save(path)
    assert open_photo(path, max_pixels=2000).shape == (32, 48, 3)
