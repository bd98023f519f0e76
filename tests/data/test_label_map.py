"""Colour masks with CVAT's label map are read as class numbers."""

from __future__ import annotations

import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from milseg.annotations import open_writer
from milseg.annotations.writer import Prediction
from milseg.data.image import open_mask
from milseg.data.label_map import find_label_map, read_label_map
from milseg.data.masks import write_mask
from milseg.data.sources.mask_names import names_of_values
from milseg.errors import UserError
from milseg.evaluation.folders import evaluate_folder

CLASSES = ("background", "cat", "dog")
MASK = np.array([[0, 1, 1], [2, 2, 0]], dtype=np.uint8)
MAP = "# label:color_rgb:parts:actions\ndog:0,128,0::\nbackground:0,0,0::\ncat:128,0,0:head,tail:run\n"


def colours(path: Path, *values: tuple[int, int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array([values], dtype=np.uint8)).save(path)
    return path


def test_the_order_of_the_label_map_numbers_the_colours(tmp_path: Path) -> None:
    (tmp_path / "labelmap.txt").write_text(MAP)
    mask = colours(tmp_path / "SegmentationClass/in/a.png", (128, 0, 0), (0, 0, 0), (0, 128, 0))
    assert open_mask(mask).tolist() == [[2, 1, 0]]
    assert open_mask(colours(tmp_path / "SegmentationClass/b.png", (0, 0, 0), (0, 0, 0))).tolist() == [[1, 1]]
    assert names_of_values(None, tmp_path / "SegmentationClass", ()) == {0: "dog", 1: "background", 2: "cat"}
    assert read_label_map(tmp_path / "labelmap.txt")["cat"] == (128, 0, 0)


def test_a_colour_that_the_label_map_lacks(tmp_path: Path) -> None:
    mask = colours(tmp_path / "m/a.png", (128, 0, 0), (1, 2, 3))
    with pytest.raises(UserError, match=r"pixels in colours; expected .*labelmap\.txt beside colours"):
        open_mask(mask)
    (tmp_path / "labelmap.txt").write_text(MAP)
    with pytest.raises(UserError, match=r"a\.png: the colour 1,2,3 is not in .*labelmap\.txt"):
        open_mask(mask)
    # Grey values that are no colours of the map stay what they are.
    assert open_mask(colours(tmp_path / "m/b.png", (1, 1, 1), (2, 2, 2))).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat:1,2\n", r"line 1: 'cat:1,2'; expected NAME:RED,GREEN,BLUE"),
        ("cat:1,2,256::\n", "line 1"),
        ("cat:1,2,3::\ndog:1,2,3::\n", "line 2: .*another line has too"),
        ("# nothing\n", "0 classes"),
    ],
)
def test_bad_label_maps(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        read_label_map(tmp_path / "labelmap.txt")


def test_what_predict_writes_for_cvat_is_read_back(tmp_path: Path) -> None:
    """Reliability case 56: the archive, unpacked, is the truth of the masks that it was made from."""
    photo = {"photo_path": tmp_path / "a.jpg", "photo_file": "in/a.jpg", "size": MASK.shape}
    with open_writer("cvat", tmp_path / "out", CLASSES) as writer:
        writer.add(Prediction(name="in/a", mask=MASK, confidence=1.0, **photo))  # type: ignore[arg-type]
    with zipfile.ZipFile(tmp_path / "out" / "cvat.zip") as archive:
        archive.extractall(tmp_path / "truth")
    (tmp_path / "pred/in").mkdir(parents=True)
    write_mask(tmp_path / "pred/in/a.png", MASK)
    (tmp_path / "pred/labels.json").write_text('{"classes": ["background", "cat", "dog"]}')
    for truth in ("truth", "truth/SegmentationClass"):
        assert evaluate_folder(tmp_path / "pred", tmp_path / truth).mean_iu == 100
    assert find_label_map(tmp_path / "truth/SegmentationClass") == tmp_path / "truth/labelmap.txt"


def test_masks_in_another_unicode_form_are_the_photos(tmp_path: Path) -> None:
    for folder, form in (("pred", "NFC"), ("truth", "NFD")):
        (tmp_path / folder).mkdir()
        write_mask(tmp_path / folder / (unicodedata.normalize(form, "Müller") + ".png"), MASK)
        (tmp_path / folder / "labels.json").write_text('{"classes": ["background", "cat", "dog"]}')
    assert evaluate_folder(tmp_path / "pred", tmp_path / "truth").mean_iu == 100
