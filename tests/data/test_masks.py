"""Palette, masks on disk, overlays and VOC results."""

import hashlib
import os
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from milseg.data.image import UInt8, open_mask
from milseg.data.masks import palette, voc_results, write_mask
from milseg.data.sources.voc import VOC_CLASSES
from milseg.errors import UserError


def mask_of(rows: list[list[int]]) -> UInt8:
    return np.array(rows, dtype=np.uint8)


@pytest.mark.parametrize(
    ("number", "colour"),
    [
        (0, (0, 0, 0)),
        (1, (128, 0, 0)),
        (2, (0, 128, 0)),
        (4, (0, 0, 128)),
        (8, (64, 0, 0)),
        (15, (192, 128, 128)),
        (20, (0, 64, 128)),
        (255, (224, 224, 192)),
    ],
)
def test_palette_has_vocs_colours(number: int, colour: tuple[int, int, int]) -> None:
    assert palette()[number].tolist() == list(colour)


def test_palette_colours_differ() -> None:
    assert len({tuple(colour) for colour in palette().tolist()}) == 256


def test_voc_classes_are_in_vocs_order() -> None:
    assert len(VOC_CLASSES) == 21
    assert [VOC_CLASSES.index(n) for n in ("background", "aeroplane", "person", "tvmonitor")] == [
        0,
        1,
        15,
        20,
    ]


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (16, 16)])
def test_masks_survive_the_file(tmp_path: Path, shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    write_mask(tmp_path / "a.png", mask)
    np.testing.assert_array_equal(open_mask(tmp_path / "a.png"), mask)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), palette()[mask])


def test_masks_are_8_bit_palette_files_even_with_two_classes(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", mask_of([[0, 1, 1]]))
    header = (tmp_path / "a.png").read_bytes()
    width, height, bits, colour_type = struct.unpack(">IIBB", header[16:26])
    assert (width, height, bits, colour_type) == (3, 1, 8, 3)


def test_equal_masks_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_mask(tmp_path / name, mask_of([[0, 20, 255]]))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_mask_that_fails_half_way_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mask(tmp_path / "a.png", mask_of([[7]]))

    def half(self: Image.Image, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"\x89PNG")
        raise RuntimeError("in the middle")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(RuntimeError, match="in the middle"):
        write_mask(tmp_path / "a.png", mask_of([[8]]))
    monkeypatch.undo()
    assert open_mask(tmp_path / "a.png").tolist() == [[7]]
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 2), np.int64), np.zeros((2, 2, 3), np.uint8), np.zeros((0, 2), np.uint8)]
)
def test_write_mask_takes_uint8_maps_only(tmp_path: Path, wrong: UInt8) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[H, W\]"):
        write_mask(tmp_path / "a.png", wrong)


IDS = ["2008_000006", "2008_000011"]
CLASSES = ["background", "cat", "person"]


def results() -> Iterator[tuple[str, UInt8]]:
    yield IDS[1], mask_of([[0, 1], [2, 2]])
    yield IDS[0], mask_of([[0, 0, 2]])


def test_voc_results_layout_numbers_and_archive(tmp_path: Path) -> None:
    archive = voc_results(results(), tmp_path, ids=IDS, classes=CLASSES)
    folder = tmp_path / "results" / "VOC2012" / "Segmentation" / "comp6_test_cls"
    assert sorted(os.listdir(folder)) == [f"{name}.png" for name in IDS]
    assert open_mask(folder / f"{IDS[1]}.png").tolist() == [[0, 8], [15, 15]]
    assert archive == tmp_path / "results.tgz"
    with tarfile.open(archive) as tar:
        assert tar.getnames() == [
            "results",
            "results/VOC2012",
            "results/VOC2012/Segmentation",
            "results/VOC2012/Segmentation/comp6_test_cls",
            *(f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png" for name in IDS),
        ]
        tar.extractall(tmp_path / "unpacked", filter="data")
    unpacked = tmp_path / "unpacked" / folder.relative_to(tmp_path) / f"{IDS[0]}.png"
    assert open_mask(unpacked).tolist() == [[0, 0, 15]]


def test_equal_results_give_equal_archives(tmp_path: Path) -> None:
    hashes = set()
    for name in ("a", "b"):
        archive = voc_results(results(), tmp_path / name, ids=IDS, classes=CLASSES, competition="comp5")
        os.utime(archive)
        hashes.add(hashlib.sha256(archive.read_bytes()).hexdigest())
    assert len(hashes) == 1
    # No time of packing in the header, no times or owners inside.
    assert archive.read_bytes()[3:8] == bytes(5)
    with tarfile.open(archive) as tar:
        assert {(entry.mtime, entry.uid, entry.gid, entry.uname) for entry in tar} == {(0, 0, 0, "")}
    assert (tmp_path / "a/results/VOC2012/Segmentation/comp5_test_cls").is_dir()


def test_incomplete_results_are_refused_without_an_archive(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 2 photos .* first is 2008_000006"):
        voc_results(list(results())[:1], tmp_path, ids=IDS, classes=CLASSES)
    assert not (tmp_path / "results.tgz").exists()


def test_files_of_an_earlier_run_are_not_packed(tmp_path: Path) -> None:
    voc_results(results(), tmp_path, ids=IDS, classes=CLASSES)
    with pytest.raises(UserError, match=r"other files \(2008_000006\.png"):
        voc_results(list(results())[:1], tmp_path, ids=IDS[1:], classes=CLASSES)


@pytest.mark.parametrize(
    ("masks", "ids", "classes", "message"),
    [
        ([("2008_9", mask_of([[0]]))], IDS, CLASSES, "not in the image set's list"),
        ([(IDS[0], mask_of([[0]]))] * 2, IDS, CLASSES, "comes twice"),
        ([(IDS[0], mask_of([[255]]))], IDS, CLASSES, "value 255"),
        ([(IDS[0], mask_of([[3]]))], IDS, CLASSES, "value 3"),
        ([], IDS, ["background", "zebra"], "unknown VOC class 'zebra'"),
        ([], ["../../x"], CLASSES, "not a VOC photo id"),
        ([], [IDS[0], IDS[0]], CLASSES, "twice"),
        ([], [], CLASSES, "empty"),
    ],
)
def test_voc_results_errors(
    tmp_path: Path, masks: list[tuple[str, UInt8]], ids: list[str], classes: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        voc_results(masks, tmp_path, ids=ids, classes=classes)


def test_voc_results_knows_two_competitions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown VOC competition 'comp7'"):
        voc_results([], tmp_path, ids=IDS, classes=CLASSES, competition="comp7")
