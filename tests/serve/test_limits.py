"""Case 34: whatever a request holds, its cost is bounded, and others are answered meanwhile."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from milseg.errors import UserError
from milseg.inference.segmenter import Segmenter
from milseg.serve import requests
from milseg.serve.label_studio import MAX_TASKS, read_tasks
from milseg.serve.labeling_config import read_config
from milseg.serve.problems import Problem
from milseg.serve.requests import MAX_FIELD, read_json, read_upload

from .conftest import Live, Start, form, photo, png_of
from .test_label_studio_backend import CONFIG
from .test_overload import Held

MIB = 2**20
GOOD = png_of(photo(0))


@pytest.fixture(scope="module")
def large(start: Start) -> Live:
    """A server that takes 20 MiB, as it does unless told otherwise."""
    return start()


@contextmanager
def answered_meanwhile(live: Live, most: float) -> Iterator[None]:
    """Another client asks again and again, and waits no longer than `most` seconds."""
    done, longest = threading.Event(), 0.0

    def client() -> None:
        nonlocal longest
        while not done.is_set():
            began = time.monotonic()
            assert live.ask("/health").status == 200
            longest = max(longest, time.monotonic() - began)

    thread = threading.Thread(target=client)
    thread.start()
    yield
    done.set()
    thread.join(60)
    assert longest < most


def lists(size: int) -> bytes:
    return b'{"a": [' + b"[]," * (size // 3) + b"0]}"


def deep(size: int) -> bytes:
    return json.dumps({"tasks": [{}], "label_config": "<View>" + "<a>" * (size // 3)}).encode()


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/predict", lists, 422),
        ("/predict", deep, 422),
        ("/setup", lists, 413),
        ("/setup", deep, 413),
    ],
)
def test_json_of_many_parts(large: Live, path: str, body: Callable[[int], bytes], status: int) -> None:
    with answered_meanwhile(large, most=5):
        answer = large.ask(path, body(19 * MIB))
    assert answer.status == status


def test_setup_is_bounded_within_its_limit(large: Live) -> None:
    schema = "<BrushLabels " + "<a>" * MIB
    assert large.ask("/setup", json.dumps({"schema": schema}).encode()).status == 422
    assert large.ask("/setup", lists(3 * MIB)).status == 422


def test_a_long_form_field(large: Live) -> None:
    began = time.monotonic()
    with answered_meanwhile(large, most=5):
        answer = large.ask("/v1/segment", *form(GOOD, tags="cat," * (19 * MIB // 4)))
    assert answer.status == 422
    assert f"more than {MAX_FIELD:,} bytes" in answer.json()["detail"]
    assert time.monotonic() - began < 10


def test_an_unknown_tag_is_not_repeated_at_length(live: Live) -> None:
    answer = live.ask("/v1/segment", *form(GOOD, tags="x" * 9000))
    assert (answer.status, len(answer.data) < 1000) == (422, True)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"a": [' + b"1," * 1_100_000 + b"1]}", 422),
        (b'{"a": "' + rb"\u0041" * 1_100_000 + b'"}', 422),
        (b"{" + b",".join(b'"%d":1' % i for i in range(250_000)) + b"}", 422),
        (b"[" * 150_000, 422),
        (b"[" * 90_000, 400),
        (b'{"a": ' + b"9" * 10_000 + b"}", 400),
        (b'{"a": "\xed\xa0\x80"}', 400),
        (b'{"a": "\xff"}', 400),
        (rb'{"a": "\ud800"}', 422),
        (rb'{"\udfff": 1}', 422),
        (b"[]", 422),
        (b"null", 422),
    ],
)
def test_json_that_is_refused(body: bytes, status: int) -> None:
    with pytest.raises(Problem) as caught:
        read_json(body)
    assert caught.value.status == status


def test_json_that_is_taken() -> None:
    assert read_json(rb'{"a": "\ud83d\ude00"}') == {"a": "\U0001f600"}
    assert read_json('﻿{"a": "ü"}'.encode()) == {"a": "ü"}


@pytest.mark.parametrize("config", ["<a>" * 300_000 + "</a>" * 300_000, "<a/>" * 400_000, "x" * 2**21])
def test_labeling_configurations_that_are_too_large(config: str) -> None:
    with pytest.raises(UserError, match="labeling configuration"):
        read_config(config)


def test_a_deep_labeling_configuration_is_read() -> None:
    assert read_config("<View>" * 10_000 + CONFIG + "</View>" * 10_000) == read_config(CONFIG)


def test_the_number_of_tasks_is_bounded() -> None:
    body = json.dumps({"tasks": [{}] * (MAX_TASKS + 1), "label_config": CONFIG}).encode()
    with pytest.raises(Problem, match=r"1,001 tasks; expected at most 1,000"):
        read_tasks(body)


@pytest.mark.parametrize("kind", ["utf-7", "unicode_escape", "utf-16", "idna", "zlib", "no-such"])
def test_a_form_is_utf_8_whatever_it_says(kind: str) -> None:
    body, headers = form(GOOD, tags="+2AA-, \\ud800")
    upload = read_upload(body, headers["Content-Type"] + f"; charset={kind}")
    assert upload.fields == {"tags": "+2AA-, \\ud800"}


@pytest.mark.parametrize("path", ["/predict", "/setup"])
def test_half_a_character_is_refused(live: Live, path: str) -> None:
    body = json.dumps({"tasks": [{"id": "\ud800", "data": {}}], "label_config": CONFIG, "schema": CONFIG})
    assert live.ask(path, body.encode()).status == 422


def test_half_a_character_in_a_form(live: Live) -> None:
    head = b'--x\r\nContent-Disposition: form-data; name="tags"\r\n\r\n\xed\xa0\x80\r\n'
    body, headers = form(GOOD)
    assert live.ask("/v1/segment", head + body, headers).status == 422
    named = body.replace(b"cat.png", b"\xed\xa0\x80.png")
    assert live.ask("/v1/segment", named, headers).status == 200


def test_a_photo_that_is_text_is_told(live: Live) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="photo"\r\n\r\nhello\r\n--x--\r\n'
    answer = live.ask("/v1/segment", body, form(GOOD)[1])
    assert "curl -F photo=@FILE" in answer.json()["detail"]


# clients that are slow, or leave


def half_sent(live: Live, path: str, length: int, sent: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", live.port), timeout=60)
    client.sendall(
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode() + sent
    )
    return client


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_unfinished_bodies_hold_slots_and_time_out(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """/setup too: more than the queue takes are refused, and none stays for ever."""
    monkeypatch.setattr(requests, "PAUSE_SECONDS", 2.0)
    live = start(workers=1, queue=2)
    clients = [half_sent(live, path, 1000, b"{") for path in ("/setup", "/predict", "/v1/segment")]
    until(lambda: live.server.engine.taken == 3)
    assert live.ask("/setup", b"{}").status == 503
    for client in clients:
        assert client.recv(100).startswith(b"HTTP/1.1 408")
        client.close()
    until(lambda: live.server.engine.taken == 0)


def test_a_body_that_drips_ends_in_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "SECONDS", 2.0)
    live = start(workers=1, queue=2)
    client = half_sent(live, "/v1/segment", 1000, b"")
    client.settimeout(0.1)
    began, said = time.monotonic(), b""
    while not said and time.monotonic() - began < 30:
        client.sendall(b"x")
        try:
            said = client.recv(100)
        except TimeoutError:
            continue
    assert said.startswith(b"HTTP/1.1 408")
    client.close()


def tasks(count: int) -> bytes:
    import base64

    address = "data:image/png;base64," + base64.b64encode(GOOD).decode()
    return json.dumps(
        {"tasks": [{"id": 1, "data": {"photo": address}}] * count, "label_config": CONFIG}
    ).encode()


def test_a_list_of_tasks_ends_when_its_client_leaves(start: Start, segmenter: Segmenter) -> None:
    held = Held(segmenter)
    live = start(model=held, workers=1, queue=2)
    body = tasks(50)
    client = half_sent(live, "/predict", len(body), body)
    assert held.begun.acquire(timeout=60)
    client.close()
    held.go.set()
    until(lambda: live.server.engine.taken == 0)
    begun = 1
    while held.begun.acquire(blocking=False):
        begun += 1
    assert begun < 10


def test_a_photo_that_waits_is_dropped_when_its_client_leaves(start: Start, segmenter: Segmenter) -> None:
    held = Held(segmenter)
    live = start(model=held, workers=1, queue=2)
    stays = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)
    stays.request("POST", "/v1/segment", GOOD)
    assert held.begun.acquire(timeout=60)
    leaves = half_sent(live, "/v1/segment", len(GOOD), GOOD)
    until(lambda: live.server.engine.taken == 2)
    leaves.close()
    until(lambda: live.server.engine.taken == 1)
    held.go.set()
    assert stays.getresponse().status == 200
    assert not held.begun.acquire(timeout=0.3)


def odd_metrics(text: str) -> dict[str, Any]:
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line[0] != "#"
    }


def test_metrics_count_answers(start: Start) -> None:
    live = start()
    live.ask("/v1/segment", GOOD)
    live.ask("/nothing/at/all")
    live.ask("/health", method="BREW")
    counts = odd_metrics(live.ask("/metrics").data.decode())
    assert counts['milseg_requests_total{method="POST",route="/v1/segment",status="200"}'] == 1
    assert counts['milseg_requests_total{method="GET",route="other",status="404"}'] == 1
    assert counts['milseg_requests_total{method="other",route="/health",status="405"}'] == 1
    assert counts['milseg_request_seconds_count{route="/v1/segment"}'] == 1
    assert counts["milseg_photos_taken"] == 0
    assert not any("created" in name for name in counts)
