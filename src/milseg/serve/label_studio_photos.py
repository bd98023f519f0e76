"""Photos of one Label Studio, fetched from it and from nowhere else."""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import unquote_to_bytes, urlsplit

from milseg.errors import UserError

SECONDS = 20.0  # for the whole photo


class LabelStudioFiles:
    """Photos by the addresses that tasks hold.

    Every connection goes to the host and port given here; of an address in a task only path and query are used, and
    only when it names that host or none. Redirects are not followed.

    Args:
        url: where Label Studio is; None: only photos inside the task itself (`data:` addresses).
        token: a legacy token, or a personal access token, which is first traded for a short-lived one.
        max_bytes: larger photos are refused while they arrive.
    """

    def __init__(self, url: str | None, token: str = "", *, max_bytes: int) -> None:
        self.base = urlsplit(url) if url else None
        self.token, self.max_bytes = token, max_bytes

    def read(self, address: str) -> bytes:
        """The bytes of a photo.

        Raises:
            UserError: another host, no photo there, or one that is too large.
        """
        if address.startswith("data:"):
            return self._inside(address)
        return self._get(self._path(address))

    def _path(self, address: str) -> str:
        """Path and query of an address on our Label Studio."""
        shown = address[:200]
        if self.base is None:
            raise UserError(
                f"{shown}: photos of a Label Studio are fetched when the server is started with --label-studio-url"
            )
        try:
            parts = urlsplit(address)
            here = (parts.scheme, parts.hostname, _port(parts.scheme, parts.port))
            ours = (self.base.scheme, self.base.hostname, _port(self.base.scheme, self.base.port))
        except ValueError:
            raise UserError(f"{shown}: not an address") from None
        if (parts.scheme or parts.netloc) and here != ours:
            raise UserError(
                f"{shown}: not on {self.base.scheme}://{self.base.netloc}, where photos are fetched from alone; let "
                "Label Studio serve the photo itself"
            )
        if not parts.path.startswith("/"):
            raise UserError(f"{shown}: expected an address of Label Studio, such as /data/upload/1/photo.jpg")
        return parts.path + (f"?{parts.query}" if parts.query else "")

    def _get(self, path: str) -> bytes:
        headers = {"Authorization": self._authorization()} if self.token else {}
        status, data = self._ask("GET", path, headers)
        if 300 <= status < 400:
            raise UserError(
                f"{path[:200]}: Label Studio sends elsewhere (status {status}), which is not followed"
            )
        if status in (401, 403):
            raise UserError(
                f"{path[:200]}: Label Studio wants a token (status {status}); give one that is valid with "
                "--label-studio-token-file"
            )
        if status != 200:
            raise UserError(f"{path[:200]}: Label Studio answers {status}; expected the photo")
        return data

    def _authorization(self) -> str:
        # Personal access tokens are signed in three parts and are no credential by themselves.
        if self.token.count(".") != 2:
            return f"Token {self.token}"
        body = json.dumps({"refresh": self.token}).encode()
        status, data = self._ask("POST", "/api/token/refresh", {"Content-Type": "application/json"}, body)
        try:
            return f"Bearer {json.loads(data)['access']}"
        except (ValueError, KeyError, TypeError):
            raise UserError(f"Label Studio does not take the token (status {status})") from None

    def _ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None = None
    ) -> tuple[int, bytes]:
        assert self.base is not None
        assert self.base.hostname is not None
        kind = http.client.HTTPSConnection if self.base.scheme == "https" else http.client.HTTPConnection
        connection = kind(self.base.hostname, self.base.port, timeout=SECONDS / 4)
        try:
            with _ended_after(SECONDS, connection) as late:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                data = response.read(self.max_bytes + 1)
                if late.is_set():
                    raise UserError(f"{path[:200]}: did not arrive within {SECONDS:g} seconds")
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, UserError):
                raise
            reason = f"it took more than {SECONDS:g} seconds" if late.is_set() else str(error)[:300]
            raise UserError(f"Label Studio at {self.base.netloc} cannot be reached ({reason})") from None
        finally:
            connection.close()
        if len(data) > self.max_bytes:
            raise UserError(f"{path[:200]}: larger than {self.max_bytes / 2**20:g} MiB; see --max-body")
        return response.status, data

    def _inside(self, address: str) -> bytes:
        """The content of a data: address (RFC 2397)."""
        head, comma, content = address[5:].partition(",")
        try:
            if not comma:
                raise ValueError("no comma")
            raw = unquote_to_bytes(content)
            data = base64.b64decode(raw, validate=True) if head.endswith(";base64") else raw
        except (binascii.Error, ValueError) as error:
            raise UserError(f"a data: address that cannot be read ({error})") from None
        if len(data) > self.max_bytes:
            raise UserError(f"a photo larger than {self.max_bytes / 2**20:g} MiB; see --max-body")
        return data


def _port(scheme: str, port: int | None) -> int:
    return port or (443 if scheme == "https" else 80)


@contextmanager
def _ended_after(seconds: float, connection: http.client.HTTPConnection) -> Iterator[threading.Event]:
    """End a connection after so many seconds, however many bytes still come; the event says that this happened."""
    late = threading.Event()

    def end() -> None:
        late.set()
        # Closing alone would not wake a thread that reads.
        with suppress(OSError, AttributeError):
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()
