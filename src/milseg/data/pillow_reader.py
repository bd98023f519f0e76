"""Photos that Pillow decodes: every format but TIFF of more than 8 bits, and HEIC by its plug-in."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from milseg.data.raster import CheckSize, NotAnImage, Raster, Refused, upright
from milseg.data.types import UInt8

# Plain raster formats only: Pillow would hand others (EPS) to an outside program.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF", "HEIF", "TGA")
ORIENTATION = 0x0112
TRANSPARENT = ("LA", "PA", "RGBA", "La", "RGBa")
PNG_START, JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
# Chunks of a PNG that its pixels need.
PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")


def open_image(file: BinaryIO, formats: Sequence[str] = FORMATS) -> ImageFile.ImageFile:
    """Open an image by its header, as `Image.open` does, without its limit of pixels, which is not ours.

    Raises:
        NotAnImage: none of `formats`.
        Exception: whatever Pillow raises on a damaged header.
    """
    Image.init()
    damaged: Exception | None = None
    file.seek(0)
    prefix = file.read(16)
    for kind in formats:
        if kind not in Image.OPEN:
            continue
        factory, accept = Image.OPEN[kind]
        accepted = accept is None or accept(prefix)
        if not accepted or isinstance(accepted, str):
            continue
        file.seek(0)
        try:
            return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            # Pillow's way of saying that it is another format, or that this one's header is damaged.
            damaged = damaged or (error if accept is not None else None)
    raise damaged or NotAnImage


def read_pillow(file: BinaryIO, check: CheckSize, *, formats: Sequence[str] = FORMATS) -> Raster:
    """Read a photo with Pillow; one whose metadata alone is damaged is read without it.

    Args:
        check: called with (width, height) before anything is decoded; raises where it is too large.
        formats: of Pillow's, that it may be.

    Raises:
        NotAnImage: none of them.
        Exception: whatever Pillow raises on damaged data.
    """
    try:
        return _read(file, check, formats)
    except (Refused, NotAnImage):
        raise
    except Exception:
        plain = _without_metadata(file)
        if plain is None:
            raise
        try:
            return _read(plain, check, formats)
        except Refused:
            raise
        except Exception:  # then the pixels are damaged, which the first error tells
            pass
        raise


def _read(file: BinaryIO, check: CheckSize, formats: Sequence[str]) -> Raster:
    image = open_image(file, formats)
    check(*image.size)
    if image.format == "PNG" and image.tile:
        deep = _deep_png(file, image)
        if deep is not None:
            return deep
    image.load()
    return raster_of(image)


def raster_of(image: Image.Image) -> Raster:
    """A loaded Pillow image as a raster, upright, in RGB, or grey of more than 8 bits."""
    notes = list(_notes(image))
    orientation = orientation_of(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "I" and values.size and 0 <= int(values.min()) <= int(values.max()) < 2**16:
            values = values.astype(np.uint16)  # as newer versions of Pillow give it
        key = image.info.get("transparency")
        alpha = (values != key).astype(np.float32) if isinstance(key, int) else None
        return Raster(
            values=upright(values[..., None], orientation),
            alpha=None if alpha is None else upright(alpha, orientation),
            notes=tuple(notes),
            format=image.format or "",
        )
    return Raster(
        values=upright(np.asarray(_on_white(image)), orientation),
        notes=tuple(notes),
        format=image.format or "",
    )


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, and nothing else of the metadata; 1 where it cannot be read."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
        return orientation if isinstance(orientation, int) else 1
    except Exception:  # a sound photo with odd metadata is a sound photo
        return 1


def _on_white(image: Image.Image) -> Image.Image:
    """A Pillow image of 8 bits in RGB, its transparency on white."""
    if image.mode == "RGB" and not isinstance(image.info.get("transparency"), tuple):
        return image
    if image.mode in TRANSPARENT or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def rgba_on_white(pixels: UInt8) -> UInt8:
    """Pixels uint8 [H, W, 4] on white, as Pillow puts them there."""
    return np.asarray(_on_white(Image.fromarray(pixels)))


def _notes(image: Image.Image) -> Iterator[str]:
    try:
        animated = bool(getattr(image, "is_animated", False)) and image.format != "MPO"
    except Exception:  # it may look for a second frame, which may be damaged
        animated = False
    if animated:
        yield "several frames, of which the first is taken"
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        yield f"{image.mode} colours"
    if image.mode in TRANSPARENT or "transparency" in image.info:
        yield "transparency, put on white"


# Colour PNG of 16 bits, of which Pillow alone gives the upper 8: by its raw mode, bands and the mode to read it in.
DEEP_PNG = {"RGB;16B": ("RGB;16B", "RGB;16L"), "RGBA;16B": ("RGBA;16B", "RGBA;16L")}


def _deep_png(file: BinaryIO, image: ImageFile.ImageFile) -> Raster | None:
    """All 16 bits of a colour PNG; None for any other."""
    raw = image.tile[0][3]
    raw = raw[0] if isinstance(raw, tuple) else raw
    if raw == "LA;16B":
        values: NDArray[Any] = _halves_of_grey_alpha(file)
    elif raw in DEEP_PNG:
        upper, lower = (_as_raw(file, mode) for mode in DEEP_PNG[raw])
        values = upper.astype(np.uint16) << 8 | lower
    else:
        return None
    key = image.info.get("transparency")
    colours = 3 if values.shape[2] > 2 else 1
    alpha = None
    if values.shape[2] in (2, 4):
        alpha = values[..., -1].astype(np.float32) / 65535.0
    elif isinstance(key, tuple):
        alpha = (values != np.array(key)).any(-1).astype(np.float32)
    orientation = orientation_of(image)
    return Raster(
        values=upright(values[..., :colours], orientation),
        alpha=None if alpha is None else upright(alpha, orientation),
        notes=() if alpha is None else ("transparency, put on white",),
        format="PNG",
    )


def _as_raw(file: BinaryIO, mode: str) -> UInt8:
    """One byte of each value of a PNG: the upper for a raw mode of big-endian numbers, else the lower."""
    image = open_image(file)
    # Tiles are plain tuples before Pillow 11.
    tiles: list[Any] = [
        tile._replace(args=mode) if hasattr(tile, "_replace") else (*tile[:3], mode) for tile in image.tile
    ]
    image.tile = tiles
    image.load()
    return np.asarray(image)


def _halves_of_grey_alpha(file: BinaryIO) -> NDArray[np.uint16]:
    """Grey with alpha of 16 bits, uint16 [H, W, 2]: the four bytes of a pixel lie as RGBA of 8 bits does."""
    file.seek(0)
    data = bytearray(file.read())
    header = data[12:24] + bytes([8, 6]) + data[26:29]  # bit depth, colour type
    data[12:29] = header
    data[29:33] = struct.pack(">I", zlib.crc32(header))
    image = open_image(io.BytesIO(data))
    image.load()
    return np.ascontiguousarray(np.asarray(image)).view(">u2").astype(np.uint16)


def _without_metadata(file: BinaryIO) -> BinaryIO | None:
    """The same JPEG or PNG with nothing but what its pixels need and the orientation; None for other formats."""
    file.seek(0)
    data = file.read()
    if data.startswith(JPEG_START):
        return io.BytesIO(_plain_jpeg(data))
    if data.startswith(PNG_START):
        return io.BytesIO(_plain_png(data))
    return None


def _plain_jpeg(data: bytes) -> bytes:
    """A JPEG whose segments of applications and comments are gone, but for Adobe's, which names the colours.

    The orientation is put in again, as EXIF that holds nothing else.
    """
    orientation = 1
    kept = []
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xDA:  # start of scan: all that follows is pixels
            break
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at:end]
        if marker == 0xE1 and segment[4:10] == b"Exif\0\0":
            orientation = _orientation_in(segment[10:])
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or marker == 0xEE:
            kept.append(segment)
        at = end
    exif = (
        b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<2HIHH", ORIENTATION, 3, 1, orientation, 0) + bytes(4)
    )
    app1 = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    return b"\xff\xd8" + app1 + b"".join(kept) + data[at:]


def _orientation_in(exif: bytes) -> int:
    """The orientation in an EXIF block, read entry by entry, so that no other entry matters; 1 where there is none."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        start = struct.unpack_from(f"{order}I", exif, 4)[0] if order else len(exif)
        count = struct.unpack_from(f"{order}H", exif, start)[0]
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if tag == ORIENTATION and kind == 3 and 1 <= value <= 8:
                return int(value)
    except struct.error:
        pass
    return 1


def _plain_png(data: bytes) -> bytes:
    """A PNG with the chunks alone that its pixels and its orientation need."""
    kept = [PNG_START]
    at = len(PNG_START)
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        kind = data[at + 4 : at + 8]
        sound = zlib.crc32(data[at + 4 : end - 4]).to_bytes(4, "big") == data[end - 4 : end]
        if kind in PNG_CHUNKS and (kind != b"eXIf" or sound):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)
