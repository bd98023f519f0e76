"""Which photo a written name means."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from milseg.data.sources.names import Ambiguous, Match, NameIndex
from milseg.data.sources.open import open_source
from milseg.errors import UserError

from .conftest import Tree

NAMES = (
    *(
        "plain.png",
        "x y.png",
        "a+b&c.png",
        "q#1.png",
        "100%25.png",
        "100%.png",
        "my photo (1).png",
        "c d.png",
    ),
    *("90fbb0c7-up.png", "sub/deep/b.jpg", "Upper.JPG", "images/in.png", "site.12.png", "e.tar.png"),
)
INDEX = NameIndex(NAMES, (("data", "photos"),))


def found(written: str, index: NameIndex = INDEX) -> str | None:
    match = index.find(written)
    return match.name if isinstance(match, Match) else None


@pytest.mark.parametrize(
    ("written", "name"),
    [
        *((name, name) for name in NAMES),
        *((f"/data/local-files/?d={quote(name, safe='')}", name) for name in NAMES),
        *((f"/data/upload/7/{quote(name)}", name) for name in NAMES),
        *((f"https://example.org/x/{quote(name)}?size=3#top", name) for name in NAMES),
        *((f"/data/photos/{name}", name) for name in NAMES),
        *(("D:\\data\\photos\\" + name.replace("/", "\\"), name) for name in NAMES),
        ("/data/local-files/?d=a+b&c.png", "a+b&c.png"),
        ("/data/local-files/?d=x+y.png", "x y.png"),
        ("data/local-files/?d=images/in.png", "images/in.png"),
        ("..\\..\\media\\upload\\4\\90fbb0c7-up.png", "90fbb0c7-up.png"),
        ("up.png", "90fbb0c7-up.png"),
        ("0a1b2c3d-plain.png", "plain.png"),
        ("plain_xK3f9aQ.png", "plain.png"),
        ("x%20y.png", "x y.png"),
        ("plain.png?size=3", "plain.png"),
        ("file:///home/me/plain.png", "plain.png"),
        ("s3://bucket/deep/b.jpg", "sub/deep/b.jpg"),
        ("deep/b", "sub/deep/b.jpg"),
        ("upper.jpg", "Upper.JPG"),
        ("UPPER", "Upper.JPG"),
        ("in.png", "images/in.png"),
        ("plain.jpg", "plain.png"),
        ("site.12", "site.12.png"),
        ("../../etc/plain.png", "plain.png"),
        ("etc", None),
        ("/etc/passwd", None),
        ("plai.png", None),
    ],
)
def test_ways_to_write_a_name(written: str, name: str | None) -> None:
    assert found(written) == name


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    "name", ["Müller.png", "São Paulo.png", "데이터.png", "が行.png", "Übung 1.png", "café/a.png"]
)
def test_unicode_forms(name: str, form: str) -> None:
    index = NameIndex([unicodedata.normalize(form, name)])
    for written in ("NFC", "NFD"):
        assert found(unicodedata.normalize(written, name), index) == index.names[0]
        assert found("/data/upload/1/" + quote(unicodedata.normalize(written, name)), index) == index.names[0]


def test_two_photos_of_one_name() -> None:
    index = NameIndex(["one/x.png", "two/x.jpg", "A.png", "a.png", "u\u0308.png", "\u00fc.png"])
    assert isinstance(index.find("x"), Ambiguous)
    assert found("two/x", index) == "two/x.jpg"
    assert found("a.png", index) == "a.png"
    assert found("u\u0308.png", index) == "u\u0308.png"
    assert isinstance(NameIndex(["A.png", "AA.png", "aA.png"]).find("aa.png"), Ambiguous)


def test_a_folder_that_is_there_is_meant() -> None:
    """The photo dog/1.png is not there; cat/1.png, of the same file name, is another."""
    index = NameIndex(["cat/1.png", "dog/2.png"])
    assert found("dog/1.png", index) is None
    assert index.why_not("dog/1.png") == "there is cat/1.png, which differs in the folder"
    assert found("elsewhere/1.png", index) == "cat/1.png"


@pytest.mark.parametrize(
    ("written", "names", "why"),
    [
        (
            "Muller.png",
            ["Müller.png"],
            "there is Müller.png, which differs in accents or other marks on letters",
        ),
        ("7.jpg", ["0007.jpg"], "there is 0007.jpg, which differs in leading zeros (spreadsheets drop them)"),
        ("img 1.jpg", ["img_1.jpg"], "there is img_1.jpg, which differs in blanks or signs"),
        (
            "aa.png",
            ["AA.png", "aA.png"],
            "it may be AA.png or aA.png, which it matches but for upper and lower case",
        ),
        ("../z.png", ["a.png"], "it leads out of the photos' folder, in which no photo has that name"),
        ("z.png", ["a.png"], ""),
    ],
)
def test_why_a_photo_is_left_out(written: str, names: list[str], why: str) -> None:
    index = NameIndex(names)
    assert found(written, index) is None
    assert index.why_not(written) == why


LETTERS = (
    st.text("abAB1é\u0301ü %+&#()-_'", min_size=1, max_size=8)
    .map(str.strip)
    .filter(lambda text: text not in ("", ".", ".."))
)


@settings(max_examples=300)
@given(st.lists(LETTERS.map(lambda text: f"{text}.png"), min_size=1, max_size=4, unique=True), st.data())
def test_a_name_finds_itself_however_it_is_encoded(names: list[str], data: st.DataObject) -> None:
    index = NameIndex(names, (("home", "me", "p"),))
    name = data.draw(st.sampled_from(names))
    assert found(name, index) == name
    assert found(f"/home/me/p/{name}", index) == name
    assume(
        sum(unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", name) for other in names) == 1
    )
    for written in (
        f"/data/local-files/?d={quote(name, safe='')}",
        f"/data/local-files/?d=deep%2F{quote(name, safe='')}",
        f"http://host:8080/data/upload/3/{quote(name, safe='')}",
        unicodedata.normalize("NFC", name),
        unicodedata.normalize("NFD", name),
    ):
        assert found(written, index) == name


@settings(max_examples=300)
@given(written=st.text("ab./\\%2eEFf:?d=&#-\x00\udc00", max_size=20), more=st.text(max_size=10))
def test_nothing_but_a_listed_name_is_ever_found(written: str, more: str) -> None:
    index = NameIndex(["a.png", "b/a.png", "b/b.jpg"], (("data",),))
    for text in (written, written + more, f"/data/local-files/?d={written}"):
        match = index.find(text)
        assert match is None or isinstance(match, Ambiguous) or match.name in index.names
        assert isinstance(index.why_not(text), str)


def test_rows_of_one_photo_add_up_and_rows_of_two_do_not(tree: Tree) -> None:
    for name in ("p/a.jpg", "p/b.jpg"):
        tree.write(name)
    path = tree.write("t.csv", b"image,tags\na.jpg,dog\nA.JPG,cat\nb,cow;\n")
    bags = open_source(tree.root / "p", tags=path)
    assert {bag.name: bag.tags for bag in bags.bags} == {"a": (1, 1, 0, 1), "b": (1, 0, 1, 0)}
    assert (
        f"1 photos have several rows, whose tags add up, such as a.jpg ({path}, line 2; {path}, line 3)"
        in bags.notes
    )
    path = tree.write("t.csv", b"image,tags\nx/a.jpg,dog\ny/a.jpg,cat\n")
    with pytest.raises(UserError, match=r"line 3: 'y/a\.jpg' may be the photo a\.jpg, and so may 'x/a\.jpg'"):
        open_source(tree.root / "p", tags=path)
    path = tree.write("t.csv", b"image,tags,split\na.jpg,dog,train\na.jpg,cat,val\n")
    with pytest.raises(UserError, match=r"line 3: a\.jpg is in the split 'val' here and in 'train' before"):
        open_source(tree.root / "p", tags=path)


def test_folders_in_two_unicode_forms_are_one_class(tree: Tree) -> None:
    for i, form in enumerate(("NFC", "NFD")):
        tree.write(f"{unicodedata.normalize(form, 'café')}/{i}.png")
    tree.write("dog/3.png")
    bags = open_source(Path(tree.root))
    assert bags.classes == ("background", "café", "dog")
    assert bags.tag_counts()["café"] == 2
