"""A process that decodes photos from its standard input, under limits of time and memory; see `decoders`.

Imports no torch, so that it starts quickly and stays small.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import struct
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from milseg.data.image import PackedPhoto, UInt8, open_photo
from milseg.data.value_range import ValueRanges
from milseg.errors import UserError

# Encoders write about ten scans. Each scan walks the whole photo, however few bytes it takes in the file.
MAX_SCANS = 50
WALL_SECONDS = 60.0  # of one photo; more than the processor time, as a machine may be busy
# Deep grey takes the most: eight bytes a pixel in several arrays at once.
BYTES_PER_PIXEL = 64
SPARE_BYTES = 2**29
REPLY = struct.Struct("<III")
# Not 0xFF00 and restarts, which lie inside a scan, nor fill bytes.
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = b"\xff\xd8", b"\xff\xd9", b"\xff\xda"


class SentPhoto(PackedPhoto):
    """The bytes of a photo's file as a client sent them; messages call it "the photo"."""

    suffix, group = "", ""

    def __init__(self, data: bytes) -> None:
        self.data, self.length = data, len(data)

    def __str__(self) -> str:
        return "the photo"

    def read(self) -> bytes:
        return self.data


def jpeg_scans(data: bytes) -> int:
    """The number of scans in a JPEG file's first picture; thumbnails in its segments do not count.

    >>> jpeg_scans(bytes.fromhex("ffd8 ffda0004 0000 12ff00 ffda0004 0000 34 ffd9 ffda"))
    2
    """
    at, count = len(_START_OF_IMAGE), 0
    while (marker := _MARKER.search(data, at)) and marker[0] != _END_OF_IMAGE:
        count += marker[0] == _START_OF_SCAN
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2])
    return count


def decode(data: bytes, max_pixels: int, ranges: ValueRanges | None = None) -> UInt8:
    """A photo from the bytes of its file, uint8 [H, W, 3]; see `milseg.data.image.open_photo`.

    Raises:
        UserError: not a photo, damaged, larger than `max_pixels`, a JPEG of very many scans, or out of memory.
    """
    # Counting all pairs of bytes is quick, and rules out nearly every file.
    if data.startswith(_START_OF_IMAGE) and data.count(_START_OF_SCAN) > MAX_SCANS:
        scans = jpeg_scans(data)
        if scans > MAX_SCANS:
            raise UserError(
                f"the photo: a JPEG of {scans:,} scans, which would take minutes to decode; expected at most "
                f"{MAX_SCANS}. Save it anew in an image editor"
            )
    return open_photo(SentPhoto(data), max_pixels=max_pixels, ranges=ranges)


def answer(
    data: bytes, max_pixels: int, ranges: ValueRanges | None = None
) -> tuple[bytes, memoryview | bytes]:
    """The head and the content of a reply: pixels, or the reason why there are none."""
    try:
        pixels = decode(data, max_pixels, ranges)
    except UserError as error:
        reason = str(error).encode("utf-8", "backslashreplace")
    except Exception as error:
        # A bug in a decoder stays with its photo.
        reason = f"the photo: cannot be decoded ({type(error).__name__}); save it anew".encode()
    else:
        height, width = pixels.shape[:2]
        return REPLY.pack(height, width, 0), np.ascontiguousarray(pixels).data.cast("B")
    return REPLY.pack(0, 0, len(reason)), reason


def set_limits(cpu_seconds: float, wall_seconds: float) -> None:
    """Let the kernel end this process after so many seconds; 0 for never. Signals end it even inside a decoder."""
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, wall_seconds)


def limit_memory(max_pixels: int) -> None:
    """Let allocations fail beyond what the largest photo needs. Other systems than Linux count otherwise."""
    if sys.platform.startswith("linux"):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most = used + SPARE_BYTES + BYTES_PER_PIXEL * max_pixels
        with contextlib.suppress(ValueError, OSError):  # a lower limit is set already
            resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    """Decode until standard input ends."""
    max_pixels, cpu_seconds, ranges = int(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3])
    # Whatever a library prints must not reach the pipe of pixels.
    source, target = os.fdopen(0, "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    Image.init()
    limit_memory(max_pixels)
    while head := source.read(4):
        data = source.read(int.from_bytes(head, "little"))
        set_limits(cpu_seconds, WALL_SECONDS)
        reply, content = answer(data, max_pixels, ranges)
        set_limits(0, 0)
        del data
        target.write(reply)
        target.write(content)
        target.flush()


if __name__ == "__main__":
    main()
