"""Case 33: photos that are made to be slow, or to grow, end their decoder and nothing else."""

from __future__ import annotations

import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from milseg.data.image import open_photo
from milseg.errors import UserError
from milseg.serve.decoder_process import MAX_SCANS, SentPhoto, answer, jpeg_scans
from milseg.serve.decoders import Decoders

from .conftest import Live, photo, png_of

MIB = 2**20


def jpeg(size: tuple[int, int] = (64, 64), **options: object) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (90, 80, 200)).save(out, "JPEG", **options)
    return out.getvalue()


def with_scans(count: int, size: tuple[int, int] = (64, 64)) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    whole = jpeg(size, progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * count + whole[-2:]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(more: bytes) -> bytes:
    whole = png_of(photo(0))
    return whole[:33] + more + whole[33:]


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    made = Decoders(10**6, cpu_seconds=1)
    yield made
    made.close()


@pytest.mark.parametrize(("progressive", "scans"), [(False, 1), (True, 10)])
def test_scans_are_counted(progressive: bool, scans: int) -> None:
    assert jpeg_scans(jpeg(progressive=progressive)) == scans
    assert jpeg_scans(with_scans(7)) == 17


def test_thumbnails_do_not_count() -> None:
    """Every camera puts a small JPEG into a segment of the large one, and some a film behind it."""
    thumbnails = b"".join(b"\xff\xe1\x00\x16" + b"\xff\xda" * 10 for _ in range(20))
    whole = jpeg()
    data = whole[:2] + thumbnails + whole[2:] + b"\xff\xda" * 500
    assert jpeg_scans(data) == 1
    assert answer(data, 10**6)[0][:8] == struct.pack("<II", 64, 64)


@pytest.mark.parametrize("data", [b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8" + b"\xff\xda" * 99, b""])
def test_no_cut_breaks_the_count(data: bytes) -> None:
    assert jpeg_scans(data) >= 0


def test_very_many_scans_are_refused_at_once(live: Live) -> None:
    data = with_scans(20_000, (300, 300))
    assert len(data) < MIB
    began = time.monotonic()
    refused = live.ask("/v1/segment", data)
    assert (refused.status, time.monotonic() - began < 10) == (422, True)
    assert "a JPEG of 20,010 scans" in refused.json()["detail"]
    assert str(MAX_SCANS) in refused.json()["detail"]


SLOW = {
    # Pillow reads these in Python, one by one: 4 MiB took 3 to 9 seconds in which no other thread ran.
    "empty segments of a JPEG": lambda: jpeg()[:2] + b"\xff\xef\x00\x02" * (2 * MIB) + jpeg()[2:],
    "fill bytes of a JPEG": lambda: jpeg()[:2] + b"\xff" * (16 * MIB) + jpeg()[2:],
    "empty chunks of a PNG": lambda: png_with(chunk(b"vpAg", b"") * (MIB // 2)),
}


@pytest.mark.parametrize("case", SLOW)
def test_a_slow_photo_ends_its_decoder_alone(decoders: Decoders, case: str) -> None:
    with pytest.raises(UserError, match="not decoded within 1 seconds"):
        decoders.decode(SLOW[case]())
    np.testing.assert_array_equal(decoders.decode(png_of(photo(1))), photo(1))
    assert len(decoders._all) == 1


def test_other_threads_run_while_a_photo_is_decoded(decoders: Decoders) -> None:
    """Decoding holds a process of its own, not this one's lock."""
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(decoders.decode, SLOW["empty segments of a JPEG"]())
        longest = 0.0
        while not slow.done():
            began = time.monotonic()
            threading.Event().wait(0.001)
            longest = max(longest, time.monotonic() - began)
    assert longest < 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is limited as Linux counts it")
def test_a_photo_that_needs_far_more_memory_than_its_size() -> None:
    """A grey TIFF of 4,000 x 4,000 takes more than a decoder of small photos may have."""
    code = (
        "import sys; from milseg.serve import decoder_process as d; d.SPARE_BYTES = 0; d.limit_memory(100_000);"
        "print(d.answer(sys.stdin.buffer.read(), 10**8))"
    )
    out = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(out, "PNG")
    said = subprocess.run(
        [sys.executable, "-c", code], input=out.getvalue(), capture_output=True, env=os.environ, check=False
    ).stdout
    assert b"needs more memory" in said


def test_a_decoder_that_crashes_is_replaced(decoders: Decoders) -> None:
    np.testing.assert_array_equal(decoders.decode(png_of(photo(2))), photo(2))
    (process,) = decoders._all
    process.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(decoders.decode, png_of(photo(2)))
        while decoders._idle:
            time.sleep(0.01)
        process.kill()
        with pytest.raises(UserError, match="crashed its decoder"):
            waiting.result(60)
    np.testing.assert_array_equal(decoders.decode(png_of(photo(3))), photo(3))
    # One that ended while nobody used it costs no photo.
    (process,) = decoders._all
    process.kill()
    process.wait()
    np.testing.assert_array_equal(decoders.decode(png_of(photo(4))), photo(4))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks where Linux lists processes")
def test_a_decoder_ends_with_the_server() -> None:
    """Even with one that was killed: its standard input ends."""
    code = (
        "import os, sys; from milseg.serve.decoders import Decoders; d = Decoders(100); d.warm(1);"
        "print(next(iter(d._all)).pid, flush=True); os.kill(os.getpid(), 9)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).stdout)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            # Ended, and not yet asked for by the process that inherited it.
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.05)
    pytest.fail("it goes on")


def test_a_decoder_loads_no_torch() -> None:
    code = "import milseg.serve.decoder_process, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


def test_a_library_that_prints_or_fails_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, decoders: Decoders
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("milseg.serve.decoder_process.open_photo", fails)
    head, reason = answer(b"", 10**6)
    assert head == struct.pack("<III", 0, 0, len(reason))
    assert b"cannot be decoded (ZeroDivisionError)" in bytes(reason)
    for data, words in (
        (b"", "an empty file"),
        (b"hello", "a text file"),
        (png_of(photo(0))[:99], "cut short"),
    ):
        with pytest.raises(UserError, match=words):
            decoders.decode(data)


@pytest.mark.parametrize("ranges", [None, {"uint16": (0.0, 4095.0)}])
def test_deep_values_are_read_as_the_model_was_trained(ranges: dict[str, tuple[float, float]] | None) -> None:
    out = io.BytesIO()
    Image.fromarray(np.arange(0, 4000, 50, dtype=np.uint16).reshape(8, 10)).save(out, "TIFF")
    decoders = Decoders(10**6, ranges)
    found = decoders.decode(out.getvalue())
    decoders.close()
    np.testing.assert_array_equal(found, open_photo(SentPhoto(out.getvalue()), ranges=ranges))
