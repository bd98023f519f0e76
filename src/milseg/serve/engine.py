"""Photos wait in a bounded line for the worker threads that compute; the event loop never does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

from milseg.photos import PackedPhoto, UInt8, open_photo
from milseg.serve.problems import busy

T = TypeVar("T")
RETRY_SECONDS = 2


class Engine:
    """Worker threads behind a line of bounded length.

    Several photos at once, each on one core, give more masks a second than one photo on all cores: small networks
    leave cores idle at every layer's end. Each photo is computed by itself, so that its mask is the one that `milseg
    predict` writes, whoever else asks.

    Args:
        workers: photos computed at the same time.
        queue: further ones that may wait.
    """

    def __init__(self, *, workers: int, queue: int) -> None:
        self.capacity = workers + queue
        self.taken = 0
        self.closing = False
        self._idle = asyncio.Event()
        self._idle.set()
        threads = max(1, (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1) // workers)
        self._pool = ThreadPoolExecutor(
            workers, thread_name_prefix="milseg", initializer=lambda: torch.set_num_threads(threads)
        )

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place in the line, held while its request is read, computed and answered.

        Raises:
            Problem: 503, the line is full or the server is stopping; nothing of the request has been read.
        """
        if self.closing:
            raise busy("the server is stopping", 10)
        if self.taken >= self.capacity:
            raise busy(f"{self.taken} photos are in work or wait; ask again later", RETRY_SECONDS)
        self.taken += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.taken -= 1
            if not self.taken:
                self._idle.set()

    async def run(self, function: Callable[..., T], *arguments: object, **options: object) -> T:
        """Call a function in a worker thread; its exceptions come here."""
        call = partial(function, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    async def drain(self) -> None:
        """Take no more, and return when everything taken is answered."""
        self.closing = True
        await self._idle.wait()

    def close(self) -> None:
        self._pool.shutdown(wait=True)


class SentPhoto(PackedPhoto):
    """The bytes of a photo's file as a client sent them; messages call it "the photo"."""

    suffix, group = "", ""

    def __init__(self, data: bytes) -> None:
        self.data, self.length = data, len(data)

    def __str__(self) -> str:
        return "the photo"

    def read(self) -> bytes:
        return self.data


def decode(data: bytes, max_pixels: int) -> UInt8:
    """A photo from the bytes of its file, uint8 [H, W, 3]; see `milseg.photos.open_photo`.

    Raises:
        UserError: not a photo, damaged, or larger than `max_pixels`.
    """
    return open_photo(SentPhoto(data), max_pixels=max_pixels)
