"""Photos wait in a bounded line for the worker threads that compute; the event loop never does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

from milseg.data.image import PackedPhoto, UInt8, open_photo
from milseg.data.value_range import ValueRanges
from milseg.inference.onnx_network import OnnxNetwork
from milseg.inference.segmenter import Segmenter
from milseg.inference.tiling import device_of
from milseg.serve.batcher import DynamicBatcher
from milseg.serve.problems import busy
from milseg.utils.parallel import processors

T = TypeVar("T")
RETRY_SECONDS = 2
GPU_BATCH = 4


class Engine:
    """Worker threads behind a line of bounded length.

    Several photos at once, each on its share of the cores, give more masks a second than one photo on all cores: small
    networks leave cores idle at every layer's end.

    Args:
        workers: photos in work at the same time.
        queue: further ones that may wait.
        threads: of torch in each worker; 0 shares the cores.
    """

    def __init__(self, *, workers: int, queue: int, threads: int = 0) -> None:
        self.capacity = workers + queue
        self.taken = 0
        self.closing = False
        self._idle = asyncio.Event()
        self._idle.set()
        each = threads or max(1, processors() // workers)
        self._pool = ThreadPoolExecutor(
            workers, thread_name_prefix="milseg", initializer=lambda: torch.set_num_threads(each)
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


def start_engine(segmenter: Segmenter, *, workers: int, batch: int, queue: int) -> Engine:
    """An engine for a segmenter, whose network it may make one that sees photos together.

    A network from a file (ONNX) takes one photo a call, and keeps doing so. A `batch` of 0 is 1 on a processor, whose
    cores are in use already, and `GPU_BATCH` elsewhere.
    """
    if batch == 0:
        batch = 1 if device_of(segmenter.network).type == "cpu" else GPU_BATCH
    if batch == 1 or isinstance(segmenter.network, OnnxNetwork):
        return Engine(workers=workers, queue=queue)
    segmenter.network = DynamicBatcher(segmenter.network, workers=workers, most=batch)
    # Enough photos in work for every lane to find a full batch.
    return Engine(workers=workers * batch, queue=queue, threads=max(1, processors() // workers))


class SentPhoto(PackedPhoto):
    """The bytes of a photo's file as a client sent them; messages call it "the photo"."""

    suffix, group = "", ""

    def __init__(self, data: bytes) -> None:
        self.data, self.length = data, len(data)

    def __str__(self) -> str:
        return "the photo"

    def read(self) -> bytes:
        return self.data


def decode(data: bytes, max_pixels: int, ranges: ValueRanges | None = None) -> UInt8:
    """A photo from the bytes of its file, uint8 [H, W, 3]; see `milseg.data.image.open_photo`.

    Raises:
        UserError: not a photo, damaged, or larger than `max_pixels`.
    """
    return open_photo(SentPhoto(data), max_pixels=max_pixels, ranges=ranges)
