from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milseg.data.sources.open import find_source, open_source
from milseg.errors import UserError

from .conftest import Tree


def result(kind: str, *labels: Any) -> dict[str, Any]:
    return {"type": kind, "from_name": "x", "to_name": "image", "value": {"x": 1, kind: list(labels)}}


def task(image: object, *annotations: object, **more: object) -> dict[str, Any]:
    return {"data": {"image": image}, "annotations": [{"result": a} for a in annotations], **more}


@pytest.fixture
def photos(tree: Tree) -> Tree:
    for name in ("a.jpg", "sub/b.jpg", "c d.png", "0a1b2c3d-e.jpg"):
        tree.write(name)
    return tree


def write(tree: Tree, tasks: object) -> Path:
    return tree.write("export.json", json.dumps(tasks).encode())


def test_every_kind_of_label(photos: Tree) -> None:
    path = write(
        photos,
        [
            task("a.jpg", [result("choices", "cat", "dog"), result("rating", 3), {"type": "relation"}]),
            task("sub/b.jpg", [result("brushlabels", "dog")], [result("polygonlabels", "cow")]),
            task("c d.png", [result("taxonomy", ["animal", "dog"], ["thing"]), result("labels", " cat ")]),
        ],
    )
    bags = open_source(path)
    assert find_source(path).kind == "label_studio"
    assert bags.classes == ("background", "cat", "cow", "dog", "thing")
    assert {bag.name: bag.tags for bag in bags.bags} == {
        "a": (1, 1, 0, 1, 0),
        "sub/b": (1, 0, 1, 1, 0),
        "c d": (1, 1, 0, 1, 1),
    }
    assert bags.tags_from == "Label Studio annotations"
    assert "1 tasks whose annotators differ; all that any of them saw is taken" in bags.notes


def test_tasks_that_nobody_annotated(photos: Tree) -> None:
    skipped = {"was_cancelled": True, "result": [result("choices", "cow")]}
    path = write(
        photos,
        [
            task("a.jpg", [result("choices", "cat")]),
            task("sub/b.jpg"),
            {"data": {"image": "c d.png"}, "annotations": [skipped], "predictions": [{"result": [3]}]},
            task("0a1b2c3d-e.jpg", []),
        ],
    )
    bags = open_source(path)
    assert bags.classes == ("background", "cat")
    assert [bag.tags for bag in bags.bags] == [(1, 1), (1, -1), (1, -1), (1, 0)]
    assert bags.notes[0] == "2 tasks that nobody has annotated"


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("a.jpg", "a"),
        ("./sub/b.jpg", "sub/b"),
        ("/data/local-files/?d=some/where/sub/b.jpg", "sub/b"),
        ("/data/local-files/?d=c%20d.png", "c d"),
        ("/data/local-files/?d=c+d.png", "c d"),
        ("http://localhost:8080/data/local-files/?d=x%5Csub%5Cb.jpg", "sub/b"),
        ("/data/upload/12/ffffffff-a.jpg", "a"),
        ("/data/upload/ffffffff-c%20d.png", "c d"),
        ("/data/upload/12/0a1b2c3d-e.jpg", "0a1b2c3d-e"),
        ("s3://bucket/deep/sub/b.jpg", "sub/b"),
        ("https://example.org/p/c%20d.png?size=3#x", "c d"),
    ],
)
def test_addresses(photos: Tree, address: str, name: str) -> None:
    bags = open_source(write(photos, [task(address, [result("choices", "cat")])]))
    assert [bag.name for bag in bags.bags] == [name]


@pytest.mark.parametrize(
    "address",
    [
        "/data/local-files/?d=../../etc/z.jpg",
        "/data/local-files/?d=%2e%2e%2fz.jpg",
        "/data/upload/1/%2e%2e/z.jpg",
        "../z.jpg",
        "/etc/z.jpg",
        "https://example.org/x/../../z.jpg",
    ],
)
def test_addresses_that_lead_out(photos: Tree, address: str) -> None:
    """They are looked up by name below the photos' folder, and never followed."""
    photos.write("../z.jpg")
    tasks = [task(address, [result("choices", "cat")], id=5)]
    with pytest.raises(UserError, match=r"task 1 .id 5..*leads out of the photos' folder"):
        open_source(write(photos, tasks), kind="label_studio")
    photos.write("deep/z.jpg")
    bags = open_source(write(photos, tasks), kind="label_studio")
    assert [bag.photo for bag in bags.bags] == [photos.root / "deep/z.jpg"]


@pytest.mark.parametrize("address", ["/data/local-files/?d=", "http://[", "a\nb.jpg", "", "x/.."])
def test_addresses_that_name_no_file(photos: Tree, address: str) -> None:
    with pytest.raises(UserError, match=r"task 1 .id 5..*names no file"):
        open_source(write(photos, [task(address, [], id=5)]), kind="label_studio")


def test_another_key_for_the_photo_and_a_split(photos: Tree) -> None:
    tasks = [
        {"data": {"text": "x", "picture": "a.jpg", "split": "train"}, "completions": [{"result": []}]},
        {
            "data": {"image": "sub/b.jpg", "split": "val"},
            "annotations": [{"result": [result("choices", "k")]}],
        },
    ]
    bags = open_source(write(photos, tasks), split="val")
    assert [bag.name for bag in bags.bags] == ["sub/b"]


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ({}, "is a dict; expected a list"),
        ([], "names no photo"),
        ([3], "task 1: is 3; expected an object"),
        ([{"image": "a.jpg", "id": 4, "choice": "cat"}], "task 1 .id 4.: data"),
        ([{"data": {}}], "no photo in its data"),
        ([{"data": {"image": "a.jpg"}, "annotations": 3}], "annotations: is 3; expected a list"),
        ([task("a.jpg", 3)], "result: is 3; expected a list"),
        ([task("a.jpg", [3])], "result: is 3; expected an object"),
        ([task("a.jpg", [{"type": "choices"}])], "value: is None; expected an object"),
        ([task("a.jpg", [result("choices", 3)])], "choices: is 3; expected a text"),
    ],
)
def test_bad_exports(photos: Tree, tasks: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        open_source(write(photos, tasks), kind="label_studio")


KEYS = ["data", "image", "annotations", "result", "type", "value", "choices", "id", "split", "was_cancelled"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(0, 2)
    | st.sampled_from(["a.jpg", "../a", "choices", "", "http://["]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=20,
)
TASKS = st.lists(
    st.fixed_dictionaries(
        {"data": st.fixed_dictionaries({"image": st.sampled_from(["a.jpg", "sub/b.jpg"]) | VALUES})},
        optional={"annotations": st.lists(st.fixed_dictionaries({"result": st.lists(VALUES)}), max_size=2)},
    )
    | VALUES,
    max_size=3,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=(TASKS | VALUES).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40))
def test_only_the_documented_error_escapes(photos: Tree, data: bytes) -> None:
    path = photos.write("any.json", data)
    with contextlib.suppress(UserError):
        assert len(open_source(photos.root, tags=path, kind="label_studio"))
