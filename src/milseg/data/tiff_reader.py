"""TIFF of every layout: what Pillow reads well it reads; deep, planar, tiled, many bands and BigTIFF are read here."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from milseg.data.pillow_reader import read_pillow, rgba_on_white
from milseg.data.raster import CheckSize, Raster, Refused, upright
from milseg.data.tiff_pixels import (
    COMPRESSIONS,
    DEFLATE,
    FLOATING_POINT,
    HORIZONTAL,
    LZMA,
    LZW,
    OLD_DEFLATE,
    ZSTD,
    TiffLayout,
    read_pixels,
)
from milseg.data.types import UInt8

# It tells of odd tags, which are nobody's business as long as the pixels are sound.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR, CIELAB, ICCLAB, ITULAB = (
    *range(6),
    6,
    8,
    9,
    10,
)
CFA, LINEAR_RAW = 32803, 34892
GREY_OR_RGB = (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, MASK)
UNSIGNED, SIGNED, FLOAT, UNKNOWN = 1, 2, 3, 4  # of SampleFormat
KINDS = {UNSIGNED: "u", SIGNED: "i", FLOAT: "f", UNKNOWN: "u"}
DNG_VERSION, SUB_FILES, CFA_PATTERN, NODATA, ORIENTATION = 50706, 330, 33422, 42113, 274
ASSOCIATED, UNASSOCIATED = 1, 2  # of ExtraSamples: alpha
MAX_SEGMENTS = 2**18
PREDICTED = (LZW, DEFLATE, OLD_DEFLATE, LZMA, ZSTD)  # the compressions that have a predictor in libtiff
WAY_OUT = "save it again as plain TIFF or PNG (such as by: gdal_translate in.tif out.tif)"


def is_tiff(head: bytes) -> bool:
    """Whether a file begins as TIFF or BigTIFF does."""
    return head.startswith(TIFF_STARTS)


def read_tiff(file: BinaryIO, check: CheckSize) -> Raster:
    """Read the first page of a TIFF file.

    Args:
        check: called with (width, height) of the page and of its tiles before anything is decoded.

    Raises:
        Refused: a kind of TIFF that is not read, with the way out; too large.
        Exception: whatever a damaged file raises.
    """
    try:
        page, more = _first_page(file)
    except Exception:
        return read_pillow(file, check)  # it may still know better
    width, height = int(page.imagewidth), int(page.imagelength)
    check(width, height)
    if page.is_tiled:
        check(int(page.tilewidth), int(page.tilelength))
    _refuse_raw(page)
    notes = ("several pages, of which the first is taken",) if more else ()
    if _is_plain(page):
        return _plain(file, page, check, notes)
    return _raster(file, page, check, notes)


def _first_page(file: BinaryIO) -> tuple[tifffile.TiffPage, bool]:
    """The first page, and whether there are more; nothing else of the file is looked at."""
    file.seek(0)
    tiff = tifffile.TiffFile(file)
    page = tiff.pages.first
    assert isinstance(page, tifffile.TiffPage)
    try:
        more = tiff.pages[1] is not None
    except Exception:  # there is none, or it is damaged, which does not matter
        more = False
    if tiff.is_imagej and not more:
        # ImageJ writes large stacks as one page and says so in its text alone.
        images = re.search(r"^images=(\d+)", str(page.description), re.MULTILINE)
        more = images is not None and int(images[1]) > 1
    return page, more


def _is_plain(page: tifffile.TiffPage) -> bool:
    """Whether Pillow reads it, and rightly."""
    if page.parent.is_bigtiff or page.bitspersample not in (1, 2, 4, 8) or page.sampleformat not in (1, 4):
        return page.photometric == YCBCR
    if page.predictor != 1 and page.compression not in PREDICTED:
        return False  # which Pillow would not undo
    if page.planarconfig == 2 and page.samplesperpixel > 1 and page.photometric in GREY_OR_RGB:
        return False
    colours = page.samplesperpixel - len(page.extrasamples)
    if page.photometric == RGB and colours == 3 and len(page.extrasamples) <= 1:
        return True
    if page.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO, PALETTE, MASK):
        alpha = page.samplesperpixel == 2 and tuple(page.extrasamples) in ((ASSOCIATED,), (UNASSOCIATED,))
        return page.samplesperpixel == 1 or alpha
    return page.photometric not in GREY_OR_RGB


def _plain(file: BinaryIO, page: tifffile.TiffPage, check: CheckSize, notes: tuple[str, ...]) -> Raster:
    try:
        raster = read_pillow(file, check)
    except Refused:
        raise
    except Exception:
        # Odd tags can stop Pillow where the pixels are sound.
        if _unreadable(page):
            raise
        return _raster(file, page, check, notes)
    said = tuple(note for note in raster.notes if not note.startswith("several frames"))
    return Raster(values=raster.values, alpha=raster.alpha, notes=(*notes, *said), format="TIFF")


def _refuse_raw(page: tifffile.TiffPage) -> None:
    tags = page.tags
    raw = page.photometric in (CFA, LINEAR_RAW) or DNG_VERSION in tags or CFA_PATTERN in tags
    # Cameras keep a small picture first and the raw one below it.
    if raw or (SUB_FILES in tags and int(page.subfiletype) & 1 and 271 in tags):
        raise Refused(
            "a camera's raw file (DNG, NEF, ARW, ...), not a photo; develop it, and export it as JPEG, PNG or TIFF"
        )


def _unreadable(page: tifffile.TiffPage) -> str:
    """What stands in the way of reading a page here, in words; "" where nothing does."""
    compression = int(page.compression)
    if compression not in COMPRESSIONS:
        name = getattr(page.compression, "name", compression)
        return f"TIFF compressed by {name}"
    if not isinstance(page.bitspersample, int) or page.sampleformat not in KINDS:
        return "TIFF of complex numbers, or with bands of different depths"
    bits = page.bitspersample
    if page.sampleformat == FLOAT and bits not in (16, 32, 64):
        return f"TIFF of floating-point numbers of {bits} bits"
    if bits not in (8, 16, 32, 64) and not (bits < 32 and page.sampleformat != SIGNED):
        return f"TIFF of {bits} bits a value"
    if page.photometric not in (*GREY_OR_RGB, CMYK):
        name = getattr(page.photometric, "name", page.photometric)
        return f"TIFF of {bits} bits whose values are {name}"
    if int(page.predictor) not in (1, HORIZONTAL, FLOATING_POINT):
        return f"TIFF with predictor {int(page.predictor)}"
    if int(page.predictor) == FLOATING_POINT and page.sampleformat != FLOAT:
        return "TIFF with a predictor for floating-point numbers and whole ones"
    if page.predictor == HORIZONTAL and bits not in (8, 16, 32, 64):
        return f"TIFF with a predictor and {bits} bits a value"
    return ""


def _layout(page: tifffile.TiffPage) -> TiffLayout:
    bits = int(page.bitspersample)
    size = next(size for size in (1, 2, 4, 8) if 8 * size >= bits)
    height, width = int(page.imagelength), int(page.imagewidth)
    tile = (int(page.tilelength), int(page.tilewidth)) if page.is_tiled else (int(page.rowsperstrip), width)
    layout = TiffLayout(
        height=height,
        width=width,
        bands=int(page.samplesperpixel),
        dtype=np.dtype(f"{KINDS[int(page.sampleformat)]}{size}").newbyteorder(page.parent.byteorder),
        bits=bits,
        planar=page.planarconfig == 2 and page.samplesperpixel > 1,
        segment=tile if page.is_tiled else (min(tile[0], height) or height, width),
        tiled=page.is_tiled,
        compression=int(page.compression),
        predictor=int(page.predictor),
        fill_order=int(page.fillorder),
        offsets=page.dataoffsets,
        lengths=page.databytecounts,
    )
    if min(height, width, layout.bands, *layout.segment) < 1:
        raise ValueError("a picture without pixels")
    if layout.segments > min(MAX_SEGMENTS, len(layout.offsets), len(layout.lengths)):
        raise ValueError(f"{layout.segments:,} strips or tiles, of which {len(layout.offsets):,} are named")
    return layout


def _raster(file: BinaryIO, page: tifffile.TiffPage, check: CheckSize, notes: tuple[str, ...]) -> Raster:
    why = _unreadable(page)
    if why:
        raise Refused(f"{why}, which is not read; {WAY_OUT}")
    layout = _layout(page)
    extra = tuple(int(kind) for kind in page.extrasamples)
    colours, alpha = _bands(page.photometric, layout.bands, extra)
    used = max(colours, alpha + 1)
    # What is held in memory counts, and not pixels alone: 50 bands of 32 bits are no photo of 8 bits.
    weight = max(1, (used if layout.planar else layout.bands) * layout.dtype.itemsize // 8)
    check(layout.width, layout.height, weight)
    check(layout.segment[1], layout.segment[0], weight)
    values = read_pixels(file, layout, used)
    if layout.bits < 8:
        values *= 255 // (2**layout.bits - 1)
    if page.photometric == WHITE_IS_ZERO and values.dtype.kind == "u":
        values[..., :1] = (2 ** max(8, layout.bits) - 1) - values[..., :1]
    tag = page.tags.get(ORIENTATION)
    values = upright(values, int(tag.value) if tag is not None and isinstance(tag.value, int) else 1)
    return _coloured(values, page, colours, alpha, (*notes, *_band_notes(layout.bands, colours, alpha)))


def _bands(photometric: int, bands: int, extra: tuple[int, ...]) -> tuple[int, int]:
    """How many bands are the picture's colours, and the place of its alpha; -1 where there is none."""
    own = bands - len(extra)
    alphas = [own + i for i, kind in enumerate(extra) if kind in (ASSOCIATED, UNASSOCIATED)]
    alpha = alphas[0] if alphas else -1
    if photometric == CMYK:
        return 4, -1
    if photometric == RGB and own >= 3:
        return 3, alpha
    counted = bands - len(alphas)
    return (3 if counted >= 3 else 1), (alpha if alpha == bands - 1 else -1)


def _band_notes(bands: int, colours: int, alpha: int) -> Iterator[str]:
    left = bands - colours - (alpha >= 0)
    if left > 0:
        taken = "the first is taken" if colours == 1 else f"the first {colours} are taken"
        yield f"{bands} bands, of which {taken}"
    if alpha >= 0:
        yield "transparency, put on white"


def _coloured(
    values: NDArray[Any], page: tifffile.TiffPage, colours: int, alpha: int, notes: tuple[str, ...]
) -> Raster:
    """The raster of a page's values [H, W, bands]."""
    if page.photometric == CMYK:
        return Raster(values=_from_cmyk(values), notes=(*notes, "CMYK colours"), format="TIFF")
    nodata = _nodata(page)
    if alpha < 0:
        return Raster(values=values[..., :colours], nodata=nodata, notes=notes, format="TIFF")
    if values.dtype == np.uint8 and colours == 3:
        return Raster(
            values=rgba_on_white(np.ascontiguousarray(values[..., [0, 1, 2, alpha]])),
            notes=notes,
            format="TIFF",
        )
    full = 1.0 if values.dtype.kind == "f" else float(2 ** int(page.bitspersample) - 1)
    cover = np.clip(np.nan_to_num(values[..., alpha].astype(np.float32) / full), 0.0, 1.0)
    return Raster(values=values[..., :colours], alpha=cover, nodata=nodata, notes=notes, format="TIFF")


def _from_cmyk(values: NDArray[Any]) -> UInt8:
    """Inks [H, W, 4] of any depth as RGB, by Pillow's rule for 8 bits."""
    if values.dtype.kind == "f":
        values = np.clip(np.nan_to_num(values) * 255.0, 0, 255)
    else:
        values = values >> (8 * (values.dtype.itemsize - 1))
    inks = np.ascontiguousarray(values.astype(np.uint8))
    return np.asarray(Image.frombytes("CMYK", (inks.shape[1], inks.shape[0]), inks.tobytes()).convert("RGB"))


def _nodata(page: tifffile.TiffPage) -> float | None:
    """GDAL's mark for no data; None where there is none, or where it is no number."""
    tag = page.tags.get(NODATA)
    try:
        number = float(str(tag.value).strip("\0 ")) if tag is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) else None
