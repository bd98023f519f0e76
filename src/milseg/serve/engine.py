"""Photos wait in a bounded queue for the worker threads that compute; the event loop never does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import torch
from starlette.requests import Request

from milseg.data.image import UInt8
from milseg.data.value_range import ValueRanges
from milseg.inference.onnx_network import OnnxNetwork
from milseg.inference.segmenter import Segmenter
from milseg.inference.tiling import device_of
from milseg.serve.batcher import DynamicBatcher
from milseg.serve.decoders import Decoders
from milseg.serve.problems import Problem, busy
from milseg.utils.parallel import processors

T = TypeVar("T")
RETRY_SECONDS = 2
GPU_BATCH = 4


class Engine:
    """Worker threads behind a queue of bounded length.

    Several photos at once, each on its share of the cores, give more masks a second than one photo on all cores: small
    networks leave cores idle at every layer's end.

    Args:
        workers: photos in work at the same time.
        queue: further ones that may wait.
        max_pixels: larger photos are refused before decoding.
        ranges: of photos whose values have more than 8 bits, as the model was trained.
        threads: of torch in each worker; 0 shares the cores.
    """

    def __init__(
        self,
        *,
        workers: int,
        queue: int,
        max_pixels: int,
        ranges: ValueRanges | None = None,
        threads: int = 0,
    ) -> None:
        self.workers, self.capacity = workers, workers + queue
        self.taken = 0
        self.closing = False
        self.decoders = Decoders(max_pixels, ranges)
        self._idle = asyncio.Event()
        self._idle.set()
        each = threads or max(1, processors() // workers)
        self._pool = ThreadPoolExecutor(
            workers, thread_name_prefix="milseg", initializer=lambda: torch.set_num_threads(each)
        )

    @contextmanager
    def slot(self) -> Iterator[None]:
        """A slot of the queue, held while its request is read and computed.

        Raises:
            Problem: 503, the queue is full or the server is stopping; nothing of the request has been read.
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

    async def run(
        self, request: Request, function: Callable[..., T], *arguments: object, **options: object
    ) -> T:
        """Call a function in a worker thread for a request whose body has been read; its exceptions come here.

        Raises:
            Problem: 400, the client went away. The call is then dropped if it has not begun.
        """
        call = self._pool.submit(partial(function, *arguments, **options))
        result = asyncio.wrap_future(call)
        gone = asyncio.create_task(_disconnected(request))
        try:
            await asyncio.wait((result, gone), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                call.cancel()
                with suppress(asyncio.CancelledError):  # the call's, if it had not begun
                    await asyncio.wait((result,))
                raise Problem(400, "the client went away")
            return await result
        finally:
            gone.cancel()
            call.cancel()

    def decode(self, data: bytes) -> UInt8:
        """A photo from the bytes of its file, uint8 [H, W, 3]; called in a worker thread.

        Raises:
            UserError: not a photo, or one that is damaged, too large, or too slow to decode.
        """
        return self.decoders.decode(data)

    async def drain(self) -> None:
        """Take no more, and return when everything taken is answered."""
        self.closing = True
        await self._idle.wait()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.decoders.close()


async def _disconnected(request: Request) -> None:
    """Return when the client of a request has gone, or has its whole answer."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def start_engine(segmenter: Segmenter, *, workers: int, batch: int, queue: int, max_pixels: int) -> Engine:
    """An engine for a segmenter, whose network it may make one that sees photos together.

    A network from a file (ONNX) takes one photo a call, and keeps doing so. A `batch` of 0 is 1 on a processor, whose
    cores are in use already, and `GPU_BATCH` elsewhere.
    """
    ranges = segmenter.spec.value_ranges
    if batch == 0:
        batch = 1 if device_of(segmenter.network).type == "cpu" else GPU_BATCH
    if batch == 1 or isinstance(segmenter.network, OnnxNetwork):
        engine = Engine(workers=workers, queue=queue, max_pixels=max_pixels, ranges=ranges)
    else:
        segmenter.network = DynamicBatcher(segmenter.network, workers=workers, most=batch)
        # Enough photos in work for every worker to find a full batch.
        threads = max(1, processors() // workers)
        engine = Engine(
            workers=workers * batch, queue=queue, max_pixels=max_pixels, ranges=ranges, threads=threads
        )
    engine.decoders.warm(engine.workers)
    return engine
