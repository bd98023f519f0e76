"""labelstudio.json and its configuration, and the masks that Label Studio's own converter reads from it."""

from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from defusedxml import ElementTree

from milseg.annotations.label_studio import LabelStudioWriter, image_prefix
from milseg.data.image import UInt8
from milseg.errors import UserError

from .helpers import CLASSES, blobs, mask_of, prediction, read_json, read_label_studio_rle
from .test_rle import brush_reason


def written(out: Path, *pairs: tuple[str, UInt8], **options: Any) -> Any:
    with LabelStudioWriter(out, CLASSES, **options) as writer:
        for name, mask in pairs:
            writer.add(prediction(name, mask))
    return read_json(out / "labelstudio.json")


def test_a_task_by_hand(tmp_path: Path) -> None:
    (task,) = written(tmp_path, ("x/a", mask_of([0, 1], [255, 0])))
    assert task["data"] == {"image": "/data/local-files/?d=x/a.jpg"}
    (predicted,) = task["predictions"]
    assert (predicted["model_version"], predicted["score"]) == ("milseg", 0.5)
    (region,) = predicted["result"]
    rle = region["value"].pop("rle")
    assert region == {
        "id": "class-1",
        "type": "brushlabels",
        "from_name": "brush",
        "to_name": "image",
        "original_width": 2,
        "original_height": 2,
        "image_rotation": 0,
        "score": 0.75,
        "value": {"format": "rle", "brushlabels": ["cat"]},
    }
    assert read_label_studio_rle(rle) == [0] * 4 + [255] * 4 + [0] * 8


def test_a_photo_without_objects_is_a_task_all_the_same(tmp_path: Path) -> None:
    first, second = written(tmp_path, ("a", mask_of([0, 255])), ("b", mask_of([2])))
    assert first["predictions"][0]["result"] == []
    assert [r["value"]["brushlabels"] for r in second["predictions"][0]["result"]] == [["dog"]]


def test_addresses_are_quoted(tmp_path: Path) -> None:
    (task,) = written(tmp_path, ("a b/50% & ü?#", mask_of([1])), image_prefix="https://example.org/p/")
    address = task["data"]["image"]
    assert address == "https://example.org/p/a%20b/50%25%20%26%20%C3%BC%3F%23.jpg"
    assert unquote(address).endswith("a b/50% & ü?#.jpg")


def test_the_configuration_names_what_the_tasks_name(tmp_path: Path) -> None:
    classes = ["background", 'a<b> & "c"', "dog"]
    with LabelStudioWriter(tmp_path, classes, from_name="mask", to_name="photo") as writer:
        writer.add(prediction("a", mask_of([1, 2]), tags=[]))
    root = ElementTree.parse(tmp_path / "labelstudio_config.xml").getroot()
    image, brush = root.find("Image"), root.find("BrushLabels")
    assert (root.tag, image.attrib["name"], image.attrib["value"]) == ("View", "photo", "$image")
    assert brush.attrib == {"name": "mask", "toName": "photo"}
    labels = [(label.attrib["value"], label.attrib["background"]) for label in brush]
    assert labels == [('a<b> & "c"', "#e69f00"), ("dog", "#56b4e9")]
    (task,) = read_json(tmp_path / "labelstudio.json")
    results = task["predictions"][0]["result"]
    assert {(r["from_name"], r["to_name"]) for r in results} == {("mask", "photo")}
    assert [r["value"]["brushlabels"][0] for r in results] == [name for name, _ in labels]


@pytest.mark.parametrize(
    "mask",
    [
        mask_of([1]),
        mask_of([2, 0, 255], [1, 1, 0]),
        blobs(97, 131, 3),
        np.full((260, 250), 2, dtype=np.uint8),
    ],
    ids=["one", "void", "blobs", "full"],
)
def test_label_studios_own_converter_gives_back_the_mask(tmp_path: Path, mask: UInt8) -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason=brush_reason)
    (task,) = written(tmp_path, ("a", mask))
    back = np.zeros_like(mask)
    # What the converter makes of a task before it decodes: the value's fields beside the region's own.
    flat = [{**r, **r["value"]} for r in task["predictions"][0]["result"]]
    for key, layer in brush.decode_from_annotation("brush", flat).items():
        _, name, _ = key.split("-")
        assert set(np.unique(layer)) <= {0, 255}
        back[layer == 255] = CLASSES.index(name)
    np.testing.assert_array_equal(back, np.where(mask == 255, 0, mask))


def test_closing_names_both_files(tmp_path: Path) -> None:
    writer = LabelStudioWriter(tmp_path, CLASSES)
    writer.add(prediction("a", mask_of([1])))
    assert writer.close() == [tmp_path / "labelstudio.json", tmp_path / "labelstudio_config.xml"]
    lines = writer.config().splitlines()
    assert (lines[0], lines[-1]) == ("<View>", "</View>")


@pytest.mark.parametrize(
    ("given", "prefix"),
    [
        ("pets", "/data/local-files/?d=pets/"),
        ("/pets\\new ones/", "/data/local-files/?d=pets/new%20ones/"),
        ("", "/data/local-files/?d="),
        ("https://example.org/p", "https://example.org/p/"),
        ("s3://bucket/p/", "s3://bucket/p/"),
        ("/data/local-files/?d=", "/data/local-files/?d="),
    ],
)
def test_where_the_photos_lie(given: str, prefix: str) -> None:
    assert image_prefix(given) == prefix


@pytest.mark.parametrize("given", ["../p", "a/../../b", "a\nb"])
def test_a_prefix_that_leads_out(given: str) -> None:
    with pytest.raises(UserError, match="--labelstudio-prefix"):
        image_prefix(given)
