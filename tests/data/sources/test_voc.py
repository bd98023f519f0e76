from __future__ import annotations

import csv
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import milseg.data.bags
import milseg.data.image
import milseg.data.sources.voc
from milseg.data.bags import ABSENT, PRESENT, UNKNOWN, VOID, load_mask
from milseg.data.loader import load_batch
from milseg.data.sources.voc import VOC_CLASSES, mask_classes, read_annotation, read_voc
from milseg.data.sources.voc_layout import year_folders
from milseg.data.sources.voc_sets import PAIRS, SETS, default_pair, require_disjoint
from milseg.errors import UserError

from .conftest import Tree

ANIMALS = ("cat", "cow", "dog", "horse", "person", "sheep")
# t: VOC train, v: VOC val of both years; n: new in 2012; s: SBD train, u: SBD val; so "vs" is in VOC val
# and in SBD train.
VOC_TRAIN, VOC_VAL = ["t", "ts", "tu"], ["v1", "v2", "vs", "vu"]
SBD_TRAIN, SBD_VAL = ["s1", "s2", "ts", "vs", "nvs"], ["u1", "tu", "vu"]


@pytest.fixture
def both(tree: Tree) -> Tree:
    """VOC 2011 and 2012 and SBD, overlapping in every way that the real ones do."""
    for year, train, val in ((2011, VOC_TRAIN, VOC_VAL), (2012, [*VOC_TRAIN, "nt"], [*VOC_VAL, "nvs"])):
        home = tree.voc(year, {"train": train, "val": val, "trainval": [*train, *val]})
        for name in (*train, *val):
            tree.mask(home, name, np.array([[0, 8]], dtype=np.uint8))
    tree.sbd({"train": SBD_TRAIN, "val": SBD_VAL})
    return tree


@pytest.fixture
def small(tree: Tree) -> Tree:
    """A VOC 2012 with masks and annotations that differ, to see which were read."""
    home = tree.voc(2012, {"train": ["a", "b", "c"], "val": ["d"]})
    for name, value, objects in (
        ("a", 8, ["cat", "sofa", "cat"]),
        ("b", 18, ["sofa"]),
        ("c", 0, []),
        ("d", 9, ["car"]),
    ):
        tree.mask(home, name, np.array([[0, value, 255]], dtype=np.uint8))
        tree.xml(home, name, objects)
    return tree


def names(bags: milseg.data.bags.BagSet) -> list[str]:
    return [bag.name for bag in bags.bags]


def test_classes_are_in_the_order_of_the_mask_values() -> None:
    assert len(VOC_CLASSES) == 21
    assert [VOC_CLASSES.index(c) for c in ("background", "aeroplane", *ANIMALS, "tvmonitor")] == [
        *(0, 1),
        *(8, 10, 12, 13, 15, 17),
        20,
    ]


@pytest.mark.parametrize(
    ("split", "year", "expected"),
    [
        ("train", 2011, VOC_TRAIN),
        ("train", None, [*VOC_TRAIN, "nt"]),
        ("val", 2011, VOC_VAL),
        ("trainval", 2011, [*VOC_TRAIN, *VOC_VAL]),
        ("paper-train", None, ["t", "ts", "tu", "s1", "s2", "vs", "nvs"]),
        ("val-736", None, ["v1", "v2", "vu"]),
        ("train-aug", None, ["t", "ts", "tu", "nt", "s1", "s2", "u1"]),
    ],
)
def test_named_sets(both: Tree, split: str, year: int | None, expected: list[str]) -> None:
    assert names(read_voc(both.root, split, year=year)) == expected


@pytest.mark.parametrize(("train", "val"), PAIRS)
def test_pairs_share_nothing(both: Tree, train: str, val: str) -> None:
    first, second = read_voc(both.root, train), read_voc(both.root, val)
    assert not set(names(first)) & set(names(second))
    require_disjoint(first, second)


def test_sets_that_do_not_go_together_are_stopped(both: Tree) -> None:
    train, val = read_voc(both.root, "paper-train"), read_voc(both.root, "val", year=2011)
    with pytest.raises(UserError, match=r"share 1 photos, such as vs.*paper-train with val-736"):
        require_disjoint(train, val)


def test_masks_and_photos_of_voc_come_before_those_of_sbd(both: Tree) -> None:
    bags = {bag.name: bag for bag in read_voc(both.root, "paper-train").bags}
    voc, sbd = both.root / "VOCdevkit/VOC2011", both.root / "benchmark_RELEASE/dataset"
    for name in ("t", "ts", "tu", "vs"):
        assert bags[name].mask == voc / "SegmentationClass" / f"{name}.png"
        assert bags[name].photo == voc / "JPEGImages" / f"{name}.jpg"
    for name in ("s1", "s2", "nvs"):
        assert bags[name].mask == sbd / "cls" / f"{name}.mat"
        assert bags[name].photo == sbd / "img" / f"{name}.jpg"
    found = read_voc(both.root, "paper-train")
    assert "masks: 4 of VOC, 3 of SBD" in found.notes
    assert found.name == "VOC2011 paper-train"
    assert found.tag_counts()["cat"] == 4
    assert found.tag_counts()["person"] == 3
    np.testing.assert_array_equal(load_mask(bags["s1"], found), [[0, 15]])


def test_a_set_of_another_size_than_it_should_have_says_so(both: Tree) -> None:
    assert SETS["val-736"].photos == 736
    assert SETS["train-aug"].photos == 10582
    assert "3 photos listed on disk; the set is known to have 736" in read_voc(both.root, "val-736").notes


def test_default_pair_follows_what_is_on_disk(tree: Tree, tmp_path: Path) -> None:
    tree.voc(2012, {"train": ["a"], "val": ["b"]})
    assert default_pair(tree.root) == ("train", "val")
    tree.sbd({"train": ["a"], "val": []}, home="elsewhere")
    assert default_pair(tree.root) == ("train", "val")
    assert default_pair(tree.root, sbd=tree.root / "elsewhere") == ("train-aug", "val")
    tree.voc(2011, {"train": ["a"], "val": ["b"]})
    assert default_pair(tree.root) == ("train", "val")
    assert default_pair(tree.root, sbd=tree.root / "elsewhere") == ("paper-train", "val-736")
    assert default_pair(tree.root, sbd=tree.root / "elsewhere", year=2012) == ("train-aug", "val")


@pytest.mark.parametrize("home", ["VOCdevkit", ".", "TrainVal/VOCdevkit"])
def test_root_may_be_any_folder_above_the_year_or_the_year(tree: Tree, home: str) -> None:
    folder = tree.voc(2011, {"train": ["a"], "val": ["b"]}, home=home)
    tree.mask(folder, "a", np.array([[1]], dtype=np.uint8))
    for root in (tree.root, tree.root / home, folder):
        assert list(year_folders(root)) == ["VOC2011"]
        found = read_voc(root, "train")
        assert (found.name, names(found)) == ("VOC2011 train", ["a"])


def test_annotations_come_before_masks_and_the_set_says_which(small: Tree) -> None:
    found = read_voc(small.root, "train")
    assert found.tags_from == "XML annotations"
    assert {c: n for c, n in found.tag_counts().items() if n} == {"background": 3, "cat": 1, "sofa": 2}
    found = read_voc(small.root, "train", tags_from="masks")
    assert found.tags_from == "masks"
    assert {c: n for c, n in found.tag_counts().items() if n} == {"background": 3, "cat": 1, "sofa": 1}
    assert found.notes == ("1 photos without any tag kept as background-only bags, such as c",)


def test_tag_file_comes_first(small: Tree) -> None:
    path = small.write("tags.csv", b"image,tags,split\nJPEGImages/a.jpg,horse,train\nc,background,val\n")
    found = read_voc(small.root, "train", tags_file=path)
    assert found.tags_from == "tag file"
    assert names(found) == ["a", "c"]
    assert {c: n for c, n in found.tag_counts().items() if n} == {"background": 2, "horse": 1}
    assert found.notes == (
        "1 photos without a row in tags.csv left out, such as b",
        "1 photos are in the list on disk but tags.csv puts them in another split, "
        "such as c ('val', line 3); kept",
        "1 photos without any tag kept as background-only bags, such as c",
    )


def test_unknown_tag_in_the_tag_file(small: Tree) -> None:
    path = small.write("tags.csv", b"image,tags\na,cat\nb,hrose sofa\n")
    with pytest.raises(UserError, match=r"tags\.csv, line 3: unknown tag 'hrose'; did you mean 'horse'"):
        read_voc(small.root, "train", tags_file=path)
    found = read_voc(small.root, "train", tags_file=path, ignore_unknown=True)
    assert "1 unknown tags ignored, such as 'hrose'" in found.notes
    assert found.tag_counts()["sofa"] == 1


def test_reading_tags_never_opens_a_mask_or_a_photo(small: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def refuse(path: Path, **_: object) -> None:
        opened.append(str(path))
        raise AssertionError(f"{path} was opened")

    for module in (milseg.data.image, milseg.data.bags, milseg.data.sources.voc):
        monkeypatch.setattr(module, "open_mask", refuse)
    monkeypatch.setattr(milseg.data.image, "open_image", refuse)
    # Damaged masks would also be noticed by any other reader.
    for path in (small.root / "VOCdevkit/VOC2012/SegmentationClass").iterdir():
        path.write_bytes(b"")
        path.chmod(0)
    tags = small.write("tags.csv", b"image,tags\na,cat\nb,sofa\nc,\n")
    assert len(read_voc(small.root, "train", tags_file=tags)) == 3
    assert len(read_voc(small.root, "train", classes=ANIMALS)) == 2
    assert not opened
    with pytest.raises(AssertionError, match="was opened"):
        read_voc(small.root, "train", tags_from="masks")


def test_subset_of_classes(small: Tree) -> None:
    found = read_voc(small.root, "train", classes=["sheep", "cat"])
    assert found.classes == ("background", "sheep", "cat")
    assert [(bag.name, bag.tags) for bag in found.bags] == [
        ("a", (PRESENT, ABSENT, PRESENT)),
        ("c", (PRESENT, ABSENT, ABSENT)),
    ]
    assert found.notes == (
        "2 tags of classes that are not learned dropped",
        "1 photos with tags of other classes only left out, such as b",
        "1 photos without any tag kept as background-only bags, such as c",
    )
    assert found.mask_values is not None
    assert {i: int(v) for i, v in enumerate(found.mask_values) if v != VOID} == {0: 0, 17: 1, 8: 2}
    np.testing.assert_array_equal(load_mask(found.bags[0], found), [[0, 2, 255]])
    small.mask(small.root / "VOCdevkit/VOC2012", "a", np.array([[0, 21, 8]], dtype=np.uint8))
    with pytest.raises(UserError, match=r"a\.png: holds the value 21; expected class numbers 0 to 20"):
        load_mask(found.bags[0], found)


@pytest.mark.parametrize(
    ("split", "drop", "expected"),
    [
        ("train", None, ["a", "c"]),
        ("train", True, ["a"]),
        ("train", False, ["a", "b", "c"]),
        ("val", None, ["d"]),
        ("val", False, ["d"]),
    ],
)
def test_photos_of_other_classes_only(
    small: Tree, split: str, drop: bool | None, expected: list[str]
) -> None:
    found = read_voc(small.root, split, classes=["cat"], drop_untagged=drop)
    assert names(found) == expected


def test_a_set_with_no_photo_left(small: Tree) -> None:
    with pytest.raises(
        UserError, match=r"no photo is left in the set 'val'.*1 photos with tags of other classes"
    ):
        read_voc(small.root, "val", classes=["cat"], drop_untagged=True)


def test_a_test_set_has_unknown_tags_and_no_masks(tree: Tree) -> None:
    tree.voc(2012, {"test": ["a", "b"], "train": ["c"]})
    found = read_voc(tree.root, "test", classes=["cat", "dog"])
    assert found.tags_from == "none"
    assert found.bags[0].tags == (PRESENT, UNKNOWN, UNKNOWN)
    assert found.bags[0].mask is None
    assert found.notes == ("2 of 2 photos have no mask", "no tags: all unknown")
    with pytest.raises(UserError, match="1 of the 1 photos have no XML annotation, such as c"):
        read_voc(tree.root, "train")


def test_tags_of_two_kinds_are_not_mixed(small: Tree) -> None:
    (small.root / "VOCdevkit/VOC2012/Annotations/b.xml").unlink()
    with pytest.raises(
        UserError, match=r"1 of the 3 photos have no XML annotation, such as b.*or take all tags from masks"
    ):
        read_voc(small.root, "train")
    assert len(read_voc(small.root, "train", tags_from="masks")) == 3
    (small.root / "VOCdevkit/VOC2012/SegmentationClass/a.png").unlink()
    with pytest.raises(UserError, match="1 of the 3 photos have no mask, such as a"):
        read_voc(small.root, "train", tags_from="masks")


def test_user_mistakes(small: Tree) -> None:
    root = small.root
    for kwargs, words in (
        ({"split": "trian"}, "unknown set 'trian'; did you mean 'train'"),
        ({"split": "train", "classes": ["cat", "hrose"]}, "unknown VOC class 'hrose'; did you mean 'horse'"),
        ({"split": "train", "classes": ["cat", "cat"]}, "'cat' is given twice"),
        ({"split": "train", "classes": []}, "no class is given"),
        ({"split": "train", "year": 2011}, "holds VOC2012; .* needs the folder VOC2011"),
        ({"split": "paper-train"}, "holds VOC2012; .* needs the folder VOC2011"),
        ({"split": "train-aug", "year": 2011}, "defined for VOC 2012"),
        ({"split": "train-aug"}, "Semantic Boundaries Dataset"),
        ({"split": "test"}, r"no list test\.txt in ImageSets/Segmentation; there are: train, val"),
        ({"split": "train", "tags_from": "mask"}, "did you mean 'masks'"),
        ({"split": "train", "tags_file": root / "no.csv"}, r"no\.csv: no such tag file"),
        ({"split": "train", "tags_file": root / "x", "tags_from": "masks"}, "choose one"),
    ):
        with pytest.raises(UserError, match=words):
            read_voc(root, **kwargs)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no such folder; expected a folder that holds VOCdevkit"):
        read_voc(root / "none", "train")
    with pytest.raises(UserError, match="no PASCAL VOC in it"):
        read_voc(small.write("empty/x").parent, "train")
    (root / "VOCdevkit/VOC2012/JPEGImages/b.jpg").unlink()
    with pytest.raises(UserError, match=r"JPEGImages: no photo b\.jpg, and 1 of the 3 photos"):
        read_voc(root, "train")
    small.write("VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt", b"a\n../../a\n")
    with pytest.raises(UserError, match=r"train\.txt, line 2: .* is no photo id"):
        read_voc(root, "train")


BOMB = "".join(f'<!ENTITY {"abcdefgh"[i + 1]} "{("&" + "abcdefgh"[i] + ";") * 10}">' for i in range(6))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f'<!DOCTYPE x [<!ENTITY a "dog">{BOMB}]><annotation>&g;</annotation>', "document type"),
        (
            '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]><annotation>&a;</annotation>',
            "document type",
        ),
        ("<annotation><object><name>dog</name>", "line 1"),
        ("", "no element found"),
        ("\0\1", "not a PASCAL VOC annotation"),
        ("<?xml version='1.0' encoding='none'?><annotation/>", "not a PASCAL VOC annotation"),
        ("<note/>", "expected <annotation>"),
        ("<annotation><object><name>hrose</name></object></annotation>", "did you mean 'horse'"),
        ("<annotation><object/></annotation>", "object 1 has no name"),
    ],
)
def test_bad_annotations(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.xml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as error:
        read_annotation(path)
    assert str(error.value).startswith(str(path))


def test_annotation_takes_each_object_once_and_no_parts(tree: Tree) -> None:
    assert read_annotation(tree.xml(tree.root, "x", ["person", "dog", "person"])) == ("person", "dog")


def test_mask_classes(tree: Tree) -> None:
    assert mask_classes(tree.mask(tree.root, "x", np.array([[0, 20], [255, 1]], dtype=np.uint8))) == (
        "aeroplane",
        "tvmonitor",
    )
    assert mask_classes(tree.mat(tree.root, "x", np.array([[0, 15]], dtype=np.uint8))) == ("person",)
    with pytest.raises(UserError, match=r"y\.png: holds the value 21"):
        mask_classes(tree.mask(tree.root, "y", np.array([[21]], dtype=np.uint8)))


def test_eleven_thousand_photos_are_listed_quickly(tree: Tree) -> None:
    ids = [f"2007_{i:06d}" for i in range(11_000)]
    tree.voc(2012, {"train": ids})
    tags = tree.write("tags.csv", "\n".join(["image,tags", *(f"{i},dog" for i in ids)]).encode())
    start = time.process_time()
    assert len(read_voc(tree.root, "train", tags_file=tags)) == 11_000
    assert time.process_time() - start < 3


SHARED = Path(os.environ.get("MILSEG_SHARED", Path(__file__).parents[3] / ".." / "shared"))
PHOTOS = SHARED / "data" / "voc-animals"


@pytest.mark.shared
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photos are not there")
class TestRealPhotos:
    def read(self, split: str, *classes: str) -> milseg.data.bags.BagSet:
        return read_voc(PHOTOS, split, classes=classes or None, tags_file=PHOTOS / "tags.csv")

    def test_counts(self) -> None:
        train, val = self.read("train", *ANIMALS), self.read("val", *ANIMALS)
        assert (len(train), len(val)) == (3131, 223)
        require_disjoint(train, val)
        counts = zip(train.tag_counts().values(), val.tag_counts().values(), strict=True)
        assert dict(zip(train.classes, counts, strict=True)) == {
            "background": (3131, 223),
            "cat": (1001, 62),
            "cow": (263, 33),
            "dog": (1180, 58),
            "horse": (444, 41),
            "person": (674, 42),
            "sheep": (300, 33),
        }
        assert default_pair(PHOTOS) == ("train", "val")

    def test_tags_are_those_of_the_file(self) -> None:
        with (PHOTOS / "tags.csv").open(newline="") as file:
            expected = Counter(tag for row in csv.DictReader(file) for tag in row["tags"].split())
        found: Counter[str] = Counter()
        for split in ("train", "val"):
            bags = self.read(split)
            assert not bags.notes
            found.update(bags.tag_counts())
        del found["background"]
        assert +found == expected

    def test_masks_have_their_photos_size(self) -> None:
        val = self.read("val", *ANIMALS)
        batch = load_batch(val, range(6), with_masks=True)
        assert batch.masks is not None
        assert set(batch.masks.unique().tolist()) <= {*range(7), 255}
        assert batch.images.shape[0] == 6

    def test_tags_from_masks(self) -> None:
        val = read_voc(PHOTOS, "val")
        assert val.tags_from == "masks"
        assert val.tag_counts()["cat"] == 62
