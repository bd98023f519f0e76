"""Annotation tools' own exports: the same photos and tags from each."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milseg.data.sources.open import find_source, open_source
from milseg.data.sources.tags import file_kind
from milseg.errors import UserError

from .conftest import Tree

ABOUT = {"annotation_id": 5, "annotator": 1, "created_at": "2024", "lead_time": 1.2, "updated_at": "2024"}
CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
<label><name>cat</name></label><label><name>dog</name></label><label><name>cow</name></label>
</labels></task></meta>
<image id="0" name="in/a b.jpg" width="4" height="3"><tag label="cat"/><box label="dog" xtl="1"/></image>
<image id="1" name="b.jpg" subset="train"><mask label="dog" rle="1, 2"/><polygon label="dog" points="1,2"/></image>
<image id="2" name="c.jpg" subset="default"/>
</annotations>"""


def datumaro(**change: Any) -> dict[str, Any]:
    items = [
        {
            "id": "in/a b",
            "annotations": [{"type": "label", "label_id": 0}, {"type": "bbox", "label_id": 1}],
            "image": {"path": "in/a b.jpg"},
        },
        {"id": "b", "annotations": [{"type": "mask", "label_id": 1}, {"type": "caption", "caption": "x"}]},
        {"id": "c", "annotations": [], "media": {"path": "c.jpg"}},
    ]
    labels = [{"name": "cat", "parent": ""}, {"name": "dog"}, {"name": "cow"}]
    return {"info": {}, "categories": {"label": {"labels": labels}}, "items": items, **change}


def minimal(image: str, value: Any, control: str = "animals") -> dict[str, Any]:
    return {"image": f"/data/upload/1/0123abcd-{image}", "id": 3, control: value, **ABOUT}


CHOICES = {"choices": ["cat", "dog"]}
BOX = [{"x": 1, "y": 2, "rectanglelabels": ["dog"], "original_width": 4}]
EXPORTS: dict[str, tuple[str, str, str]] = {
    "CVAT for images": ("annotations.xml", CVAT, "cvat"),
    "Datumaro": ("default.json", json.dumps(datumaro()), "datumaro"),
    "Label Studio, JSON-MIN": (
        "min.json",
        json.dumps(
            [minimal("a%20b.jpg", CHOICES), minimal("b.jpg", "dog"), {**minimal("c.jpg", None), "cow": []}]
        ),
        "label_studio",
    ),
    "Label Studio, CSV": (
        "ls.csv",
        "annotation_id,annotator,boxes,id,image,lead_time,tags,note\n"
        '1,1,"[{""x"":1,""rectanglelabels"":[""dog""]}]",3,/data/local-files/?d=x%2Fa%20b.jpg,1.2,cat,dark\n'
        '2,1,"[{""x"":1,""rectanglelabels"":[""dog""]}]",4,/data/local-files/?d=b.jpg,1.2,,\n'
        "3,1,,5,/data/local-files/?d=c.jpg,1.2,,\n",
        "table",
    ),
    "Label Studio, TSV": (
        "ls.tsv",
        "annotation_id\tannotator\tid\timage\tlead_time\ttags\n"
        '1\t1\t3\ta b.jpg\t1.2\t{"choices":["cat","dog"]}\n2\t1\t4\tb.jpg\t1.2\tdog\n3\t1\t5\tc.jpg\t1\t\n',
        "table",
    ),
}


@pytest.fixture
def photos(tree: Tree) -> Tree:
    for name in ("in/a b.jpg", "b.jpg", "c.jpg"):
        tree.write(f"p/{name}")
    return tree


@pytest.mark.parametrize("name", EXPORTS)
def test_the_same_tags_from_each(photos: Tree, name: str) -> None:
    file, text, kind = EXPORTS[name]
    path = photos.write(f"p/{file}", text.encode())
    assert file_kind(path) == kind
    bags = open_source(photos.root / "p", tags=path)
    found = {
        bag.name: {tag for tag, there in zip(bags.classes, bag.tags, strict=True) if there == 1}
        - {"background"}
        for bag in bags.bags
    }
    assert found == {"in/a b": {"cat", "dog"}, "b": {"dog"}, "c": set()}
    if name == "Label Studio, CSV":
        assert any("read from the columns boxes, tags, not from note" in note for note in bags.notes)
    if kind in ("cvat", "datumaro"):
        assert bags.classes == ("background", "cat", "cow", "dog")
        assert find_source(photos.root / "p").kind == kind


def test_labels_of_shapes_in_a_flat_export(photos: Tree) -> None:
    rows = [
        minimal("b.jpg", BOX, "regions"),
        minimal("b.jpg", [{"brushlabels": ["cow"], "format": "rle"}], "regions"),
    ]
    path = photos.write("t.json", json.dumps(rows).encode())
    bags = open_source(photos.root / "p", tags=path)
    assert bags.tag_counts() == {"background": 1, "cow": 1, "dog": 1}
    assert any("several rows, whose tags add up" in note for note in bags.notes)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.xml", "<annotations><track label='cat'/></annotations>", "XML of a video"),
        (
            "a.xml",
            "<annotations><image name='b.jpg'><tag/></image></annotations>",
            "image 1: <tag> without a label",
        ),
        ("a.xml", "<annotations><image><tag label='x'/></image></annotations>", "image 1: .*names no file"),
        ("a.xml", "<annotations><image", "not XML of CVAT's"),
        ("a.xml", "<!DOCTYPE a [<!ENTITY b 'c'>]><annotations>&b;</annotations>", "not XML of CVAT's"),
        ("a.xml", "<annotation><object/></annotation>", "XML or HTML, but no kind that is known"),
        (
            "a.json",
            json.dumps(datumaro(items=[{"id": "b", "annotations": [{"label_id": 9}]}])),
            "label_id 9 is not",
        ),
        ("a.json", json.dumps(datumaro(items=[{}])), "item 1: id: is None"),
        ("a.json", json.dumps(datumaro(categories=[])), "categories: is a list; expected an object"),
        (
            "a.json",
            '{"shapes": [], "imagePath": "a.jpg"}',
            "LabelMe's JSON, one file a photo; convert it to COCO",
        ),
        ("a.json", '{"_via_img_metadata": {}}', "VGG Image Annotator's project; convert it"),
        (
            "a.csv",
            "annotation_id,annotator,image,note,other\n1,1,b.jpg,x,y\n",
            "columns note, other may hold",
        ),
        ("a.csv", "annotation_id,annotator,text,animal\n1,1,x,y\n", "no column of photos among"),
        ("a.zip", "PK\x03\x04", "a zip archive or an Excel workbook"),
    ],
)
def test_exports_that_cannot_be_read(photos: Tree, name: str, text: str, words: str) -> None:
    path = photos.write(name, text.encode())
    with pytest.raises(UserError, match=words) as error:
        open_source(photos.root / "p", tags=path)
    assert str(path) in str(error.value)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(0, 2)
    | st.sampled_from(["b.jpg", "cat", "", '{"choices": ["cat"]}']),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["image", "choices", "label_id", "id", "annotations", "path", "name"]), inner
        )
    ),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES, cut=st.integers(0, 900))
def test_only_the_documented_error_escapes(photos: Tree, value: Any, cut: int) -> None:
    for text in (
        json.dumps([minimal("b.jpg", value), minimal("c.jpg", value, "cow")]),
        json.dumps(datumaro(items=value)),
        json.dumps(datumaro(categories={"label": value})),
        json.dumps(datumaro(items=[value, {"id": "b", "annotations": value}])),
        CVAT[:cut],
        CVAT.replace("cat", str(value)),
        EXPORTS["Label Studio, CSV"][1][:cut],
    ):
        path: Path = photos.write("any.json", text.encode())
        with contextlib.suppress(UserError):
            assert len(open_source(photos.root / "p", tags=path))
