from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milseg.data.sources.tag_file import (
    TagRow,
    known_tags,
    photo_id,
    read_ids,
    read_tag_file,
    split_tags,
    tags_for,
)
from milseg.errors import UserError


def write(tmp_path: Path, data: str | bytes) -> Path:
    path = tmp_path / "tags.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_rows_with_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path, 'image,tags,split\na.jpg,dog cat,train\n\nb.jpg,"horse, person",val\nc.jpg,,\n')
    assert read_tag_file(path) == (
        TagRow(image="a.jpg", tags=("dog", "cat"), split="train", line=2),
        TagRow(image="b.jpg", tags=("horse", "person"), split="val", line=4),
        TagRow(image="c.jpg", tags=(), split="", line=5),
    )


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_delimiter_order_mark_line_ends_and_quotes(
    tmp_path: Path, delimiter: str, start: str, end: str, quote: str
) -> None:
    rows = [["Tags", " image ", "note"], ["dog|cat", "a.jpg", "x"]]
    text = start + "".join(delimiter.join(f"{quote}{c}{quote}" for c in row) + end for row in rows)
    (row,) = read_tag_file(write(tmp_path, text))
    assert row == TagRow(image="a.jpg", tags=("dog", "cat"), split="", line=2)


def test_a_row_over_two_lines_counts_from_its_first(tmp_path: Path) -> None:
    path = write(tmp_path, 'image,tags\n"a.jpg","dog,\ncat"\nb.jpg,x\n')
    assert [(row.tags, row.line) for row in read_tag_file(path)] == [(("dog", "cat"), 2), (("x",), 4)]


@pytest.mark.parametrize(
    ("cell", "tags"),
    [
        ("", ()),
        ("  ", ()),
        ("dog", ("dog",)),
        ("dog  cat\tdog", ("dog", "cat")),
        ("potted plant, dog", ("potted plant", "dog")),
        ("potted plant;", ("potted plant",)),
        ("a|b;c,,d", ("a", "b", "c", "d")),
    ],
)
def test_split_tags(cell: str, tags: tuple[str, ...]) -> None:
    assert split_tags(cell) == tags


@pytest.mark.parametrize(
    ("image", "name"),
    [("a.jpg", "a"), ("d/e/a.PNG", "a"), ("a", "a"), ("x.12", "x.12"), ("a.b.jpeg", "a.b")],
)
def test_photo_id(image: str, name: str) -> None:
    assert photo_id(image) == name


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["empty"]),
        (b"\xef\xbb\xbf \n", ["empty"]),
        (b"image,tags\n", ["no rows"]),
        (b"photo,labels\na,b\n", ["line 1", "'photo', 'labels'", "image, tags"]),
        (b"a.jpg,dog\n", ["line 1", "header"]),
        (b"image,tags,image\na,b,c\n", ["line 1", "two columns", "'image'"]),
        (b"image,tags\na,b\nc,dog\xe9\n", ["line 3", "0xe9", "UTF-8"]),
        ("image,tags\na,b\n".encode("utf-16"), ["line 1", "UTF-8"]),
        (b"image,tags\na,d\0g\n", ["line 2", "NUL"]),
        (b"image,tags\na,dog,cat\n", ["line 2", "3 cells", "header has 2", "quotes"]),
        (b"image,tags,split\n\na,dog\n", ["line 3", "2 cells", "header has 3"]),
        (b"image,tags\na,b\n./a,c\n", ["line 3", "line 2", "a has a row already"]),
        (b"image,tags\n../a,b\n", ["line 2", "'../a'", "out of"]),
        (b"image,tags\nx/../../a,b\n", ["line 2", "out of"]),
        (b"image,tags\n..\\a,b\n", ["line 2", "out of"]),
        (b"image,tags\n/etc/a,b\n", ["line 2", "out of"]),
        (b"image,tags\nC:\\a.jpg,b\n", ["line 2", "out of"]),
        (b"image,tags\n,b\n", ["line 2", "names no file"]),
        (b"image,tags\nx/,b\n", ["line 2", "names no file"]),
        (b'image,tags\na,b\nc,"d\ne,f\n', ["line 3", "quote"]),
        (b"image,tags\na," + b"x" * 200_000 + b"\n", ["line 2", "limit"]),
    ],
)
def test_bad_files_name_file_and_line(tmp_path: Path, data: bytes, words: list[str]) -> None:
    path = write(tmp_path, data)
    with pytest.raises(UserError) as error:
        read_tag_file(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: no such tag file"):
        read_tag_file(tmp_path / "none.csv")
    with pytest.raises(UserError, match="a folder, not a tag file"):
        read_tag_file(tmp_path)


def test_unknown_tags(tmp_path: Path) -> None:
    path = write(tmp_path, "image,tags\na,dog hrose\n")
    (row,) = read_tag_file(path)
    with pytest.raises(UserError) as error:
        known_tags(path, row, ["dog", "horse"])
    assert str(error.value).startswith(f"{path}, line 2: unknown tag 'hrose'; did you mean 'horse'?")
    assert known_tags(path, row, ["dog", "horse"], ignore_unknown=True) == ("dog",)


def test_tags_for_matches_by_file_name_and_notes_what_is_odd(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "image,tags,split\na.jpg,dog,train\nsub/b.png,cat,val\nd,dog,train\ne,yeti,val\nf,cow yeti,\n",
    )
    tags, notes = tags_for(
        ["f", "a", "b", "c"], path, ["dog", "cat", "cow"], splits=("train",), ignore_unknown=True
    )
    assert list(tags.items()) == [("f", ("cow",)), ("a", ("dog",)), ("b", ("cat",))]
    assert notes == [
        "1 photos without a row in tags.csv left out, such as c",
        "1 photos are in the list on disk but tags.csv puts them in another split, "
        "such as b ('val', line 3); kept",
        "1 rows of tags.csv name this split but are not in the list on disk, such as d (line 4); left out",
        "1 unknown tags ignored, such as 'yeti'",
    ]


def test_tags_for_refuses_two_rows_for_a_photo_and_a_file_of_other_photos(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 3: sub/a\.jpg is the photo of line 2 again"):
        tags_for(["a"], write(tmp_path, "image,tags\na,x\nsub/a.jpg,x\n"), ["x"])
    with pytest.raises(UserError, match="no row for any photo of the set; its images are like 'a'"):
        tags_for(["b"], write(tmp_path, "image,tags\na,x\n"), ["x"])


def test_read_ids(tmp_path: Path) -> None:
    assert read_ids(write(tmp_path, "\ufeffb \r\n\na\nb\n")) == ("b", "a")
    for line in ("../x", "x/y", "..", "x\\y", "x\ty"):
        with pytest.raises(UserError, match="line 2"):
            read_ids(write(tmp_path, f"a\n{line}\n"))


def test_a_hundred_thousand_rows_in_seconds(tmp_path: Path) -> None:
    path = write(tmp_path, "image,tags\n" + "".join(f"{i}.jpg,dog cat\n" for i in range(100_000)))
    start = time.perf_counter()
    assert len(read_tag_file(path)) == 100_000
    assert time.perf_counter() - start < 10


PIECES = st.sampled_from(
    [
        b"image",
        b"tags",
        b"split",
        b",",
        b";",
        b"\t",
        b"\n",
        b"\r",
        b'"',
        b"a.jpg",
        b"..",
        b"/",
        b"\xff",
        b"\0",
        b" ",
    ]
)
BYTES = st.one_of(
    st.binary(max_size=60),
    st.lists(PIECES, max_size=25).map(b"".join),
    st.lists(PIECES, max_size=15).map(lambda parts: b"image,tags\n" + b"".join(parts)),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=BYTES)
def test_only_the_documented_error_escapes(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path, data)
    with contextlib.suppress(UserError):
        for row in read_tag_file(path):
            assert row.image
            assert ".." not in row.image.split("/")
            assert not row.image.startswith("/")
            assert photo_id(row.image)
    with contextlib.suppress(UserError):
        assert all("/" not in name for name in read_ids(path))
