"""The ML backend: what Label Studio asks and gets, and from where photos are fetched."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import numpy as np
import pytest

from milseg.annotations.rle import label_studio_rle
from milseg.errors import UserError
from milseg.inference.segmenter import Segmenter
from milseg.serve.label_studio import known_tags
from milseg.serve.label_studio_photos import LabelStudioFiles
from milseg.serve.labeling_config import read_config

from .conftest import CLASSES, Answer, Live, Start, photo, png_of

CONFIG = (
    '<View><Image name="picture" value="$photo"/><Choices name="tags" toName="picture" choice="multiple">'
    '<Choice value="cat"/></Choices><BrushLabels name="mask" toName="picture"><Label value="cat"/>'
    '<Label value="dog"/><Label value="sheep"/></BrushLabels></View>'
)
PHOTO = png_of(photo(1))


class Fake(BaseHTTPRequestHandler):
    """As much of Label Studio as serves a photo to who has the token."""

    asked: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self) -> None:
        type(self).asked.append((self.path, self.headers.get("Authorization", "")))
        if self.path == "/data/away":
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/secret")
            self.end_headers()
        elif self.headers.get("Authorization") not in ("Token legacy", "Bearer short-lived"):
            self._send(401, b"")
        elif self.path == "/data/large.png":
            self._send(200, b"\0" * 2**21)
        else:
            self._send(200 if self.path.startswith("/data/upload/") else 404, PHOTO)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        good = self.path == "/api/token/refresh" and body == {"refresh": "a.b.c"}
        self._send(200 if good else 401, b'{"access": "short-lived"}' if good else b"{}")

    def _send(self, status: int, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def studio() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def backend(start: Start, studio: str) -> Live:
    return start(label_studio_url=studio, label_studio_token="legacy", max_body=1)


def predict(live: Live, *tasks: Any, config: str = CONFIG) -> Answer:
    return live.ask("/predict", json.dumps({"tasks": tasks, "label_config": config}))


def test_health_setup_versions(backend: Live) -> None:
    assert backend.ask("/health").json()["status"] == "UP"
    answer = backend.ask("/setup", json.dumps({"project": "1.2", "schema": CONFIG, "access_token": "x"}))
    assert answer.json() == {"model_version": "tiny@12345678"}
    assert backend.ask("/setup", json.dumps({"schema": "<View/>"})).status == 200
    assert backend.ask("/webhook", b'{"action": "ANNOTATION_CREATED"}').status == 200
    assert backend.ask("/versions").json() == {"versions": ["tiny@12345678"]}


def test_a_task_gets_its_masks(backend: Live, segmenter: Segmenter) -> None:
    answer = predict(backend, {"id": 7, "data": {"photo": "/data/upload/1/a.png"}})
    (prediction,) = answer.json()["results"]
    found = segmenter.segment(photo(1))
    assert prediction["model_version"] == "tiny@12345678"
    assert prediction["score"] == pytest.approx(found.confidence, abs=1e-5)
    numbers = [n for n in np.unique(found.mask).tolist() if n]
    assert [row["value"]["brushlabels"] for row in prediction["result"]] == [[CLASSES[n]] for n in numbers]
    for row, number in zip(prediction["result"], numbers, strict=True):
        assert row["value"]["rle"] == label_studio_rle(found.mask == number)
        assert (row["from_name"], row["to_name"], row["type"]) == ("mask", "picture", "brushlabels")
        assert (row["original_width"], row["original_height"]) == (56, 40)


def test_ticked_tags_rule_the_others_out(backend: Live, segmenter: Segmenter) -> None:
    choice = {"type": "choices", "value": {"choices": ["dog", "blurred"]}}
    task = {"id": 7, "data": {"photo": "/data/upload/1/a.png"}, "annotations": [{"result": [choice]}]}
    (prediction,) = predict(backend, task).json()["results"]
    (row,) = prediction["result"]
    mask = segmenter.segment(photo(1), tags=["dog"]).mask
    assert row["value"] == {"format": "rle", "rle": label_studio_rle(mask == 2), "brushlabels": ["dog"]}


def test_only_labels_of_the_project_are_given(backend: Live) -> None:
    config = CONFIG.replace('<Label value="dog"/><Label value="sheep"/>', "")
    task = {"id": 7, "data": {"photo": "/data/upload/1/a.png"}}
    (prediction,) = predict(backend, task, config=config).json()["results"]
    assert {row["value"]["brushlabels"][0] for row in prediction["result"]} <= {"cat"}


def test_a_photo_inside_the_task(live: Live, segmenter: Segmenter) -> None:
    address = "data:image/png;base64," + base64.b64encode(PHOTO).decode()
    (prediction,) = predict(live, {"id": 1, "data": {"photo": address}}).json()["results"]
    assert len(prediction["result"]) == len(segmenter.segment(photo(1)).tags)


def test_one_bad_photo_leaves_the_others(backend: Live) -> None:
    good, bad = (
        {"id": i, "data": {"photo": f"/data/{where}/a.png"}} for i, where in enumerate(("upload", "none"))
    )
    results = predict(backend, good, bad).json()["results"]
    assert (len(results[0]["result"]) > 0, results[1]["result"]) == (True, [])
    alone = predict(backend, bad)
    assert (alone.status, alone.json()["detail"]) == (
        422,
        "task 1: /data/none/a.png: Label Studio answers 404; expected the photo",
    )


def test_known_tags() -> None:
    def task(*choices: str) -> dict[str, Any]:
        result = [{"type": "choices", "value": {"choices": list(choices)}}]
        return {"annotations": [{"result": [{"type": "brushlabels", "value": {}}]}, {"result": result}]}

    assert known_tags(task("sheep", "cat"), CLASSES) == ["cat", "sheep"]
    assert known_tags(task("blurred"), CLASSES) is None
    assert known_tags({}, CLASSES) is None


# where photos come from


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:9/data/upload/a.png", "where photos are fetched from alone"),
        ("https://evil.example/a.png", "where photos are fetched from alone"),
        ("//evil.example/a.png", "where photos are fetched from alone"),
        ("file:///etc/passwd", "where photos are fetched from alone"),
        ("s3://bucket/a.png", "where photos are fetched from alone"),
        ("etc/passwd", "expected an address of Label Studio"),
        ("http://[::1", "not an address"),
        ("/data/away", "sends elsewhere"),
        ("/data/large.png", "larger than 1 MiB"),
        ("/data/upload/a b\r\nX: y", "cannot be reached"),
        ("data:image/png;base64,%%%", "data: address"),
    ],
)
def test_photos_come_from_label_studio_alone(studio: str, address: str, words: str) -> None:
    Fake.asked.clear()
    with pytest.raises(UserError, match=words):
        LabelStudioFiles(studio, "legacy", max_bytes=2**20).read(address)
    assert all(path.startswith("/data/") for path, _ in Fake.asked)


def test_tokens(studio: str) -> None:
    for token in ("legacy", "a.b.c"):
        files = LabelStudioFiles(studio, token, max_bytes=2**20)
        assert files.read("/data/upload/1/a.png") == PHOTO
        assert files.read(f"{studio}/data/upload/1/a.png?x=1") == PHOTO
    for token, words in (
        ("", "wants a token"),
        ("wrong", "wants a token"),
        ("x.y.z", "does not take the token"),
    ):
        with pytest.raises(UserError, match=words):
            LabelStudioFiles(studio, token, max_bytes=2**20).read("/data/upload/1/a.png")
    with pytest.raises(UserError, match="--label-studio-url"):
        LabelStudioFiles(None, max_bytes=2**20).read("/data/upload/1/a.png")


# case 24


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;">]><View>&b;</View>'
OUTSIDE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><View>&a;</View>'


@pytest.mark.parametrize(
    "config", [BOMB, OUTSIDE, "<View>", "", "<View/>", CONFIG.replace("$photo", "photo")]
)
def test_configurations_that_are_refused(backend: Live, config: str) -> None:
    with pytest.raises(UserError, match="labeling configuration"):
        read_config(config)
    answer = predict(backend, {"id": 1, "data": {}}, config=config)
    assert (answer.status, answer.headers["content-type"]) == (422, "application/problem+json")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b"\xff", b'{"tasks": 1, "label_config": "x"}', b"[" * 100_000]
)
def test_bodies_that_are_refused(backend: Live, body: bytes) -> None:
    assert backend.ask("/predict", body).status in (400, 422)


@pytest.mark.parametrize(
    "task", [None, 1, {}, {"data": None}, {"data": {"photo": 1}}, {"data": {"photo": "x"}, "annotations": 3}]
)
def test_tasks_that_are_refused(backend: Live, task: Any) -> None:
    assert predict(backend, task).status == 422
