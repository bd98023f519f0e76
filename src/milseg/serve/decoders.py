"""Photos that strangers send are decoded in processes of their own, which can be ended.

A file of 1 MiB can keep a decoder busy for minutes (20,000 JPEG scans), and one of 20 MiB hold Python's lock for half
a minute (millions of empty segments). The kernel ends a decoder at a limit of time, and refuses it memory beyond one.
The photo is refused, and the next one gets a fresh process. A process starts in about 0.3 seconds, as it imports no
torch, and stays for the photos that follow.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from typing import IO

import numpy as np

from milseg.data.image import UInt8
from milseg.data.value_range import ValueRanges
from milseg.errors import UserError

CPU_SECONDS = 10.0  # of one photo
PIPE_BYTES = 2**20
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # the others' stacks would count as memory
    # glibc keeps freed blocks of ordinary photos. Handing them back and clearing new ones doubles the time of a photo.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**26),
}
# Height, width, and the bytes of a reason that follow; 0 bytes where the pixels follow.
REPLY = struct.Struct("<III")
Process = subprocess.Popen[bytes]


class Decoders:
    """Processes that decode photos, started as they are needed. Thread-safe.

    Args:
        max_pixels: larger photos are refused before decoding.
        ranges: of values of more than 8 bits.
        cpu_seconds: of processor time that one photo may take.
    """

    def __init__(
        self, max_pixels: int, ranges: ValueRanges | None = None, *, cpu_seconds: float = CPU_SECONDS
    ) -> None:
        self.max_pixels, self.ranges, self.cpu_seconds = max_pixels, ranges, cpu_seconds
        self._lock = threading.Lock()
        self._idle: list[Process] = []
        self._all: set[Process] = set()

    def warm(self, count: int) -> None:
        """Start `count` processes now rather than at the first photos."""
        for process in [self._start() for _ in range(count)]:
            self._put(process)

    def decode(self, data: bytes) -> UInt8:
        """A photo from the bytes of its file, uint8 [H, W, 3]; see `milseg.data.image.open_photo`.

        Raises:
            UserError: not a photo, damaged, too large, or one that takes too much time or memory.
        """
        process = self._take()
        try:
            return self._ask(process, data)
        except (EOFError, OSError):
            raise UserError(self._why(process)) from None
        finally:
            self._put(process)

    def close(self) -> None:
        """End all processes."""
        for process in list(self._all):
            self._end(process)

    def _ask(self, process: Process, data: bytes) -> UInt8:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(struct.pack("<I", len(data)))
        process.stdin.write(data)
        process.stdin.flush()
        height, width, reason = REPLY.unpack(_read(process.stdout, REPLY.size))
        if reason:
            raise UserError(_read(process.stdout, reason).decode())
        pixels = _read(process.stdout, 3 * height * width)
        return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)

    def _why(self, process: Process) -> str:
        """The reason for which a decoder ended, for whoever sent the photo."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        if process.returncode in (-signal.SIGPROF, -signal.SIGALRM):
            return (
                f"the photo: not decoded within {self.cpu_seconds:g} seconds, which no ordinary photo of its size "
                "takes; save it anew in an image editor"
            )
        return "the photo: it crashed its decoder; save it anew in an image editor, as JPEG or PNG"

    def _take(self) -> Process:
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                return self._start()
            if process.poll() is None:
                return process
            self._end(process)

    def _put(self, process: Process) -> None:
        if process.poll() is None:
            with self._lock:
                self._idle.append(process)
        else:
            self._end(process)

    def _start(self) -> Process:
        module = "milseg.serve.decoder_process"
        ranges = json.dumps(None if self.ranges is None else dict(self.ranges))
        limits = (str(self.max_pixels), str(self.cpu_seconds))
        command = [sys.executable, "-P", "-m", module, *limits, ranges]
        # The packages are those of this process.
        env = os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Ctrl-C goes to a whole group, and the server still finishes what it took.
            start_new_session=True,
            env=env,
        )
        for pipe in (process.stdin, process.stdout):
            # Where pipes stay small, a photo passes in more pieces.
            with contextlib.suppress(OSError, AttributeError):
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)  # type: ignore[arg-type]
        with self._lock:
            self._all.add(process)
        return process

    def _end(self, process: Process) -> None:
        with self._lock:
            self._all.discard(process)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # unsent bytes of a photo that ended it
                    pipe.close()


def _read(file: IO[bytes], size: int) -> bytearray:
    """Exactly `size` bytes.

    Raises:
        EOFError: the file ends before.
    """
    into = bytearray(size)
    view, at = memoryview(into), 0
    while at < size:
        count: int = file.readinto(view[at:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        at += count
    return into
