"""coco.json: its fields, and the masks that pycocotools reads from it."""

import contextlib
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from milseg import __version__
from milseg.annotations.coco import CocoWriter, box, write_list
from milseg.data.image import UInt8

from .helpers import CLASSES, blobs, mask_of, masks, prediction, read_coco_rle, read_json


def written(out: Path, *pairs: tuple[str, UInt8], **options: Any) -> Any:
    with CocoWriter(out, CLASSES, **options) as writer:
        for name, mask in pairs:
            writer.add(prediction(name, mask))
    return read_json(out / "coco.json")


def test_a_file_by_hand(tmp_path: Path) -> None:
    data = written(
        tmp_path, ("x/a", mask_of([0, 1, 1], [255, 2, 1])), ("b", mask_of([0])), ("c", mask_of([2]))
    )
    assert data["categories"] == [
        {"id": 1, "name": "cat", "supercategory": ""},
        {"id": 2, "name": "dog", "supercategory": ""},
    ]
    assert data["images"] == [
        {"id": 1, "file_name": "x/a.jpg", "width": 3, "height": 2},
        {"id": 2, "file_name": "b.jpg", "width": 1, "height": 1},
        {"id": 3, "file_name": "c.jpg", "width": 1, "height": 1},
    ]
    # Columns of the cat: 00, 10, 11 -> 2, 1, 1, 2, and 2 - 1 = 1 for the fourth.
    rows = [
        # image, category, size, counts, area, box, score
        (1, 1, [2, 3], "2111", 3, [1, 0, 2, 2], 0.75),
        (1, 2, [2, 3], "312", 1, [1, 1, 1, 1], 0.5),
        (3, 2, [1, 1], "01", 1, [0, 0, 1, 1], 0.5),
    ]
    assert data["annotations"] == [
        {
            "id": i,
            "image_id": image,
            "category_id": category,
            "segmentation": {"size": size, "counts": counts},
            "area": area,
            "bbox": bbox,
            "iscrowd": 0,
            "score": score,
        }
        for i, (image, category, size, counts, area, bbox, score) in enumerate(rows, start=1)
    ]


def test_box_by_hand() -> None:
    mask = np.zeros((5, 6), dtype=bool)
    mask[1, 4] = mask[3, 2] = True
    assert box(mask) == [2, 1, 3, 3]


def test_without_a_background_number_0_is_a_category(tmp_path: Path) -> None:
    with CocoWriter(tmp_path, ["sky", "grass"]) as writer:
        writer.add(prediction("a", mask_of([0, 1, 255]), tags=[]))
    data = read_json(tmp_path / "coco.json")
    assert [(c["id"], c["name"]) for c in data["categories"]] == [(1, "sky"), (2, "grass")]
    assert [a["category_id"] for a in data["annotations"]] == [1, 2]


def test_regions_are_connected_by_sides_and_corners(tmp_path: Path) -> None:
    data = written(tmp_path, ("a", mask_of([1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 2])), regions=True)
    assert [(a["category_id"], a["area"], a["bbox"]) for a in data["annotations"]] == [
        (1, 2, [0, 0, 2, 2]),
        (1, 2, [3, 0, 1, 2]),
        (2, 1, [3, 2, 1, 1]),
    ]


def rebuilt(path: Path, image: int, size: tuple[int, int]) -> UInt8:
    """A photo's mask from its annotations, as pycocotools decodes them."""
    tool = pytest.importorskip("pycocotools.coco")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = tool.COCO(str(path))
    mask = np.zeros(size, dtype=np.uint8)
    for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image)):
        part = coco.annToMask(annotation)
        assert part.sum() == annotation["area"]
        # No pixel twice.
        assert not (part & (mask > 0)).any()
        mask[part == 1] = annotation["category_id"]
    return mask


@settings(deadline=None, max_examples=40)
@given(masks())
@pytest.mark.parametrize("regions", [False, True])
def test_pycocotools_gives_back_the_mask(regions: bool, mask: UInt8) -> None:
    with TemporaryDirectory() as folder:
        out = Path(folder)
        written(out, ("a", mask), regions=regions)
        expected = np.where(mask == 255, 0, mask)
        np.testing.assert_array_equal(rebuilt(out / "coco.json", 1, mask.shape), expected)


@pytest.mark.parametrize("regions", [False, True])
def test_pycocotools_gives_back_masks_of_a_photos_size(tmp_path: Path, regions: bool) -> None:
    shown = [blobs(375, 500, 3), blobs(333, 250, 3, seed=1, sigma=15)]
    data = written(tmp_path, ("a", shown[0]), ("b", shown[1]), regions=regions)
    for i, mask in enumerate(shown, start=1):
        np.testing.assert_array_equal(rebuilt(tmp_path / "coco.json", i, mask.shape), mask)
    assert [a["id"] for a in data["annotations"]] == list(range(1, len(data["annotations"]) + 1))
    first = data["annotations"][0]
    assert read_coco_rle(first["segmentation"]).sum() == first["area"]


def test_names_of_any_letters(tmp_path: Path) -> None:
    with CocoWriter(tmp_path, ["background", 'chat "roux" \\ 猫']) as writer:
        writer.add(prediction("été/猫 1", mask_of([1]), tags=[]))
    data = read_json(tmp_path / "coco.json")
    assert data["categories"][0]["name"] == 'chat "roux" \\ 猫'
    assert data["images"][0]["file_name"] == "été/猫 1.jpg"


def test_the_file_says_what_made_it_and_keeps_the_letters_of_its_names(tmp_path: Path) -> None:
    with CocoWriter(tmp_path, ("background", "Kätzchen")) as writer:
        writer.add(prediction("Köln", mask_of([1]), tags=[]))
    data = read_json(tmp_path / "coco.json")
    assert data["info"] == {"description": f"Masks predicted by milseg {__version__}"}
    text = (tmp_path / "coco.json").read_text(encoding="utf-8")
    assert "Kätzchen" in text
    assert "Köln.jpg" in text
    assert "Köln" in (tmp_path / ".parts" / "coco.jsonl").read_text(encoding="utf-8")


def test_a_number_that_json_lacks_is_not_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_list(io.StringIO(), [{"score": float("nan")}])
