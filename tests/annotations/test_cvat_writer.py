"""cvat.zip: the layout of CVAT's "Segmentation mask 1.1", and the masks that its colours say."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from milseg.annotations.cvat import CvatWriter
from milseg.data.image import UInt8
from milseg.errors import UserError

from .helpers import CLASSES, blobs, mask_of, prediction


def written(out: Path, *pairs: tuple[str, UInt8], classes: Any = CLASSES) -> dict[str, bytes]:
    with CvatWriter(out, classes) as writer:
        for name, mask in pairs:
            writer.add(prediction(name, mask, tags=[]))
    with zipfile.ZipFile(out / "cvat.zip") as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def picture(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def colours_in(label_map: bytes) -> dict[tuple[int, ...], str]:
    """The label map read by its own words: name, colour, parts, actions between colons."""
    found = {}
    for line in label_map.decode().splitlines():
        if not line.startswith("#"):
            name, colour, parts, actions = line.split(":")
            assert (parts, actions) == ("", "")
            found[tuple(int(part) for part in colour.split(","))] = name
    return found


def test_the_layout(tmp_path: Path) -> None:
    files = written(tmp_path, ("a", mask_of([0, 1])), ("deep/er/b c", mask_of([2, 1])))
    assert list(files) == [
        "labelmap.txt",
        "ImageSets/Segmentation/default.txt",
        "SegmentationClass/a.png",
        "SegmentationObject/a.png",
        "SegmentationClass/deep/er/b c.png",
        "SegmentationObject/deep/er/b c.png",
    ]
    assert files["ImageSets/Segmentation/default.txt"] == b"a\ndeep/er/b c\n"
    assert files["labelmap.txt"].decode() == (
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n"
    )


def test_colours_by_hand(tmp_path: Path) -> None:
    files = written(tmp_path, ("a", mask_of([0, 2, 255])))
    assert picture(files["SegmentationClass/a.png"]).tolist() == [[[0, 0, 0], [0, 128, 0], [0, 0, 0]]]
    # The only object is number 1 of the palette.
    assert picture(files["SegmentationObject/a.png"]).tolist() == [[[0, 0, 0], [128, 0, 0], [0, 0, 0]]]


@pytest.mark.parametrize("classes", [CLASSES, ("sky", "grass", "road")])
def test_the_colours_give_back_the_mask(tmp_path: Path, classes: tuple[str, ...]) -> None:
    mask = blobs(60, 80, 3)
    mask[:5] = 255
    files = written(tmp_path, ("a", mask), classes=classes)
    names = colours_in(files["labelmap.txt"])
    shown = picture(files["SegmentationClass/a.png"])
    back = np.array([[names[tuple(pixel)] for pixel in row] for row in shown.tolist()])
    expected = np.array([*classes, "background"])[np.where(mask == 255, 3, mask)]
    np.testing.assert_array_equal(back, expected)
    # An object lies in one class and is all of it, and no object is where no label is.
    objects = picture(files["SegmentationObject/a.png"]).reshape(-1, 3)
    pairs = np.unique(np.concatenate([objects, shown.reshape(-1, 3)], axis=1), axis=0)
    assert len(np.unique(pairs[:, :3], axis=0)) == len(np.unique(pairs[:, 3:], axis=0)) == len(pairs)
    assert ((pairs[:, :3] == 0).all(axis=1) == (pairs[:, 3:] == 0).all(axis=1)).all()


def test_equal_masks_give_equal_archives(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        written(tmp_path / folder, ("x", mask_of([0, 1])))
    assert (tmp_path / "a" / "cvat.zip").read_bytes() == (tmp_path / "b" / "cvat.zip").read_bytes()


@pytest.mark.parametrize("name", ["a:b", "#a", " a", "a "])
def test_labels_that_the_label_map_cannot_hold(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="leave the format cvat out"):
        CvatWriter(tmp_path, ["background", name])


def test_a_background_that_is_not_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must come first"):
        CvatWriter(tmp_path, ["cat", "background"])


@pytest.mark.parametrize("name", ["#a", " a", "a "])
def test_photos_that_the_list_cannot_hold(tmp_path: Path, name: str) -> None:
    with (
        CvatWriter(tmp_path, CLASSES) as writer,
        pytest.raises(UserError, match="leave the format cvat out"),
    ):
        writer.add(prediction(name, mask_of([1])))


def test_datumaro_reads_the_archive(tmp_path: Path) -> None:
    datumaro = pytest.importorskip(
        "datumaro", reason="datumaro, which reads this format for CVAT, is not installed: it is large"
    )
    mask = blobs(60, 80, 3)
    written(tmp_path, ("x/a", mask), ("b", np.zeros((4, 5), dtype=np.uint8)))
    with zipfile.ZipFile(tmp_path / "cvat.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    data = datumaro.Dataset.import_from(str(tmp_path / "unpacked"), "voc_segmentation")
    labels = [item.name for item in data.categories()[datumaro.AnnotationType.label]]
    assert labels[:3] == list(CLASSES)
    items = {item.id: item for item in data}
    assert set(items) == {"x/a", "b"}
    back = np.zeros_like(mask)
    for annotation in items["x/a"].annotations:
        back[np.asarray(annotation.image) > 0] = annotation.label
    np.testing.assert_array_equal(back, mask)
    assert not items["b"].annotations
