"""`milseg serve` as a process: it starts, answers, and stops in order."""

from __future__ import annotations

import asyncio
import http.client
import io
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from milseg.cli import main
from milseg.config import ServeOptions
from milseg.errors import UserError
from milseg.inference.model_folder import save_model
from milseg.inference.segmenter import Segmenter, load
from milseg.serve.engine import start_engine
from milseg.serve.run import fingerprint, listen, read_token, server_token

from .conftest import Start, photo, png_of

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folder(segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small"
    save_model(path, segmenter.model, segmenter.spec)
    return path


@pytest.fixture
def served(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "milseg", "serve", "--model", str(folder), "--port", "0", "--workers", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    match = re.search(r"http://127\.0\.0\.1:(\d+)/", said)
    assert match, said
    yield process, int(match[1])
    process.kill()
    process.communicate()


def test_sigterm_finishes_what_was_taken(served: tuple[subprocess.Popen[str], int]) -> None:
    process, port = served
    data = png_of(photo(0))

    def connection() -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    slow, other = connection(), connection()
    # A photo that is half sent has its place; it is taken.
    slow.putrequest("POST", "/v1/segment")
    slow.putheader("Content-Length", str(len(data)))
    slow.endheaders()
    slow.send(data[:50])
    while True:
        other.request("GET", "/metrics")
        if b"milseg_photos_taken 1" in other.getresponse().read():
            break
    process.send_signal(signal.SIGTERM)
    for _ in range(1000):
        other.request("GET", "/ready")
        ready = other.getresponse()
        ready.read()
        if ready.status == 503:
            break
    assert ready.status == 503
    other.request("POST", "/v1/segment", data)
    refused = other.getresponse()
    assert (refused.status, refused.getheader("Retry-After")) == (503, "10")
    refused.read()
    other.request("GET", "/health")
    assert other.getresponse().read()
    slow.send(data[50:])
    assert slow.getresponse().status == 200
    assert process.wait(60) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_one_server_a_port() -> None:
    first = listen("127.0.0.1", 0)
    first.listen()
    try:
        with pytest.raises(UserError, match="choose another --port"):
            listen("127.0.0.1", first.getsockname()[1])
    finally:
        first.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_answers_are_sent_without_delay(host: str) -> None:
    async def no_delay() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            found.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        try:
            listener = listen(host, 0)
        except UserError:
            pytest.skip(f"this machine has no {host}")
        async with await asyncio.start_server(connected, sock=listener):
            with socket.create_connection(listener.getsockname()[:2]):
                return await asyncio.wait_for(found, 10)

    assert asyncio.run(no_delay())


def test_a_token_is_one_word(tmp_path: Path) -> None:
    path = tmp_path / "token"
    for text in ("abc\n", "\ufeffabc"):
        path.write_text(text, encoding="utf-8")
        assert read_token(path) == "abc"
    assert read_token(None) == ""
    for text in ("", " \n", "a b"):
        path.write_text(text)
        with pytest.raises(UserError, match="expected one token"):
            read_token(path)
    for text in ("caf\u00e9", "\u5bc6", "a\x07b"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="other characters than ASCII"):
            read_token(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_token(tmp_path / "none")


def options(**given: object) -> ServeOptions:
    return ServeOptions(model=Path("m"), **given)  # type: ignore[arg-type]


def test_the_token_of_the_server(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("filed")
    assert server_token(options(), {}) == ""
    assert server_token(options(), {"MILSEG_TOKEN": "abc"}) == "abc"
    assert server_token(options(token_file=path), {"MILSEG_TOKEN": "abc"}) == "filed"
    assert server_token(options(host="0.0.0.0", token_file=path), {}) == "filed"
    assert server_token(options(host="0.0.0.0", no_token=True), {}) == ""
    for blank in ("", "  "):
        with pytest.raises(UserError, match="MILSEG_TOKEN: expected one token"):
            server_token(options(), {"MILSEG_TOKEN": blank})
    with pytest.raises(UserError, match="leave one of them out"):
        server_token(options(no_token=True), {"MILSEG_TOKEN": "abc"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.0.7", "masks.example"])
def test_others_need_a_token_unless_said(host: str) -> None:
    with pytest.raises(UserError, match="--no-token if anyone may use the server"):
        server_token(options(host=host), {})


def test_a_second_sigterm_ends_it_at_once(served: tuple[subprocess.Popen[str], int]) -> None:
    """Whatever is taken and not finished: here a photo that is half sent."""
    process, port = served
    slow = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    slow.putrequest("POST", "/v1/segment")
    slow.putheader("Content-Length", "1000")
    slow.endheaders()
    other = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for path, wanted in (("/metrics", b"milseg_photos_taken 1"), ("/ready", b"stopping")):
        for _ in range(1000):
            other.request("GET", path)
            if wanted in other.getresponse().read():
                break
        else:
            pytest.fail(f"{path} never said {wanted!r}")
        process.send_signal(signal.SIGTERM)
    assert process.wait(10) == -signal.SIGTERM


def test_the_version_follows_the_weights(folder: Path, segmenter: Segmenter, tmp_path: Path) -> None:
    save_model(tmp_path / "same", segmenter.model, segmenter.spec)
    assert fingerprint(tmp_path / "same") == fingerprint(folder)
    with (tmp_path / "same" / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    assert fingerprint(tmp_path / "same") != fingerprint(folder)


def test_an_exported_model_is_served(
    folder: Path, segmenter: Segmenter, start: Start, tmp_path: Path
) -> None:
    """Its masks are those that its own segmenter gives; one photo a call, whatever --batch says."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "small.onnx"
    assert main(["export", "--model", str(folder), "--to", "onnx", "--out", str(path)]) == 0
    exported = load(path)
    start_engine(exported, workers=1, batch=4, queue=0, max_pixels=10**6).close()
    live = start(model=exported)
    answer = live.ask("/v1/segment", png_of(photo(1)), {"Accept": "image/png"})
    mask = np.asarray(Image.open(io.BytesIO(answer.data)))
    np.testing.assert_array_equal(mask, load(path).segment(photo(1)).mask)
    assert (mask == segmenter.segment(photo(1)).mask).mean() > 0.99
    assert len(fingerprint(path)) == 8
