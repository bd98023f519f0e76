"""What a cell of tags means, decided by its whole column."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milseg.data.sources.cells import NO_TAG, clean_tag, column_of, listed_tags, split_at
from milseg.errors import UserError


def read(*cells: str, known: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    column = column_of(cells, known)
    return [column.tags(cell) for cell in cells]


@pytest.mark.parametrize(
    ("cell", "tags"),
    [
        ("", ()),
        ("  ", ()),
        ("dog", ("dog",)),
        ("dog  cat\tdog", ("dog", "cat")),
        ("potted plant, dog", ("potted plant", "dog")),
        ("potted plant;", ("potted plant",)),
        ("a|b||c", ("a", "b", "c")),
        ("cat\ndog", ("cat", "dog")),
        ('"potted plant", dog', ("potted plant", "dog")),
        ("'potted plant', 'dog'", ("potted plant", "dog")),
        ("bird's nest, dog", ("bird's nest", "dog")),
        ('"Smith, John"; dog', ("Smith, John", "dog")),
    ],
)
def test_one_cell(cell: str, tags: tuple[str, ...]) -> None:
    assert read(cell) == [tags]


def test_one_separator_for_the_column() -> None:
    assert read("golden retriever", "golden retriever, traffic light", "cat") == [
        ("golden retriever",),
        ("golden retriever", "traffic light"),
        ("cat",),
    ]
    # What is not this column's separator belongs to the name ...
    assert read("a;b", "c;d", "x, y") == [("a", "b"), ("c", "d"), ("x, y",)]
    # ... unless all that it separates are tags by themselves.
    assert read("cat,dog", "dog,cow", "cat;cow") == [("cat", "dog"), ("dog", "cow"), ("cat", "cow")]


def test_blanks_separate_where_words_combine() -> None:
    assert read("cat dog", "dog", "dog cow") == [("cat", "dog"), ("dog",), ("dog", "cow")]
    assert read("sky tree", "tree road", "car") == [("sky", "tree"), ("tree", "road"), ("car",)]
    assert read("person dog") == [("person", "dog")]


def test_words_that_belong_together_are_one_tag() -> None:
    # ILSVRC and COCO know these names.
    assert read("golden retriever", "traffic light", "cat") == [
        ("golden retriever",),
        ("traffic light",),
        ("cat",),
    ]
    # Nobody knows these, but no cell combines their words otherwise.
    assert (
        read("rusty bolt", "rusty bolt", "bare wire", "bare wire")
        == [("rusty bolt",)] * 2 + [("bare wire",)] * 2
    )
    column = column_of(["golden retriever", "cat"])
    assert "blanks included, such as 'golden retriever'" in column.notes[0]


def test_known_classes_decide() -> None:
    assert read("k l", "m", known=("k l", "m")) == [("k l",), ("m",)]
    assert read("k l", "k l", "m n", "m n", known=("k", "l", "m", "n"))[0] == ("k", "l")


def test_a_reading_that_may_be_wrong_is_told() -> None:
    assert "as in 'bent pipe'" in column_of(["bent pipe", "leak"]).notes[0]
    assert "so 'cat dog' is one tag" in column_of(["cat, dog", "cat dog"]).notes[0]
    assert column_of(["cat dog", "dog"]).notes == ()


@pytest.mark.parametrize(
    "cell", sorted({*NO_TAG, "NaN", "None", "NULL", " N/A ", "[]", "()", "set()", "[None]", "{}"})
)
def test_cells_without_a_tag(cell: str) -> None:
    assert read(cell, "cat, dog")[0] == ()


def test_a_word_for_no_tag_is_a_tag_in_quotes() -> None:
    assert read("['none', 'cat']") == [("none", "cat")]


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("['cat', 'dog']", ["cat", "dog"]),
        ("['cat' 'dog']", ["cat", "dog"]),
        ("['cat'\n 'dog']", ["cat", "dog"]),
        ("array(['cat', 'dog'], dtype='<U3')", ["cat", "dog"]),
        ("array([], dtype=object)", []),
        ("[np.str_('cat'), np.str_('dog')]", ["cat", "dog"]),
        ("('cat',)", ["cat"]),
        ("{'cat', 'dog'}", ["cat", "dog"]),
        ("frozenset({'cat'})", ["cat"]),
        ("Index(['cat', 'dog'], dtype='object')", ["cat", "dog"]),
        ('["cat", "potted plant"]', ["cat", "potted plant"]),
        ('["caf\\u00e9"]', ["café"]),
        ("['it\\'s', \"a, b\"]", ["it's", "a, b"]),
        ("[nan, 'cat', None]", ["cat"]),
        ("[cat, potted plant]", ["cat", "potted plant"]),
        ("{cat,dog}", ["cat", "dog"]),
        ("[1, 2]", ["1", "2"]),
        ('{"choices": ["cat", "dog"]}', ["cat", "dog"]),
        ('{"taxonomy": [["animal", "cat"], ["dog"]]}', ["cat", "dog"]),
        ('[{"x": 1, "y": 2, "rectanglelabels": ["cat"], "original_width": 3}]', ["cat"]),
        ('[{"format": "rle", "rle": [0, 1], "brushlabels": ["dog"]}]', ["dog"]),
        ('[{"x": 1, "y": 2, "original_width": 3}]', []),
        ('{"cat": 1, "dog": 0}', ["cat", "-dog"]),
        ('{"cat": true, "dog": false}', ["cat", "-dog"]),
    ],
)
def test_lists_as_programs_print_them(text: str, tags: list[str]) -> None:
    assert listed_tags(text) == tags


@pytest.mark.parametrize("text", ["cat", "cat (small)", "(unknown) cat", "[cat] dog", "f(x", "it's"])
def test_texts_that_are_no_list(text: str) -> None:
    assert listed_tags(text) is None


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("=A1&B1", "is a formula; save the table with values"),
        ("#NAME?", "a spreadsheet's error in place of tags"),
        ('{"a": "b", "c": [1]}', "an object with 'a', 'c'; expected tags"),
        ("[" * 40 + "]" * 40, "more than 20 deep"),
    ],
)
def test_cells_that_mean_nothing(cell: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        column_of([cell]).tags(cell, "t.csv, line 2")


TAGS = st.lists(
    st.text("abcdefgh", min_size=1, max_size=5).filter(lambda tag: tag not in NO_TAG),
    min_size=1,
    max_size=4,
    unique=True,
)


@given(
    rows=st.lists(TAGS, min_size=1, max_size=6), separator=st.sampled_from([",", ";", "|", "\n", ", ", " ; "])
)
def test_what_is_joined_comes_apart(rows: list[list[str]], separator: str) -> None:
    """Tags of several words too; one cell has the separator for sure."""
    named = [["p q", "r s"], *([f"{tag} x" for tag in row] for row in rows)]
    cells = [separator.join(row) for row in named]
    assert read(*cells) == [tuple(row) for row in named]


@given(
    rows=st.lists(TAGS, min_size=1, max_size=5),
    dump=st.sampled_from([json.dumps, repr, lambda r: str(tuple(r))]),
)
def test_what_is_printed_is_read(rows: list[list[str]], dump: object) -> None:
    assert read(*(dump(row) for row in rows)) == [tuple(row) for row in rows]  # type: ignore[operator]


@settings(max_examples=300)
@given(cells=st.lists(st.text("ab ,;|\n'\"[](){}:-?=#\\é\u0301\x00", max_size=14), min_size=1, max_size=4))
def test_only_the_documented_error_escapes(cells: list[str]) -> None:
    column = column_of(cells)
    for cell in cells:
        with contextlib.suppress(UserError):
            assert all(tag == clean_tag(tag) != "" for tag in column.tags(cell))
        assert all(split_at(cell, ","))
