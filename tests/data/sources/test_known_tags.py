"""Known tags of photos to be predicted, in every form that training reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from milseg.data.sources.known_tags import KnownTags, read_known_tags
from milseg.errors import UserError

CLASSES = ("background", "cat", "dog", "fox")
PHOTOS = ("a.jpg", "in/b.png", "in/c.JPG")


def read(tmp_path: Path, name: str, content: Any, **options: Any) -> KnownTags:
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_known_tags(tmp_path / name, CLASSES, options.pop("photos", PHOTOS), root=tmp_path, **options)


def coco(*pairs: tuple[int, int], categories: tuple[str, ...] = CLASSES[1:], **more: Any) -> dict[str, Any]:
    return {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(PHOTOS)],
        "categories": [{"id": 10 * i, "name": name} for i, name in enumerate(categories)],
        "annotations": [{"image_id": image, "category_id": 10 * category} for image, category in pairs],
        **more,
    }


def task(image: str, *labels: str, kind: str = "choices") -> dict[str, Any]:
    results = [{"type": kind, "value": {kind: [label]}} for label in labels]
    return {"data": {"image": image}, "annotations": [{"result": results}]}


# The same in every form: a shows a cat and a dog, b a fox, c nothing.
SAME: dict[str, tuple[str, Any]] = {
    "commas": ("t.csv", "image,tags\na.jpg,cat dog\nin/b.png,fox\nin/c.JPG,\n"),
    "order mark, semicolons": ("t.csv", "\ufeffimage;tags\na;cat,dog\nb;fox\nc;\n"),
    "tabs": ("t.tsv", "image\ttags\tsplit\nx/photos/in/b\tfox\tval\na\tcat|dog\tval\nc\t\tval\n"),
    "columns": ("t.csv", "image,fox,cat,dog\na,0,1,1\nb,1,0,0\nc,0,0,0\n"),
    "json lines": (
        "t.jsonl",
        "\n".join(
            json.dumps({"image": i, "tags": t}) for i, t in (("a", ["cat", "dog"]), ("b", "fox"), ("c", []))
        ),
    ),
    "json list": (
        "t.json",
        [{"image": "a", "tags": "cat,dog"}, {"image": "b", "tags": ["fox"]}, {"image": "c", "tags": ""}],
    ),
    "coco": ("t.json", coco((0, 0), (0, 1), (0, 1), (1, 2))),
    "label studio": (
        "t.json",
        [
            task("/data/upload/3/0123abcd-a.jpg", "cat", "dog"),
            task("/data/local-files/?d=in%2Fb.png", "fox", kind="brushlabels"),
            task("https://example.org/some/c.JPG?v=2"),
        ],
    ),
}


@pytest.mark.parametrize("form", SAME)
def test_every_form_says_the_same(tmp_path: Path, form: str) -> None:
    found = read(tmp_path, *SAME[form])
    assert found.allowed == {"a": ("cat", "dog"), "in/b": ("fox",), "in/c": ()}
    assert [note for note in found.notes if "differ from" not in note] == []


def test_what_is_unknown_stays_allowed(tmp_path: Path) -> None:
    found = read(tmp_path, "t.csv", "image,cat,dog,fox\na,1,,0\nb,,,0\nc,,,\n")
    assert found.allowed == {"a": ("cat", "dog"), "in/b": ("cat", "dog")}  # of c nothing is known
    found = read(tmp_path, "t.csv", "image,tags\na,cat ?dog\nb,?\nc,?fox\n")
    assert found.allowed == {"a": ("cat", "dog"), "in/c": ("fox",)}
    found = read(
        tmp_path, "t.jsonl", '{"image": "a", "tags": [], "unknown": ["fox"]}\n{"image": "b", "tags": null}'
    )
    assert found.allowed == {"a": ("fox",)}


def test_a_class_that_the_file_never_asks_for_stays_allowed(tmp_path: Path) -> None:
    found = read(tmp_path, "t.csv", "image,cat\na,1\nb,0\n")
    assert found.allowed == {"a": ("cat", "dog", "fox"), "in/b": ("dog", "fox")}
    assert found.notes == (f"{tmp_path / 't.csv'}: has nothing on dog, fox, which may be in any photo then",)
    found = read(tmp_path, "t.json", coco((0, 0), categories=("cat", "dog")))
    assert found.allowed == {"a": ("cat", "fox"), "in/b": ("fox",), "in/c": ("fox",)}
    assert "has nothing on fox" in found.notes[0]


def test_photos_that_nobody_has_looked_at(tmp_path: Path) -> None:
    data = coco()
    del data["annotations"]
    assert read(tmp_path, "t.json", data).allowed == {}
    tasks = [task("a.jpg", "cat"), {"data": {"image": "in/b.png"}, "annotations": []}]
    assert read(tmp_path, "t.json", tasks).allowed == {"a": ("cat",)}


def test_partial_tags_rule_out_only_what_is_said_to_be_absent(tmp_path: Path) -> None:
    text = "image,tags\na,cat;-dog\nb,fox\nc,-fox\n"
    assert read(tmp_path, "t.csv", text, tags_are="partial").allowed == {
        "a": ("cat", "fox"),
        "in/b": ("cat", "dog", "fox"),
        "in/c": ("cat", "dog"),
    }
    assert read(tmp_path, "t.csv", text).allowed == {"a": ("cat",), "in/b": ("fox",), "in/c": ()}
    with pytest.raises(UserError, match="unknown value of tags_are 'some'"):
        read(tmp_path, "t.csv", text, tags_are="some")


def test_the_background_is_no_tag(tmp_path: Path) -> None:
    found = read(tmp_path, "t.csv", "image,tags\na,background cat\nb,_background_\n")
    assert found.allowed == {"a": ("cat",), "in/b": ()}
    found = read_known_tags(tmp_path / "t.csv", CLASSES[1:], PHOTOS, root=tmp_path)
    assert found.allowed == {"a": ("cat",), "in/b": ()}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,tags\na,cta\n", r"t\.csv, line 2: unknown tag 'cta'; did you mean 'cat'"),
        ("image,tags\na,cat ?dgo\n", r"line 2: unknown tag 'dgo'; did you mean 'dog'"),
        ("image,cat,zebra\na,1,0\nb,0,1\n", r"line 3: unknown tag 'zebra'"),
    ],
)
def test_unknown_tags(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(tmp_path, "t.csv", text)
    assert "a" in read(tmp_path, "t.csv", text, ignore_unknown=True).allowed


def test_a_column_of_a_class_that_the_model_lacks_may_say_no(tmp_path: Path) -> None:
    assert read(tmp_path, "t.csv", "image,cat,zebra\na,1,0\nb,0,\n").allowed["a"] == ("cat", "dog", "fox")


@pytest.mark.parametrize(
    ("text", "photos", "words"),
    [
        ("image,tags\na.png,cat\na.gif,cat\n", PHOTOS, "no row for any of the photos"),
        ("image,tags\nc,cat\n", ("x/c.png", "y/c.png"), "line 2: 'c' may be x/c.png or y/c.png"),
        (
            "image,tags\nz,cat\n",
            PHOTOS,
            r"no row for any of the photos; its rows are like 'z', the photos like 'a\.jpg'",
        ),
        ("image,tags\na,\x00\n", PHOTOS, "line 2: holds a NUL byte"),
        ("image;breed\na;cat\n", PHOTOS, "expected 1 .present., 0 .absent. or blank"),
    ],
)
def test_rows_that_do_not_fit(tmp_path: Path, text: str, photos: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read(tmp_path, "t.csv", text, photos=photos)


def test_a_list_without_a_photo(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"t\.json: holds no photo with its tags; expected a row for each photo"
    ):
        read(tmp_path, "t.json", "[]")


def test_several_rows_of_a_photo_add_up(tmp_path: Path) -> None:
    found = read(tmp_path, "t.csv", "image,tags\na.jpg,dog\nsome/a.jpg,fox\n")
    assert found.allowed == {"a": ("dog", "fox")}
    assert found.notes[0].startswith("1 photos have several rows, whose tags add up, such as a.jpg")
    # The closest name wins where the rows cannot mean one file.
    found = read(tmp_path, "t.csv", "image,tags\na.png,dog\na.jpg,cat\n")
    assert found.allowed == {"a": ("cat",)}
    found = read(tmp_path, "t.csv", "image,tags\na.png,dog\n")
    assert found.allowed == {"a": ("dog",)}
    assert found.notes == ("1 names differ from their photo's in the extension, such as a.png for a.jpg",)


def test_names_are_looked_up_among_the_photos_only(tmp_path: Path) -> None:
    assert read(tmp_path, "t.csv", "image,tags\n../a.jpg,cat\n").allowed == {"a": ("cat",)}
    with pytest.raises(UserError, match=r"rows are like '\.\./z\.jpg'.*leads out of the photos' folder"):
        read(tmp_path, "t.csv", "image,tags\n../z.jpg,cat\n")


def test_files_of_no_known_form(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="JSON, but no kind that is known"):
        read(tmp_path, "t.json", '{"a": 1}')
    with pytest.raises(UserError, match="a folder, not a tag file"):
        read_known_tags(tmp_path, CLASSES, PHOTOS, root=tmp_path)
    (tmp_path / "t.csv").write_bytes("image,tags\na,caf\xe9\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"t\.csv, line 2: byte 0xe9 is not UTF-8"):
        read_known_tags(tmp_path / "t.csv", CLASSES, PHOTOS, root=tmp_path)
