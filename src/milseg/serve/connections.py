"""Connections with limits of number and time, which uvicorn itself does not set before a request is complete."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEADER_SECONDS = 15.0  # from the first byte of a request, or from the connection, to the end of its headers
ANSWER_SECONDS = 30.0  # in which a client takes nothing of its answer
CLOSING_SECONDS = 5.0
MAX_CONNECTIONS = 1000
SPARE_FILES = 64  # for decoders, photos of Label Studio, and the program itself

LATE = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: 35\r\n\r\n"
    b"the request's headers did not come\n"
)


def connection_limit() -> int:
    """Connections that may be open at once, so that the process never runs out of file descriptors."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return min(MAX_CONNECTIONS, max(files - SPARE_FILES, files // 4))


class LimitedConnection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """One client's connection. Further ones than `max_connections` are closed at once.

    Args:
        max_connections: see there.
        options: of uvicorn's protocol.
    """

    def __init__(self, *, max_connections: int, **options: Any) -> None:
        super().__init__(**options)
        self.max_connections = max_connections
        self._late: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        self._begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            transport.abort()
        else:
            self._expect_headers()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop("_late")
        self._stop("_stuck")
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            # The headers are complete. Whoever reads the body limits its time.
            self._stop("_late")
        else:
            self._begun = True
            self._expect_headers()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self._stuck or self.loop.call_later(ANSWER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop("_stuck")
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._abort_soon()

    def _expect_headers(self) -> None:
        # Not begun anew with each byte: a client that sends one at a time gets no longer.
        if self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(HEADER_SECONDS, self._too_late)

    def _too_late(self) -> None:
        self._late = None
        if self._begun and (self.cycle is None or self.cycle.response_complete):
            self.transport.write(LATE)
        self.transport.close()
        self._abort_soon()

    def _abort_soon(self) -> None:
        """End a connection that is closing, even if its client takes no more."""
        self.loop.call_later(CLOSING_SECONDS, self.transport.abort)

    def _stop(self, timer: str) -> None:
        running: asyncio.TimerHandle | None = getattr(self, timer)
        if running is not None:
            running.cancel()
            setattr(self, timer, None)
