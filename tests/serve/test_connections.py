"""Case 35: connections that are slow, many, or take nothing; and a log that nobody can forge or flood."""

from __future__ import annotations

import logging
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from milseg.serve import connections
from milseg.serve.connections import connection_limit
from milseg.serve.logs import REPEATS, NoFlood, OneLine, one_line

from .conftest import Live, Start, photo, png_of

GOOD = png_of(photo(0))


def connect(live: Live, sent: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", live.port), timeout=60)
    client.sendall(sent)
    return client


def heard(client: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    said = b""
    try:
        while piece := client.recv(2**16):
            said += piece
    except ConnectionResetError:
        pass
    return said


@pytest.fixture
def hasty(start: Start, monkeypatch: pytest.MonkeyPatch) -> Live:
    monkeypatch.setattr(connections, "HEADER_SECONDS", 1.0)
    monkeypatch.setattr(connections, "ANSWER_SECONDS", 1.0)
    return start()


@pytest.mark.parametrize("sent", [b"G", b"GET /health HTTP/1.1\r\nHost: loc", b"GET /health HTTP/1.1\r\n"])
def test_half_sent_headers_time_out(hasty: Live, sent: bytes) -> None:
    assert heard(connect(hasty, sent)).startswith(b"HTTP/1.1 408")


def test_a_connection_that_sends_nothing_is_closed(hasty: Live) -> None:
    assert heard(connect(hasty)) == b""


def test_headers_that_drip_time_out(hasty: Live) -> None:
    client = connect(hasty, b"GET /health HTTP/1.1\r\nX: ")
    client.settimeout(0.1)
    began, said = time.monotonic(), b""
    while not said and time.monotonic() - began < 30:
        try:
            client.sendall(b"x")
            said = client.recv(100)
        except TimeoutError:
            continue
    assert said.startswith(b"HTTP/1.1 408")


def test_a_second_request_on_a_connection_times_out_too(hasty: Live) -> None:
    client = connect(hasty, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    said = b""
    while not said.endswith(b"}"):
        said += client.recv(2**16)
    client.sendall(b"GET /hea")
    assert heard(client).startswith(b"HTTP/1.1 408")


def test_a_slow_photo_is_no_slow_header(hasty: Live) -> None:
    """Headers are limited in time by themselves: a body takes as long as bodies may."""
    head = f"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(GOOD)}\r\n\r\n".encode()
    client = connect(hasty, head + GOOD[:50])
    time.sleep(2)
    client.sendall(GOOD[50:])
    assert client.recv(2**16).startswith(b"HTTP/1.1 200")


def test_an_answer_that_nobody_takes_is_dropped(hasty: Live) -> None:
    """Many requests in one go, and not a byte of the answers read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", hasty.port))
    client.settimeout(1)
    request = b"GET /page/page.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    end = time.monotonic() + 60
    closed = False
    while not closed and time.monotonic() < end:
        try:
            client.sendall(request * 100)
        except TimeoutError:
            continue
        except ConnectionError:
            closed = True
    assert closed
    client.close()


def test_the_number_of_connections_is_bounded(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 5)
    live = start()
    held = [connect(live) for _ in range(5)]
    while len(live.web.server_state.connections) < 5:
        time.sleep(0.01)
    assert heard(connect(live, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")) == b""
    for client in held:
        client.close()
    while live.web.server_state.connections:
        time.sleep(0.01)
    assert live.ask("/health").status == 200


@pytest.mark.parametrize(("files", "limit"), [(64, 16), (96, 32), (1024, 960), (10**6, 1000)])
def test_the_limit_leaves_files_for_the_rest(files: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
    assert connection_limit() == limit


FEW_FILES = """
import resource, sys, threading, time
from pathlib import Path
sys.path[:0] = [{tests!r}]
from serve.conftest import *
from milseg.serve.logs import set_up_logs
set_up_logs()
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
torch.manual_seed(3)
model = Segmenter(build_fcn("tiny", 4), ModelSpec(backbone="tiny", classes=CLASSES))
options = ServeOptions(model=Path("model"))
server = Server(segmenter=model, name="x", options=options, engine=Engine(workers=1, queue=2, max_pixels=10**6))
web = uvicorn.Server(web_config(server))
listener = listen("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
threading.Timer(60, lambda: setattr(web, "should_exit", True)).start()
web.run([listener])
"""


def patiently(live: Live) -> int:
    """The status of a photo, from a server that may refuse the connection for a while."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            return live.ask("/v1/segment", GOOD).status
        except OSError:
            time.sleep(0.1)
    return 0


def test_many_connections_take_no_files_from_the_rest() -> None:
    """More clients than file descriptors: no flood in the log, and all is well when they have gone."""
    code = FEW_FILES.format(tests=str(Path(__file__).parents[1]))
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        live = Live(server=None, port=int(process.stdout.readline()))  # type: ignore[arg-type]
        assert patiently(live) == 200
        clients = [connect(live) for _ in range(300)]
        time.sleep(2)
        for client in clients:
            client.close()
        assert patiently(live) == 200
    finally:
        process.kill()
        said = process.communicate()[1]
    assert len(said) < 10_000, said[-2000:]


# the log


def test_what_a_request_says_stays_in_its_line() -> None:
    forged = "a.png\r\n2026-01-01 INFO all is well \x1b[2J \u2028 \u202e \ud800 \x9b"
    shown = one_line(forged)
    assert shown.isprintable()
    assert shown.startswith("a.png\\r\\n2026")
    assert one_line("Käse, 猫, 😀") == "Käse, 猫, 😀"
    record = logging.LogRecord("milseg.serve", logging.WARNING, "x.py", 1, "task %s", (forged,), None)
    assert len(OneLine().format(record).splitlines()) == 1


def test_a_trace_is_shown_without_escapes() -> None:
    try:
        raise ValueError("bad\x1b[2J\nINFO all is well")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "x.py", 1, "failed", (), sys.exc_info())
    first, *trace = OneLine().format(record).split("\n")
    assert first.endswith("ERROR failed")
    assert all(line.startswith("    ") and line.isprintable() for line in trace)
    assert "ValueError: bad\\x1b[2J" in trace[-2]


def test_lines_of_one_kind_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    flood = NoFlood()

    def passed(line: int, count: int) -> list[str]:
        records = [logging.LogRecord("x", 30, "x.py", line, "task %s", (i,), None) for i in range(count)]
        return [record.getMessage() for record in records if flood.filter(record)]

    said = passed(1, 1000)
    assert len(said) == REPEATS
    assert said[-1].endswith("(more of this kind in this minute are left out)")
    assert passed(2, 1) == ["task 0"]
    now += 61
    assert passed(1, 1) == ["task 0"]


def test_the_log_of_a_task_is_one_line(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    """An address with line ends reaches the log; the formatter escapes them."""
    from .test_label_studio_backend import predict

    good = {"id": 1, "data": {"photo": "data:image/png;base64,x\n[INFO] all is well"}}
    predict(live, good, {"id": 2, "data": {"photo": "x\n[INFO]\x1b[2J"}})
    assert caplog.records
    assert all(len(OneLine().format(record).splitlines()) == 1 for record in caplog.records)
