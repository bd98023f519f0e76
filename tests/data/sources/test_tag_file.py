from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from milseg.data.sources.labelled import Labelled
from milseg.data.sources.names import is_plain_text
from milseg.data.sources.photo_files import PhotoFiles
from milseg.data.sources.table import read_tags_table
from milseg.data.sources.tag_file import read_ids
from milseg.data.sources.voc_tags import tags_for
from milseg.errors import UserError


def read_tag_file(path: Path) -> list[Labelled]:
    return list(read_tags_table(PhotoFiles(path.parent, []), path).rows)


def row_of(path: Path, image: str, line: int, *present: str, split: str = "") -> Labelled:
    return Labelled(image=image, where=f"{path}, line {line}", present=present, split=split)


def write(tmp_path: Path, data: str | bytes) -> Path:
    path = tmp_path / "tags.csv"
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_rows_with_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path, 'image,tags,split\na.jpg,"dog, cat",train\n\nb.jpg,"horse, person",val\nc.jpg,,\n')
    assert read_tag_file(path) == [
        row_of(path, "a.jpg", 2, "dog", "cat", split="train"),
        row_of(path, "b.jpg", 4, "horse", "person", split="val"),
        row_of(path, "c.jpg", 5),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_delimiter_order_mark_line_ends_and_quotes(
    tmp_path: Path, delimiter: str, start: str, end: str, quote: str
) -> None:
    rows = [["Tags", " image ", "note"], ["dog|cat", "a.jpg", "x"]]
    text = start + "".join(delimiter.join(f"{quote}{c}{quote}" for c in row) + end for row in rows)
    path = write(tmp_path, text)
    assert read_tag_file(path) == [row_of(path, "a.jpg", 2, "dog", "cat")]


def test_a_row_over_two_lines_counts_from_its_first(tmp_path: Path) -> None:
    path = write(tmp_path, 'image,tags\n"a.jpg","dog,\ncat"\nb.jpg,x\n')
    assert read_tag_file(path) == [row_of(path, "a.jpg", 2, "dog", "cat"), row_of(path, "b.jpg", 4, "x")]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["empty"]),
        (b"\xef\xbb\xbf \n", ["empty"]),
        (b"image,tags\n", ["no rows"]),
        (b"PK\x03\x04 workbook", ["Excel workbook", "save a workbook as CSV UTF-8"]),
        (b"\xd0\xcf\x11\xe0 old", ["old Excel workbook"]),
        (b"PAR1", ["Parquet"]),
        (b"\x1f\x8b\x08", ["gzip"]),
        (b"image,tags\na,#NAME?\n", ["line 2", "spreadsheet's error", "-dog"]),
        (b"image,tags\na,=B1&C1\n", ["line 2", "formula"]),
        (b"photo,labels\na,b\n", ["line 1", "'photo', 'labels'", "image, tags"]),
        (b"a.jpg,dog\n", ["line 1", "header"]),
        (b"image,tags,image\na,b,c\n", ["line 1", "two columns", "'image'"]),
        (b"image,tags\na,b\nc,dog\xe9\n", ["line 3", "0xe9", "UTF-8"]),
        ("image,tags\na,b\n".encode("utf-16-le"), ["line 1", "NUL"]),
        (b"\xff\xfei\0m\0", ["columns are 'im'"]),
        (b"\xff\xfei\0m\0\0", ["UTF-8"]),
        (b"image,tags\na,d\0g\n", ["line 2", "NUL"]),
        (b"image,tags\na,dog,cat\n", ["line 2", "3 cells", "header has 2", "quotes"]),
        (b"image,tags,split\n\na,dog\n", ["line 3", "2 cells", "header has 3"]),
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


def test_the_same_as_a_spreadsheet_saves_it(tmp_path: Path) -> None:
    """UTF-16, a line that names the separator, empty rows and columns at the end, texts as formulas."""
    text = 'sep=;\r\nimage;tags;;\r\n="0001.jpg";cat,dog;;\r\nb.jpg;="golden retriever";;\r\n;;;\r\n;;;\r\n'
    for data in (
        text.encode(),
        b"\xff\xfe" + text.encode("utf-16-le"),
        b"\xfe\xff" + text.encode("utf-16-be"),
    ):
        path = write(tmp_path, data)
        assert read_tag_file(path) == [
            row_of(path, "0001.jpg", 3, "cat", "dog"),
            row_of(path, "b.jpg", 4, "golden retriever"),
        ]


def in_set(*ids: str) -> dict[str, Path]:
    return {i: Path("/") / f"{i}.jpg" for i in ids}


def test_unknown_tags(tmp_path: Path) -> None:
    path = write(tmp_path, "image,tags\na,dog hrose\n")
    with pytest.raises(UserError) as error:
        tags_for(in_set("a"), path, ["dog", "horse"])
    assert str(error.value).startswith(f"{path}, line 2: unknown tag 'hrose'; did you mean 'horse'?")
    found, _ = tags_for(in_set("a"), path, ["dog", "horse"], ignore_unknown=True)
    assert found["a"].present == ("dog",)


def test_tags_for_matches_as_every_source_and_notes_what_is_odd(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "image,tags,split\na.jpg,dog,train\nsub/b.png,?cat,val\nd,dog,train\ne,yeti,val\nf,cow yeti -dog,\n",
    )
    rows, notes = tags_for(
        in_set("f", "a", "b", "c"), path, ["dog", "cat", "cow"], splits=("train",), ignore_unknown=True
    )
    assert [(i, row.present, row.absent, row.unknown) for i, row in rows.items()] == [
        ("f", ("cow",), ("dog",), ()),
        ("a", ("dog",), (), ()),
        ("b", (), (), ("cat",)),
    ]
    assert notes == [
        "1 names differ from their photo's in the extension, such as sub/b.png for b.jpg",
        "1 photos without a row in tags.csv left out, such as c",
        "1 photos are in the list on disk but tags.csv puts them in another split, "
        "such as b ('val', line 3); kept",
        "1 rows of tags.csv name this split but are not in the list on disk, such as d (line 4); left out",
        "1 unknown tags ignored, such as 'yeti'",
    ]


def test_tags_for_adds_up_rows_and_refuses_a_file_of_other_photos(tmp_path: Path) -> None:
    rows, notes = tags_for(in_set("a"), write(tmp_path, "image,tags\na,x\nsub/a.jpg,y\n"), ["x", "y"])
    assert rows["a"].present == ("x", "y")
    assert notes[0].startswith("1 photos have several rows, whose tags add up, such as a.jpg")
    with pytest.raises(UserError, match="no row for any photo of the set; its images are like 'a'"):
        tags_for(in_set("b"), write(tmp_path, "image,tags\na,x\n"), ["x"])


def test_read_ids(tmp_path: Path) -> None:
    assert read_ids(write(tmp_path, "\ufeffb \r\n\na\nb\n")) == ("b", "a")
    for line in ("../x", "x/y", "..", "x\\y", "x\ty"):
        with pytest.raises(UserError, match="line 2"):
            read_ids(write(tmp_path, f"a\n{line}\n"))


def test_a_hundred_thousand_rows_in_seconds(tmp_path: Path) -> None:
    path = write(tmp_path, "image,tags\n" + "".join(f"{i}.jpg,dog cat\n" for i in range(100_000)))
    start = time.process_time()
    assert len(read_tag_file(path)) == 100_000
    assert time.process_time() - start < 10


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
        assert all(row.image and is_plain_text(row.image) for row in read_tag_file(path))
    with contextlib.suppress(UserError):
        assert all("/" not in name for name in read_ids(path))
