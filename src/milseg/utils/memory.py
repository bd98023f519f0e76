"""Keep a long run's memory bounded: give back what the allocator holds and no longer needs.

`milseg.utils.devices.keep_freed_memory` lets glibc keep what tensors free, as pages that are new to a process cost
time. Its heap then breaks into pieces: photos of many sizes need blocks of many sizes, and few of the freed ones fit.
The heap grows though nothing is held: to twice what a step needs after ten steps, to four times after a hundred.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

GROWTH = 1.2  # times what the work needs, before freed memory goes back
_STATM = Path("/proc/self/statm")


def resident_bytes() -> int | None:
    """This process's resident memory, in bytes; None where the system does not say.

    >>> resident_bytes() is None or resident_bytes() > 2**20
    True
    """
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def return_freed_memory() -> bool:
    """Give all freed memory back to the system, in every arena; whether the C library can."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    trim(0)
    return True


class MemoryBound:
    """Called between the steps of a long piece of work, gives freed memory back where it has grown too much.

    The first step after memory was given back shows what the work needs. Pages that are given back cost time when they
    are touched again, so they are kept until the process holds `GROWTH` times that need.

    Attributes:
        needed: the most that a step needed so far, in bytes, with all that the process holds besides.
        returned: how often memory was given back.
    """

    def __init__(self) -> None:
        self.needed = 0
        self.returned = 0
        self._fresh = return_freed_memory()

    def after_step(self) -> None:
        now = resident_bytes()
        if now is None:
            return
        if self._fresh:
            self.needed, self._fresh = max(self.needed, now), False
        elif now > GROWTH * self.needed and self.needed:
            self._fresh = return_freed_memory()
            self.returned += self._fresh
