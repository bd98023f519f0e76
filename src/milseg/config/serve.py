"""Settings of `milseg serve`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from milseg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Masks over HTTP: an API, one page to look at, and a backend for Label Studio.

    Attributes:
        model: model folder, as `milseg train` writes it, an exported .onnx file, or hf://OWNER/NAME from the
            Hugging Face hub.
        host: address to listen on; 127.0.0.1 is heard on this machine alone.
        port: port to listen on; 0 takes a free one.
        workers: calls of the network at the same time.
        batch: waiting photos of one size that go through the network in one call, at most; 0: one on a processor, where
            more only cost, else four.
        queue: photos that may wait for a worker; more are answered 503.
        max_body: largest request, MiB.
        max_pixels: larger photos are refused before decoding.
        token_file: file with the token that requests must carry; none: the variable MILSEG_TOKEN, else no token.
        no_token: let anyone who reaches the server use it, under a --host that others can reach.
        allow_host: names under which the server may be asked besides its own, with commas.
        examples: folder of photos that the page offers; none: examples/ of the model folder.
        label_studio_url: address of the Label Studio whose tasks are answered; photos are fetched from it alone.
        label_studio_token_file: file with an access token of that Label Studio.
        device: auto, cpu, cuda or mps.
    """

    model: Path
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 2
    batch: int = 0
    queue: int = 32
    max_body: int = 20
    max_pixels: int = 25_000_000
    token_file: Path | None = None
    no_token: bool = False
    allow_host: tuple[str, ...] = ()
    examples: Path | None = None
    label_studio_url: str | None = None
    label_studio_token_file: Path | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("batch", 0), ("queue", 0), ("max_body", 1), ("max_pixels", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected {least} or more")
        if not 0 <= self.port < 65536:
            raise UserError(f"--port {self.port}: expected 0 to 65535")
        if self.no_token and self.token_file:
            raise UserError("--no-token does not go with --token-file; give one of them")
        if self.label_studio_token_file and not self.label_studio_url:
            raise UserError("--label-studio-token-file goes with --label-studio-url; give both")
        if self.label_studio_url is not None:
            parts = urlsplit(self.label_studio_url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise UserError(
                    f"--label-studio-url {self.label_studio_url}: expected an address such as http://localhost:8080"
                )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
