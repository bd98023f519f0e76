"""A server on a random small model, in a thread of its own, and photos to send."""

from __future__ import annotations

import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("python_multipart")
uvicorn = pytest.importorskip("uvicorn")

from milseg.config import ServeOptions  # noqa: E402
from milseg.inference.model_folder import ModelSpec  # noqa: E402
from milseg.inference.segmenter import Segmenter  # noqa: E402
from milseg.models.backbones import build_fcn  # noqa: E402
from milseg.serve.app import Server  # noqa: E402
from milseg.serve.engine import Engine  # noqa: E402
from milseg.serve.run import listen, web_config  # noqa: E402

CLASSES = ("background", "cat", "dog", "sheep")


@pytest.fixture(scope="session")
def segmenter() -> Segmenter:
    torch.manual_seed(3)
    model = build_fcn("tiny", len(CLASSES))
    torch.nn.init.normal_(model.score_layer.weight, std=0.3)
    return Segmenter(model, ModelSpec(backbone="tiny", classes=CLASSES, supervision="image tags"))


def photo(seed: int = 0, size: tuple[int, int] = (40, 56)) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 255, (5, 7, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(blocks).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def png_of(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def form(data: bytes, name: str = "cat.png", **fields: str) -> tuple[bytes, dict[str, str]]:
    """A multipart body with the photo and further fields, and its headers."""
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in fields.items()
    ]
    head = f'--x\r\nContent-Disposition: form-data; name="photo"; filename="{name}"\r\n\r\n'
    body = b"".join([*parts, head.encode(), data, b"\r\n--x--\r\n"])
    return body, {"Content-Type": "multipart/form-data; boundary=x"}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    data: bytes

    def json(self) -> Any:
        return json.loads(self.data)


@dataclass
class Live:
    """A running server."""

    server: Server
    port: int = 0
    web: Any = field(default=None)

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None, method: str | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
            response = connection.getresponse()
            found = {key.lower(): value for key, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()


Start = Callable[..., Live]


@pytest.fixture(scope="session")
def start(segmenter: Segmenter) -> Iterator[Start]:
    """Start a server: options by keyword, `token` and other fields of `Server` too."""
    running: list[tuple[Live, threading.Thread]] = []

    def starting(
        *,
        queue: int = 32,
        workers: int = 2,
        token: str = "",
        model: Segmenter | None = None,
        label_studio_token: str = "",
        examples: dict[str, tuple[bytes, str]] | None = None,
        **options: Any,
    ) -> Live:
        settings = replace(ServeOptions(model=Path("model")), queue=queue, workers=workers, **options)
        server = Server(
            segmenter=model or segmenter,
            name="tiny@12345678",
            options=settings,
            engine=Engine(
                workers=workers,
                queue=queue,
                max_pixels=settings.max_pixels,
                ranges=(model or segmenter).spec.value_ranges,
            ),
            token=token,
            label_studio_token=label_studio_token,
            examples=examples or {},
        )
        web = uvicorn.Server(web_config(server))
        listener = listen("127.0.0.1", 0)
        thread = threading.Thread(target=web.run, args=([listener],), daemon=True)
        thread.start()
        until = time.monotonic() + 60
        while not web.started and time.monotonic() < until:
            time.sleep(0.01)
        live = Live(server, listener.getsockname()[1], web)
        running.append((live, thread))
        return live

    yield starting
    for live, thread in running:
        live.web.should_exit = True
        thread.join(10)
        live.server.engine.close()


@pytest.fixture(scope="session")
def live(start: Start) -> Live:
    """One server for all tests that change nothing about it."""
    return start(max_body=1, max_pixels=100_000, examples={"one.png": (png_of(photo(9)), "image/png")})
