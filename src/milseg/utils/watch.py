"""Work that may never end by itself, such as a download from a server that sends a byte a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import TypeVar

Result = TypeVar("Result")
SLOWEST = 1000  # bytes a second
PATIENCE = 60.0  # seconds over which they are counted


class TooSlow(Exception):
    """What is being fetched grows by less than `SLOWEST` bytes a second."""


def watched(work: Callable[[], Result], size: Callable[[], int]) -> Result:
    """Run `work` in a thread of its own; give up when `size` hardly grows.

    A thread cannot be ended from outside. One that was given up waits on, and ends with the process.

    Args:
        size: bytes that have come so far.

    Raises:
        TooSlow: fewer than `SLOWEST` bytes a second came over the last `PATIENCE` seconds.

    >>> watched(lambda: 3, lambda: 0)
    3
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="watched", daemon=True).start()
    since, before = time.monotonic(), size()
    while not wait_for([future], timeout=min(1.0, PATIENCE)).done:
        now = time.monotonic()
        if now - since >= PATIENCE:
            current = size()
            if current - before < SLOWEST * (now - since):
                rate = max(0, current - before) / (now - since)
                raise TooSlow(f"{rate:.0f} bytes a second over {now - since:.0f} seconds")
            since, before = now, current
    return future.result()
