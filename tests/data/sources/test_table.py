from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milseg.data.bags import BagSet
from milseg.data.sources.open import open_source
from milseg.errors import UserError

from .conftest import Tree


@pytest.fixture
def photos(tree: Tree) -> Tree:
    for name in ("a.jpg", "b.jpg", "sub/c.png", "d.jpg"):
        tree.write(f"p/{name}")
    return tree


def table(tree: Tree, text: str, **options: object) -> BagSet:
    path = tree.write("t/tags.csv", text.encode())
    return open_source(tree.root / "p", tags=path, **options)  # type: ignore[arg-type]


def tags(bags: BagSet) -> dict[str, tuple[int, ...]]:
    return {bag.name: bag.tags for bag in bags.bags}


def test_tags_are_complete(photos: Tree) -> None:
    bags = table(photos, "image,tags\na.jpg,dog cat\nsub/c.png,dog\nb,\n")
    assert bags.classes == ("background", "cat", "dog")
    assert tags(bags) == {"a": (1, 1, 1), "sub/c": (1, 0, 1), "b": (1, 0, 0)}
    assert bags.tags_from == "tag file"
    assert bags.notes == (
        "1 photos without a row left out, such as d.jpg",
        "1 photos without any tag kept as background-only bags, such as b.jpg",
    )


def test_single_tags_are_unknown_or_absent(photos: Tree) -> None:
    text = "image,tags\na.jpg,dog ?cat\nb.jpg,-dog cat\nsub/c.png,?\nd.jpg,\n"
    assert tags(table(photos, text)) == {
        "a": (1, -1, 1),
        "b": (1, 1, 0),
        "sub/c": (1, -1, -1),
        "d": (1, 0, 0),
    }
    partial = table(photos, text, tags_are="partial")
    assert tags(partial) == {"a": (1, -1, 1), "b": (1, 1, 0), "sub/c": (1, -1, -1), "d": (1, -1, -1)}
    assert partial.notes == (
        "2 photos of which nothing is known kept, all their tags unknown, such as sub/c.png",
    )


def test_one_column_a_tag(photos: Tree) -> None:
    """What is written stays known where tags are partial; a data frame's column of row numbers is no tag."""
    text = ",image,dog,split,cat,cow\n0,a.jpg,1,train,0,\n1,b.jpg,1.0,train,TRUE,nan\n2,d.jpg,0,val,0,0\n"
    for tags_are in ("complete", "partial"):
        bags = table(photos, text, tags_are=tags_are)
        assert bags.classes == ("background", "cat", "cow", "dog")
        assert tags(bags) == {"a": (1, 0, -1, 1), "b": (1, 1, -1, 1), "d": (1, 0, 0, 0)}
        assert "1 classes without a photo, which keep their place: cow" in bags.notes


def test_json_lines(photos: Tree) -> None:
    rows = [
        {"image": "a.jpg", "tags": ["potted plant", "dog"], "unknown": ["cat"], "split": "train", "more": 3},
        {"image": "b.jpg", "tags": "dog cat", "absent": ["potted plant"]},
        {"image": "c.png", "tags": None},
        {"image": "d.jpg", "tags": [" ?dog", "-cat", "\u2028"]},
    ]
    expected = {"a": (1, -1, 1, 1), "b": (1, 1, 1, 0), "sub/c": (1, -1, -1, -1), "d": (1, 0, -1, 0)}
    for text in ("\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows), json.dumps(rows)):
        bags = table(photos, text)
        assert bags.classes == ("background", "cat", "dog", "potted plant")
        assert tags(bags) == expected


def test_the_table_as_the_source_has_its_photos_beside_it(tree: Tree) -> None:
    for place in ("images/a.jpg", "JPEGImages/b.jpg", "x/c.jpg", "x/images/d.jpg"):
        tree.write(place)
    rows = "image,tags\na,k\nb.jpg,k\nx/c.jpg,k\nd,l\n"
    path = tree.write("mine.csv", rows.encode())
    assert list(tags(open_source(path))) == ["images/a", "JPEGImages/b", "x/c", "x/images/d"]
    path = tree.write("annotations/mine.csv", rows.encode())
    assert len(open_source(path)) == 4


def test_paths_from_above_the_photos_folder(photos: Tree) -> None:
    assert list(tags(table(photos, "image,tags\ndata/p/sub/c.png,x\np/a.jpg,y\n"))) == ["sub/c", "a"]
    # Another folder is taken for it only where no row speaks of the photo itself.
    bags = table(photos, "image,tags\nother/a.jpg,x\na.jpg,y\n")
    assert tags(bags) == {"a": (1, 1, 1)}


def test_a_name_that_two_photos_have(photos: Tree) -> None:
    photos.write("p/two/x.jpg")
    photos.write("p/one/x.png")
    with pytest.raises(UserError, match=r"line 2: 'x' may be one/x\.png or two/x\.jpg"):
        table(photos, "image,tags\nx,k\n")
    photos.write("p/a.png")
    with pytest.raises(UserError, match=r"a\.jpg and a\.png differ in their extension only"):
        table(photos, "image,tags\na.jpg,k\na.png,k\n")
    bags = table(photos, "image,tags\nd.jpg,k\nd,l\n")
    assert tags(bags) == {"d": (1, 1, 1)}
    assert any(
        note.startswith("1 photos have several rows, whose tags add up, such as d.jpg") for note in bags.notes
    )


def test_missing_photos_are_counted_and_none_is_an_error(photos: Tree) -> None:
    bags = table(photos, "image,tags\na.jpg,k\nq.jpg,k\nr.jpg,l\n")
    assert "2 rows without a photo on disk left out, such as q.jpg" in bags.notes[0]
    assert bags.classes == ("background", "k")
    with pytest.raises(UserError, match=r"none of its 2 photos is below .*first is 'q\.jpg'.*4 photos"):
        table(photos, "image,tags\nq.jpg,k\nr.jpg,l\n")


def test_splits(photos: Tree) -> None:
    text = "image,tags,split\na.jpg,k,train\nb.jpg,l,training\nsub/c.png,k,val\nd.jpg,m,\n"
    train = table(photos, text, split="Train")
    assert list(tags(train)) == ["a", "b"]
    assert train.classes == ("background", "k", "l", "m")
    assert list(tags(table(photos, text, split="valid"))) == ["sub/c"]
    with pytest.raises(UserError, match=r"split 'sub'; there is none \(1\), train \(2\), val \(1\)"):
        table(photos, text, split="sub")
    # Where nothing is written, a folder's name says it.
    assert list(tags(table(photos, "image,tags\na.jpg,k\nsub/c.png,l\n", split="sub"))) == ["sub/c"]


def test_classes_in_the_order_given(photos: Tree) -> None:
    text = "image,tags\na.jpg,dog cat\nb.jpg,cow\nd.jpg,cat cow\n"
    bags = table(photos, text, classes=["dog", "background", "cat", "cow"])
    assert bags.classes == ("background", "dog", "cat", "cow")
    assert tags(bags) == {"a": (1, 1, 1, 0), "b": (1, 0, 0, 1), "d": (1, 0, 1, 1)}
    with pytest.raises(UserError) as error:
        table(photos, text, classes=["dog", "cats"])
    assert f"{photos.root}/t/tags.csv, line 2: unknown tag 'cat'; did you mean 'cats'?" in str(error.value)
    bags = table(photos, text, classes=["dog", "cat"], ignore_unknown=True)
    assert tags(bags) == {"a": (1, 1, 1), "d": (1, 0, 1)}
    assert "2 unknown tags ignored: cow (2)" in bags.notes
    assert "1 photos with ignored tags only left out, such as b.jpg" in bags.notes
    with pytest.raises(UserError, match="'dog' is given twice"):
        table(photos, text, classes=["dog", "dog"])


def test_without_a_background(photos: Tree) -> None:
    text = "image,tags\na.jpg,dog grass\nb.jpg,cow grass sky\nd.jpg,\n"
    asked = table(photos, text, background=False)
    assert asked.classes == ("cow", "dog", "grass", "sky")
    assert tags(asked) == {"a": (0, 1, 1, 0), "b": (1, 0, 1, 1)}
    assert "1 photos without any tag left out, such as d.jpg" in asked.notes
    # Each photo has a tag of its surroundings, of which there are two: nothing asked, the same.
    guessed = table(photos, text.replace("d.jpg,\n", ""))
    assert tags(guessed) == tags(asked)
    assert any("no background class" in note for note in guessed.notes)
    # A photo without a tag shows something that no tag names.
    implied = table(photos, text)
    assert implied.classes[0] == "background"
    assert tags(implied)["d"] == (1, 0, 0, 0, 0)
    assert any("1 photos without any tag show something that no tag names" in note for note in implied.notes)
    assert table(photos, text, background=True).classes[0] == "background"
    assert table(photos, text.replace("dog grass", "dog")).classes[0] == "background"


def test_a_tag_called_background(photos: Tree) -> None:
    text = "image,dog,Background\na.jpg,1,0\nb.jpg,0,1\n"
    for background in (True, None):
        bags = table(photos, text, background=background)
        assert bags.classes == ("background", "dog")
        assert tags(bags) == {"a": (1, 1), "b": (1, 0)}
    assert tags(table(photos, text, background=False)) == {"a": (1,)}


def test_classes_of_a_table_with_more_columns(photos: Tree) -> None:
    text = "image,dog,cat\na.jpg,1,0\nb.jpg,0,1\nd.jpg,1,\n"
    with pytest.raises(UserError, match="line 2: unknown tag 'cat'"):
        table(photos, text, classes=["dog"])
    bags = table(photos, text, classes=["dog"], ignore_unknown=True)
    assert tags(bags) == {"a": (1, 1), "d": (1, 1)}
    assert "1 unknown tags ignored: cat (1)" in bags.notes


def test_untagged_photos_as_one_likes(photos: Tree) -> None:
    text = "image,tags\na.jpg,dog\nb.jpg,\n"
    assert tags(table(photos, text))["b"] == (1, 0)
    assert tags(table(photos, text, untagged="unknown"))["b"] == (1, -1)
    assert "b" not in tags(table(photos, text, untagged="leave out"))
    with pytest.raises(UserError, match="unknown value of untagged 'no'"):
        table(photos, text, untagged="no")


def test_names_that_are_nearly_the_same(photos: Tree) -> None:
    bags = table(photos, "image,tags\na.jpg,Dog traffic_light\nb.jpg,dog\nd.jpg,traffic-light\n")
    assert [note for note in bags.notes if "nearly" in note] == [
        "classes whose names are nearly the same: Dog, dog; one class, perhaps?",
        "classes whose names are nearly the same: traffic-light, traffic_light; one class, perhaps?",
    ]


def test_captions_in_place_of_tags(photos: Tree) -> None:
    words = " ".join(f"w{i}" for i in range(300))
    with pytest.raises(UserError, match=r"300 different tags; at most 254 can be told apart"):
        table(photos, f"image,tags\na.jpg,{words}\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,tags\n../z.jpg,x\n", "line 2.*out of the photos"),
        ("image,cat\n/etc/z.jpg,1\n", "line 2.*out of the photos"),
        ('{"image": "x/../../z.jpg", "tags": []}', "line 1.*out of"),
        ("image,cat\na.jpg,2\n", "line 2: '2' in the column 'cat'.*1 .present., 0 .absent. or blank"),
        ("image,cat,cat\na.jpg,1,1\n", "two columns named 'cat'"),
        ("image,split\na.jpg,x\n", "no column of tags"),
        ("image,,\na.jpg,1,2\n", "no column of tags"),
        ("photo,label\na.jpg,x\n", "line 1: the columns are 'photo', 'label'"),
        ("image,tags\na.jpg,dog -dog\n", "line 2: 'dog' is said to be two of"),
        ("image,tags\na.jpg,dog ?\n", "line 2: a lone '[?]'"),
        ('{"image": "a.jpg", "tags": [3]}', r"tags\[0\]: is 3; expected a text"),
        ('{"image": "a.jpg"}\n', "line 1: the keys are 'image'; expected image, tags"),
        ('{"image": "a.jpg", "tags": []}\n{"image": ', "line 2: not JSON"),
        ('{"image": "a.jpg", "tags": ["\\ud800"]}', "is no tag"),
        ('{"image": "\\udc00.jpg", "tags": []}', "names no file"),
        ('[{"image": "a.jpg", "tags": []}, 7]', "entry 2: is 7; expected an object"),
        ("image,tags\na.jpg,x\0\n", "NUL"),
        ("", "empty"),
    ],
)
def test_bad_tables(photos: Tree, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        table(photos, text)


def test_a_hundred_thousand_rows_in_seconds(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "7.jpg").touch()
    path = tmp_path / "tags.csv"
    path.write_text("image,tags\n" + "".join(f"{i}.jpg,dog cat\n" for i in range(100_000)))
    start = time.process_time()
    bags = open_source(tmp_path / "p", tags=path)
    assert time.process_time() - start < 20
    assert len(bags) == 1
    assert "99,999 rows without a photo on disk left out, such as 0.jpg" in bags.notes[0]


PIECES = [
    *("image", "tags", "split", "a.jpg", "b", "..", "/", "\\", "dog", "?", "-", "1", "0", "nan", " ", "\0"),
    *(",", ";", "\t", "|", "\n", "\r", '"', "{", "}", "[", "]", ":", "null", '"image":', '"tags":', "é"),
]
TEXTS = st.one_of(
    st.binary(max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=25).map(lambda parts: "".join(parts).encode()),
    st.lists(st.sampled_from(PIECES), max_size=15).map(lambda p: b"image,tags\n" + "".join(p).encode()),
    st.lists(st.sampled_from(PIECES), max_size=15).map(lambda p: b"image,dog\n" + "".join(p).encode()),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.sampled_from(["a.jpg", "dog", "?x", "../a"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["image", "tags", "split", "absent", "unknown"]), inner)
        ),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode()),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=TEXTS, partial=st.booleans())
def test_only_the_documented_error_escapes(tmp_path: Path, data: bytes, partial: bool) -> None:
    (tmp_path / "p").mkdir(exist_ok=True)
    (tmp_path / "p" / "a.jpg").touch()
    path = tmp_path / "tags.json"
    path.write_bytes(data)
    with contextlib.suppress(UserError):
        bags = open_source(
            tmp_path / "p", tags=path, tags_are="partial" if partial else "complete", kind="table"
        )
        assert [bag.photo for bag in bags.bags] == [tmp_path / "p" / "a.jpg"]


def test_crosses_and_other_flags(photos: Tree) -> None:
    bags = table(photos, "image;dog;cat\na.jpg;x;\nb.jpg;;✓\n")
    assert tags(bags) == {"a": (1, 0, 1), "b": (1, 1, 0)}
    assert "tags are marked by crosses, so blank cells were read as absent" in bags.notes
    bags = table(photos, "image;dog;cat\na.jpg;1,0;FALSCH\nb.jpg;=FALSE();WAHR\nd.jpg;-;N/A\n")
    assert tags(bags) == {"a": (1, 0, 1), "b": (1, 1, 0), "d": (1, -1, -1)}


def test_words_for_no_tag_are_told(photos: Tree) -> None:
    bags = table(photos, "image,tags\na.jpg,dog\nb.jpg,None\nd.jpg,n/a\n")
    assert tags(bags) == {"a": (1, 1), "b": (1, 0), "d": (1, 0)}
    assert "cells that say 'None' or 'n/a' were read as no tag" in bags.notes


def test_the_note_says_why_a_photo_is_left_out(photos: Tree) -> None:
    bags = table(photos, "image,tags\na.jpg,dog\nq.jpg,dog\nb-.jpg,cat\n")
    assert "2 rows without a photo on disk left out, such as b-.jpg" in bags.notes[0]
    assert bags.notes[0].endswith("there is b.jpg, which differs in blanks or signs")
