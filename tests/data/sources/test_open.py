from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import milseg.data.image
from milseg.data.bags import load_mask
from milseg.data.source_table import SOURCES
from milseg.data.sources.open import Place, find_source, open_source
from milseg.data.sources.voc import VOC_CLASSES, read_voc
from milseg.data.sources.voc_layout import read_objects
from milseg.errors import UserError

from .conftest import Tree

ROWS = b"image,tags\na.jpg,dog\n"


def test_every_kind_says_what_it_is() -> None:
    assert list(SOURCES) == ["folder", "table", "coco", "cvat", "datumaro", "voc", "label_studio", "shards"]
    assert all(row.about and "\n" not in row.about for row in SOURCES.values())


def test_what_a_folder_holds_decides(tree: Tree) -> None:
    tree.write("dog/a.jpg")
    assert find_source(tree.root) == Place(kind="folder", root=tree.root)
    tree.write("notes.csv", b"image,size\na.jpg,17\n")  # no tags in it
    tree.write("package.json", b'{"name": "x"}')
    tree.write("list.txt", b"dog/a.jpg\n")
    tree.write("broken.json", b'{"images": \xff')
    tree.write("b.jpg")
    tree.write("b.csv", ROWS)  # beside the photo of its name, so about that one
    assert find_source(tree.root).kind == "folder"
    tree.write("Annotations/a.xml", b"<annotation/>")
    assert find_source(tree.root) == Place(kind="voc", root=tree.root)
    path = tree.write("mine.csv", ROWS)
    assert find_source(tree.root) == Place(kind="table", root=tree.root, file=path)
    tree.write("other.tsv", b"image\tdog\na.jpg\t1\n")
    with pytest.raises(UserError, match=r"2 files with tags .mine.csv, other.tsv.; say which"):
        find_source(tree.root)
    assert find_source(tree.root, tags=path).file == path
    assert find_source(tree.root, kind="folder").kind == "folder"


def test_what_cannot_be(tree: Tree) -> None:
    path = tree.write("tags.csv", ROWS)
    with pytest.raises(UserError, match="no such file or folder"):
        open_source(tree.root / "none")
    with pytest.raises(UserError, match="unknown kind of source 'coca'; did you mean 'coco'"):
        open_source(tree.root, kind="coca")
    with pytest.raises(UserError, match="the kind 'folder' is a folder"):
        open_source(path, kind="folder")
    with pytest.raises(UserError, match="expected the folder of the photos"):
        open_source(path, tags=path)
    with pytest.raises(UserError, match="0 photos and no file of the kind 'coco'"):
        open_source(tree.root, kind="coco")
    with pytest.raises(UserError, match="no such tag file"):
        open_source(tree.root, tags=tree.root / "none.csv")
    with pytest.raises(UserError, match="JSON, but no kind that is known"):
        open_source(tree.write("x.json", b'{"a": 1}'))
    with pytest.raises(UserError, match="unknown value of tags_are 'some'"):
        open_source(tree.write("a.jpg").parent, tags=path, tags_are="some")


def test_nothing_is_opened_but_the_tags(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither photo nor mask: the photos are empty files, and opening any image fails."""
    monkeypatch.setattr(milseg.data.image, "guarded", lambda *_: pytest.fail("an image was opened"))
    home = tree.voc(2012, {"train": ["a", "b"]})
    for name in ("a", "b"):
        tree.xml(home, name, ["cat"])
        tree.write(f"VOCdevkit/VOC2012/SegmentationClass/{name}.png")
    bags = open_source(tree.root, split="train")
    assert [bag.mask for bag in bags.bags] == [home / "SegmentationClass" / f"{n}.png" for n in "ab"]


def test_voc_is_read_as_by_its_own_reader(tree: Tree) -> None:
    home = tree.voc(2012, {"train": ["a", "b", "n"], "val": ["c"]})
    for name, objects in (("a", ["cat", "sofa", "cat"]), ("b", ["dog"]), ("c", ["car"]), ("n", [])):
        tree.xml(home, name, objects)
        tree.mask(home, name, np.array([[0, 8, 12, 255]], dtype=np.uint8))
    mine = open_source(tree.root, split="train", classes=VOC_CLASSES)
    own = read_voc(tree.root, "train")
    assert mine.classes == own.classes
    assert mine.bags == own.bags
    assert [note for note in mine.notes if "photos of" in note] == [
        "photos of ImageSets/Segmentation/train.txt"
    ]
    every = open_source(home)
    assert [bag.name for bag in every.bags] == ["a", "b", "c", "n"]
    assert every.classes == ("background", "car", "cat", "dog", "sofa")
    # Mask values 8 and 12 are cat and dog.
    assert load_mask(every.bags[0], every).tolist() == [[0, 2, 3, 255]]
    with pytest.raises(UserError, match=r"no list dev\.txt in ImageSets/.*there are: train, val"):
        open_source(home, split="dev")


def test_voc_of_other_classes_and_no_lists(tree: Tree) -> None:
    """As annotation tools write it, beside the photos."""
    for name, objects in (("x/a", ["daisy", "bee"]), ("b", ["wasp"])):
        tree.write(f"{name}.jpg")
        things = "".join(f"<object><name> {o} </name></object>" for o in objects)
        tree.write(f"{name}.xml", f"<annotation>{things}</annotation>".encode())
    tree.write("c.jpg")
    bags = open_source(tree.root)
    assert bags.classes == ("background", "bee", "daisy", "wasp")
    assert {bag.name: bag.tags for bag in bags.bags} == {"b": (1, 0, 0, 1), "x/a": (1, 1, 1, 0)}
    assert bags.notes == ("1 photos without tags left out",)
    assert bags.mask_values is None


def test_voc_lists_of_a_class(tree: Tree) -> None:
    for name in "abcd":
        tree.write(f"JPEGImages/{name}.jpg")
    tree.write("ImageSets/Main/train.txt", b"a\nb\nd\n")
    tree.write("ImageSets/Main/dog_train.txt", b"a  1\nb -1\nc 1\n")
    tree.write("ImageSets/Main/big cat_train.txt", b"a  0\nb  1\n")
    bags = open_source(tree.root, split="train")
    assert bags.classes == ("background", "big cat", "dog")
    assert {bag.name: bag.tags for bag in bags.bags} == {"a": (1, -1, 1), "b": (1, 1, 0), "d": (1, -1, -1)}
    assert bags.tags_from == "class lists"
    tree.write("ImageSets/Main/dog_train.txt", b"a 1\nb yes\n")
    with pytest.raises(UserError, match=r"dog_train\.txt, line 2: 'b yes'; expected"):
        open_source(tree.root, split="train")
    tree.write("ImageSets/Main/dog_train.txt", b"../a 1\n")
    with pytest.raises(UserError, match="is no photo id"):
        open_source(tree.root)


BOMB = (
    b'<!DOCTYPE a [<!ENTITY b "'
    + b"c" * 99
    + b'">]><annotation><object><name>&b;&b;</name></object></annotation>'
)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a PASCAL VOC annotation"),
        (b"<a/>", "holds <a>"),
        (b"<annotation><object/></annotation>", "object 1 has no name"),
        (b"<annotation><object><name>", "not a PASCAL VOC annotation"),
        (BOMB, "not a PASCAL VOC annotation"),
        (b'<?xml version="1.0" encoding="none"?><annotation/>', "not a PASCAL VOC annotation"),
    ],
)
def test_bad_annotations(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(data)
    with pytest.raises(UserError, match=words) as error:
        read_objects(path)
    assert str(path) in str(error.value)


PIECES = [
    "<annotation>",
    "</annotation>",
    "<object>",
    "</object>",
    "<name>",
    "</name>",
    "cat",
    "&b;",
    "<",
    " ",
    "é",
]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=40)
    | st.lists(st.sampled_from(PIECES), max_size=15).map(lambda p: "".join(p).encode())
)
def test_only_the_documented_error_escapes(tree: Tree, data: bytes) -> None:
    """Of an XML file, of a list, and of looking into a folder whose files hold anything."""
    tree.write("JPEGImages/a.jpg")
    for place in (
        "Annotations/a.xml",
        "ImageSets/Main/cat_train.txt",
        "ImageSets/Main/train.txt",
        "t.json",
        "t.csv",
    ):
        tree.write(place, data)
    for kind, split in (("voc", None), ("voc", "train"), (None, None), (None, "train")):
        with contextlib.suppress(UserError):
            open_source(tree.root, kind=kind, split=split)
    (tree.root / "Annotations" / "a.xml").unlink()
    with contextlib.suppress(UserError):
        open_source(tree.root, kind="voc", split="train")
