"""What every request passes before the app sees it, and what every answer carries."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from milseg.config import ServeOptions
from milseg.serve.metrics import Metrics
from milseg.serve.problems import Problem
from milseg.serve.requests import too_large

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
EVERY_ADDRESS = ("0.0.0.0", "::", "")
# Asked without a token: whether the server lives, and the page, which asks for the token itself.
OPEN = ("/", "/health", "/ready")
OPEN_BELOW = "/page/"
READING = ("GET", "HEAD", "OPTIONS")
# A name or IPv4 address, or an IPv6 address in brackets, and a port (RFC 9110, section 7.2).
_HOST = re.compile(
    r"(?P<name>[a-z0-9._-]+|\[[0-9a-f:.]+\]|[0-9a-f:.]+:[0-9a-f:.]*:[0-9a-f.]*)(:(?P<port>\d{0,5}))?"
)

HEADERS = {
    # The page brings all it needs; blob: and data: are pictures that it made itself.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def allowed_hosts(options: ServeOptions) -> tuple[str, ...]:
    """Names under which the server may be asked; empty: any, where it listens on every address.

    A page elsewhere can make its own name point to 127.0.0.1 and so speak to a server here as if it were its own (DNS
    rebinding); its requests still carry that name.
    """
    if options.host in EVERY_ADDRESS:
        return options.allow_host
    own = f"[{options.host}]" if ":" in options.host else options.host
    return (*(LOOPBACK if options.loopback else ()), own, *options.allow_host)


def host_name(host: str) -> str:
    """The name in a Host header, without its port; "" for what is none.

    >>> host_name("Localhost:8000"), host_name("[::1]:8000"), host_name("[::1].evil")
    ('localhost', '[::1]', '')
    """
    match = _HOST.fullmatch(host.lower())
    return match["name"].rstrip(".") if match else ""


def same_origin(origin: str, host: str, allowed: Sequence[str]) -> bool:
    """Whether a page of `origin` may send to the server that it asks as `host`.

    That is the server's own page, or one of `allowed` names, whose proxy may ask the server under another name.

    >>> same_origin("http://localhost:8000", "localhost:8000", ()), same_origin("http://localhost:1", "localhost:2", ())
    (True, False)
    """
    try:
        parts = urlsplit(origin)
        default = {"http": 80, "https": 443}.get(parts.scheme, 0)
        port = parts.port or default
    except ValueError:
        return False
    match = _HOST.fullmatch(host.lower())
    if not match or not default or parts.path or "@" in parts.netloc:
        return False
    name = host_name(parts.netloc)
    same = name == match["name"].rstrip(".") and port == int(match["port"] or default)
    return bool(name) and (same or name in allowed)


def given_token(authorization: str) -> str:
    """The token of an Authorization header: `Bearer TOKEN`, or the password of `Basic`; "" where there is none.

    >>> given_token("Bearer abc"), given_token("Basic " + base64.b64encode(b"any:abc").decode())
    ('abc', 'abc')
    """
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


class Guard:
    """Middleware: host, origin, token and size are checked before anything of the body is read.

    Args:
        app: what is guarded.
        metrics: counts every answer.
        hosts: allowed names; empty: any.
        origins: names of proxies whose pages may send.
        token: what requests must carry; "" for none.
        max_body: largest body, bytes, whatever its length header says or leaves out.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        hosts: Sequence[str] = (),
        origins: Sequence[str] = (),
        token: str = "",
        max_body: int,
    ) -> None:
        self.app, self.metrics = app, metrics
        self.hosts = {host.lower() for host in hosts}
        self.origins = [name.lower() for name in origins]
        self.token = token.encode()
        self.max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, self._limited(receive), sending)
        except Problem as problem:
            await problem.response()(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.metrics.answered(route, scope["method"], status or 500, time.monotonic() - began)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if (self.hosts and host_name(host) not in self.hosts) or (host and not host_name(host)):
            raise Problem(
                421,
                f"asked as {host[:200] or '(no name)'!r}, which is not this server's name; see --allow-host",
            )
        if scope["method"] not in READING and self._from_elsewhere(headers):
            raise Problem(403, "asked by a page of another site; open the server's own page")
        path = scope["path"]
        if self.token and path not in OPEN and not path.startswith(OPEN_BELOW):
            given = given_token(headers.get("authorization", ""))
            if not hmac.compare_digest(given.encode(), self.token):
                raise Problem(
                    401,
                    "no valid token; send the header Authorization: Bearer TOKEN",
                    {"WWW-Authenticate": "Bearer"},
                )
        length = headers.get("content-length", "0")
        if length.isdecimal() and (len(length) > 18 or int(length) > self.max_body):
            raise too_large(self.max_body)

    def _from_elsewhere(self, headers: Headers) -> bool:
        """Whether another site's page asks; browsers say so, older ones by Origin alone. Programs send neither."""
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return True
        origin = headers.get("origin")
        return origin is not None and not same_origin(origin, headers.get("host", ""), self.origins)

    def _limited(self, receive: Receive) -> Receive:
        size = 0

        async def receiving() -> Message:
            nonlocal size
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                if size > self.max_body:
                    raise too_large(self.max_body)
            return message

        return receiving
