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

# COCO's own ids have gaps up to 90; others begin at 0, and 0 must not read as nothing.
CATEGORIES = [{"id": 90, "name": "toothbrush"}, {"id": 0, "name": "person"}, {"id": 13, "name": "stop sign"}]
IMAGES = [
    {"id": 9, "file_name": "a.jpg"},
    {"id": 0, "file_name": "sub/b.jpg"},
    {"id": 4, "file_name": "c.jpg"},
]
ANNOTATIONS = [
    {"image_id": 9, "category_id": 0, "segmentation": {"counts": "not read"}},
    {"image_id": 9, "category_id": 90, "bbox": None},
    {"image_id": 0, "category_id": 0},
    {"image_id": 0, "category_id": 0, "iscrowd": 1},
]


@pytest.fixture
def coco(tree: Tree) -> Tree:
    for name in ("a.jpg", "sub/b.jpg", "c.jpg", "d.jpg"):
        tree.write(f"train2017/{name}")
    return tree


def write(tree: Tree, **change: Any) -> Path:
    data = {"images": IMAGES, "categories": CATEGORIES, "annotations": ANNOTATIONS} | change
    data = {key: value for key, value in data.items() if value is not ...}
    return tree.write("annotations/instances_train2017.json", json.dumps(data).encode())


def test_ids_are_keys_only(coco: Tree) -> None:
    bags = open_source(write(coco))
    assert bags.classes == ("background", "person", "stop sign", "toothbrush")
    assert {bag.name: bag.tags for bag in bags.bags} == {
        "train2017/a": (1, 1, 0, 1),
        "train2017/sub/b": (1, 1, 0, 0),
        "train2017/c": (1, 0, 0, 0),
    }
    assert bags.tags_from == "COCO annotations"
    assert bags.notes == (
        "1 photos without a row left out, such as train2017/d.jpg",
        "1 photos without any tag kept as background-only bags, such as train2017/c.jpg",
        "1 classes without a photo, which keep their place: stop sign",
    )
    partial = open_source(write(coco), tags_are="partial")
    assert partial.bags[1].tags == (1, 1, -1, -1)


def test_a_file_without_annotations_says_nothing(coco: Tree) -> None:
    bags = open_source(write(coco, annotations=...))
    assert {bag.tags for bag in bags.bags} == {(1, -1, -1, -1)}


def test_where_the_file_lies(coco: Tree) -> None:
    path = write(coco)
    assert find_source(coco.root).file == path
    assert open_source(coco.root).bags == open_source(path).bags
    bags = open_source(coco.root / "train2017", tags=path)
    assert [bag.name for bag in bags.bags] == ["a", "sub/b", "c"]
    coco.write("annotations/instances_val2017.json", path.read_bytes())
    with pytest.raises(
        UserError, match=r"2 files with tags .instances_train2017.json, instances_val2017.json"
    ):
        open_source(coco.root)
    assert find_source(coco.root, split="val").file == path.with_name("instances_val2017.json")
    assert len(open_source(path, split="train")) == 3
    with pytest.raises(UserError, match="no photo is in the split 'dev'; no split is written there"):
        open_source(path, split="dev")


def test_a_folder_a_split_with_a_file_each(tree: Tree) -> None:
    for split, name in (("train", "a"), ("valid", "b")):
        tree.write(f"{split}/{name}.jpg")
        data = {
            "images": [{"id": 0, "file_name": f"{name}.jpg"}],
            "categories": [{"id": 1, "name": "k"}],
            "annotations": [{"image_id": 0, "category_id": 1}],
        }
        tree.write(f"{split}/_annotations.coco.json", json.dumps(data).encode())
    assert [bag.name for bag in open_source(tree.root, split="val").bags] == ["b"]
    assert [bag.name for bag in open_source(tree.root, split="train").bags] == ["a"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"categories": ...}, "no 'categories'; expected a COCO file"),
        ({"images": 3}, "images: is 3; expected a list"),
        ({"images": [[]]}, r"images\[0\]: is a list; expected an object"),
        ({"images": [{"id": 1}]}, r"images\[0\]: file_name: is None; expected a text"),
        (
            {"images": [{"id": 1.5, "file_name": "a.jpg"}]},
            r"images\[0\]: id: is 1.5; expected a whole number",
        ),
        ({"images": [{"id": {}, "file_name": "a.jpg"}]}, r"images\[0\]: id: is {}; expected a whole number"),
        (
            {"images": [{"id": 1, "file_name": "sub/"}]},
            r"images\[0\]: 'sub/' in place of a photo names no file",
        ),
        ({"images": [IMAGES[0], IMAGES[0]]}, r"images\[1\]: the id 9 is taken already"),
        ({"annotations": [{"image_id": 77, "category_id": 0}]}, r"annotations\[0\]: image_id 77 is not"),
        ({"annotations": [{"image_id": 9, "category_id": 1}]}, r"annotations\[0\]: category_id 1 is not"),
        ({"annotations": [{"category_id": 1}]}, r"annotations\[0\]: image_id: is None"),
        ({"categories": [{"id": 1, "name": " "}]}, "category_id 0 is not among"),
        ({"categories": [*CATEGORIES, {"id": 1, "name": "\n"}]}, "is no tag"),
    ],
)
def test_bad_files(coco: Tree, change: dict[str, Any], words: str) -> None:
    path = write(coco, **change)
    with pytest.raises(UserError, match=words) as error:
        open_source(coco.root, tags=path, kind="coco")
    assert str(path) in str(error.value)


def test_damaged_json(coco: Tree) -> None:
    path = write(coco)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="not JSON"):
        open_source(path)
    for text in (b"[" * 100_000, b'{"images": ' + b"9" * 5000 + b"}"):
        path.write_bytes(text)
        with pytest.raises(UserError, match=r"cannot be read|not JSON"):
            open_source(path, kind="coco")


KEYS = ["images", "categories", "annotations", "id", "image_id", "category_id", "file_name", "name"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 2) | st.sampled_from(["a.jpg", "../a", "dog", "", 1.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=20,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "id": st.integers(0, 2) | VALUES,
        "image_id": st.integers(0, 2),
        "category_id": st.integers(0, 2),
        "file_name": st.sampled_from(["a.jpg", "c.jpg", "x/y"]),
        "name": st.sampled_from(["dog", "cat", "background"]),
    },
)
FILES = st.fixed_dictionaries({key: st.lists(ENTRIES | VALUES, max_size=3) for key in KEYS[:3]}) | VALUES


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=FILES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40), cut=st.integers(0, 400)
)
def test_only_the_documented_error_escapes(coco: Tree, data: bytes, cut: int) -> None:
    path = coco.write("any.json", data[:cut] if cut % 3 == 0 else data)
    with contextlib.suppress(UserError):
        assert len(open_source(coco.root, tags=path, kind="coco"))
