"""The table of readers of photos: a row each, tried in order, by a file's first bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO, NamedTuple

from milseg.data.foreign_files import is_avif, is_heic
from milseg.data.pillow_reader import PNG_START, read_pillow
from milseg.data.raster import CheckSize, Raster, Refused
from milseg.data.tiff_reader import is_tiff, read_tiff

NETPBM = (b"P2", b"P3", b"P5", b"P6", b"Pf", b"PF")
JPEG_2000 = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")


class Reader(NamedTuple):
    """One row: whether a file's first bytes are its, and how the file is read.

    `read(file, check)` gives the image; it calls `check(width, height)` before it decodes, raises Refused (without
    the file's name) for what it refuses, `NotAnImage` for what is none, and anything else for damaged data.
    """

    about: str
    matches: Callable[[bytes], bool]
    read: Callable[[BinaryIO, CheckSize], Raster]


def read_heic(file: BinaryIO, check: CheckSize) -> Raster:
    """Read HEIC by Pillow's plug-in of the extra `heic`."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise Refused(
            "a HEIC photo, which needs one more package; run: pip install 'milseg[heic]', or convert it to JPEG"
        ) from None
    register_heif_opener()
    return read_pillow(file, check, formats=("HEIF",))


def read_avif(file: BinaryIO, check: CheckSize) -> Raster:
    """Read AVIF by Pillow, where it was built with it."""
    from PIL import features

    if not features.check("avif"):
        raise Refused(
            "an AVIF photo, which this Pillow cannot read; run: pip install -U 'pillow>=11.3', or convert it to JPEG"
        )
    return read_pillow(file, check)


READERS: dict[str, Reader] = {
    "tiff": Reader("TIFF and BigTIFF, 8 to 64 bits, strips or tiles, any bands", is_tiff, read_tiff),
    "heic": Reader("HEIC and HEIF, by the extra `heic`", is_heic, read_heic),
    "avif": Reader("AVIF", is_avif, read_avif),
    "pillow": Reader("JPEG, PNG, WebP, GIF, BMP, PPM, JPEG 2000, TGA", lambda head: True, read_pillow),
}


def may_be_deep(head: bytes) -> bool:
    """Whether a file with these first bytes may have values of more than 8 bits."""
    if head.startswith(PNG_START):
        return head[24:25] == b"\x10"  # bits of a value
    return is_tiff(head) or head[:2] in NETPBM or head.startswith(JPEG_2000)
