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
from collections.abc import Iterator, Mapping
from functools import partial
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

VARIABLE = "MILSEG_TOKEN"
ACCEPTED_AT_ONCE = 16
WAITING_CONNECTIONS = 1024


def serve(options: ServeOptions) -> None:
    """`milseg serve`; returns when the server was told to stop and everything it took is answered.

    Raises:
        UserError: packages are missing, the model or a token cannot be read, or the address cannot be listened on.
    """
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; run: pip install 'milseg[serve]'") from None
    # Before the model, which takes a while to load.
    token = server_token(options, os.environ)
    label_studio_token = read_token(options.label_studio_token_file)
    keep_freed_memory()
    share_freed_memory()
    model = options.model if is_onnx_file(options.model) else local_folder(options.model)
    segmenter = load(model, device=options.device)
    listener = listen(options.host, options.port)
    with contextlib.closing(listener):
        from milseg.serve.app import Server, read_examples
        from milseg.serve.engine import start_engine
        from milseg.serve.logs import set_up_logs

        set_up_logs()
        engine = start_engine(
            segmenter,
            workers=options.workers,
            batch=options.batch,
            queue=options.queue,
            max_pixels=options.max_pixels,
        )
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
        try:
            asyncio.run(
                _answer(server, listener, f"milseg serves {model} at {address(options.host, listener)}")
            )
        finally:
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
    from milseg.serve.connections import LimitedConnection, connection_limit

    return uvicorn.Config(
        build(server),
        http=partial(LimitedConnection, max_connections=connection_limit()),  # type: ignore[arg-type]
        ws="none",
        # asyncio takes as many connections in one go before any of them can be refused.
        backlog=ACCEPTED_AT_ONCE,
        log_config=None,
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
            listener.listen(WAITING_CONNECTIONS)  # in the kernel, beside those accepted at once
            print(f"{said} (Ctrl-C stops it)", flush=True)
            if not server.options.loopback and not server.token:
                print("Anyone who reaches this address can use it (--no-token).", flush=True)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield  # ours, below: uvicorn's own would close the door before it says that it is closing

    web = Uvicorn(web_config(server))
    stopping: list[asyncio.Task[None]] = []

    async def stop() -> None:
        await server.engine.drain()
        web.should_exit = True

    loop = asyncio.get_running_loop()

    def told() -> None:
        stopping.append(asyncio.ensure_future(stop()))
        for number in (signal.SIGTERM, signal.SIGINT):
            # The next one is the kernel's: it ends the process whatever its threads do. Decoders end with it.
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

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


def server_token(options: ServeOptions, environ: Mapping[str, str]) -> str:
    """The token that requests must carry; "" for none.

    Raises:
        UserError: a token that is blank or cannot be sent, or none where others than this machine can ask.
    """
    if options.token_file:
        return read_token(options.token_file)
    token = environ.get(VARIABLE)
    if token is not None:
        if options.no_token:
            raise UserError(f"--no-token, and the variable {VARIABLE} holds a token; leave one of them out")
        return checked_token(token, f"the variable {VARIABLE}")
    if not options.loopback and not options.no_token:
        raise UserError(
            f"--host {options.host}: others than this machine can ask; give a token with --token-file or the variable "
            f"{VARIABLE}, or --no-token if anyone may use the server"
        )
    return ""


def read_token(path: Path | None) -> str:
    """The token that a file holds; "" without a file.

    Raises:
        UserError: the file cannot be read, or holds no token.
    """
    if path is None:
        return ""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the token cannot be read ({error})") from None
    return checked_token(text, str(path))


def checked_token(text: str, source: str) -> str:
    """The one word of a text, in characters that every client can send.

    Raises:
        UserError: no word or several, or other characters than ASCII.
    """
    words = text.split()
    if len(words) != 1:
        raise UserError(f"{source}: expected one token, found {len(words)} words; leave it out for no token")
    if not (words[0].isascii() and words[0].isprintable()):
        raise UserError(
            f"{source}: a token of other characters than ASCII letters, digits and signs, which HTTP headers do not "
            "carry; choose another"
        )
    return words[0]


def fingerprint(model: Path) -> str:
    """Eight letters that change when the model's files do: Label Studio keeps predictions by the model's version."""
    digest = hashlib.sha256()
    for path in [model / name for name in FILES] if model.is_dir() else [model]:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:8]
