"""`milseg serve`: start, answer, stop in order."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from milseg.config import ServeOptions
from milseg.errors import UserError
from milseg.inference.hub import local_folder
from milseg.inference.model_folder import FILES
from milseg.inference.onnx_network import is_onnx_file
from milseg.inference.segmenter import load
from milseg.utils.devices import keep_freed_memory

if TYPE_CHECKING:
    import uvicorn

    from milseg.serve.app import Server


def serve(options: ServeOptions) -> None:
    """`milseg serve`; returns when the server was told to stop and everything it took is answered.

    Raises:
        UserError: packages are missing, the model or a token cannot be read, or the address cannot be listened on.
    """
    try:
        import fastapi  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; run: pip install 'milseg[serve]'") from None
    keep_freed_memory()
    share_freed_memory()
    model = options.model if is_onnx_file(options.model) else local_folder(options.model)
    segmenter = load(model, device=options.device)
    token = read_token(options.token_file) or os.environ.get("MILSEG_TOKEN", "").strip()
    label_studio_token = read_token(options.label_studio_token_file)
    listener = listen(options.host, options.port)
    with contextlib.closing(listener):
        from milseg.serve.app import Server, read_examples
        from milseg.serve.engine import start_engine

        engine = start_engine(segmenter, workers=options.workers, batch=options.batch, queue=options.queue)
        server = Server(
            segmenter=segmenter,
            name=f"{model.resolve().stem}@{fingerprint(model)}",
            options=options,
            engine=engine,
            examples=read_examples(
                options.examples or (model if model.is_dir() else model.parent) / "examples"
            ),
            token=token,
            label_studio_token=label_studio_token,
        )
        asyncio.run(_answer(server, listener, f"milseg serves {model} at {address(options.host, listener)}"))
        engine.close()


def share_freed_memory() -> None:
    """Let the worker threads share two stores of freed memory, where glibc gives each thread its own.

    Eight threads with a MobileNetV2 then held 1,129 MiB after 192, 224 and 256 photos; with stores of their own 1,580
    MiB and rising, in the same time. Other systems' allocators are left alone.
    """
    if not sys.platform.startswith("linux"):
        return
    arena_max = -8
    with contextlib.suppress(OSError, AttributeError):  # another C library, such as musl
        ctypes.CDLL(None).mallopt(arena_max, 2)


def address(host: str, listener: socket.socket) -> str:
    """Where a browser finds the server."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/"


def web_config(server: Server) -> uvicorn.Config:
    """How uvicorn runs the server."""
    import uvicorn

    from milseg.serve.app import build

    return uvicorn.Config(
        build(server),
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=60,
    )


async def _answer(server: Server, listener: socket.socket, said: str) -> None:
    """Serve until SIGTERM or SIGINT; then finish what was taken, while /ready and new photos are answered 503."""
    import uvicorn

    class Uvicorn(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"{said} (Ctrl-C stops it)", flush=True)
            if not server.options.loopback and not server.token:
                print(
                    "Anyone who reaches this address can use it: give a token with --token-file.", flush=True
                )

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # ours, below: uvicorn's own would close the door before it says that it is closing

    web = Uvicorn(web_config(server))
    stopping: list[asyncio.Task[None]] = []

    async def stop() -> None:
        await server.engine.drain()
        web.should_exit = True

    def told() -> None:
        if stopping:
            web.force_exit = web.should_exit = True  # told twice
        else:
            stopping.append(asyncio.ensure_future(stop()))

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told)
    await web.serve(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, for asyncio then sends at once (TCP_NODELAY): an answer's second packet waits 40 ms otherwise.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, UnicodeError) as error:
        listener.close()
        raise UserError(
            f"cannot listen on {host}, port {port} ({error}); choose another --port or --host"
        ) from None
    return listener


def read_token(path: Path | None) -> str:
    """The token that a file holds; "" where there is no file to read.

    Raises:
        UserError: the file cannot be read, or is empty.
    """
    if path is None:
        return ""
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the token cannot be read ({error})") from None
    if len(lines) != 1:
        raise UserError(f"{path}: expected one token, found {len(lines)} words")
    return lines[0]


def fingerprint(model: Path) -> str:
    """Eight letters that change when the model's files do: Label Studio keeps predictions by the model's version."""
    digest = hashlib.sha256()
    for path in [model / name for name in FILES] if model.is_dir() else [model]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:8]
