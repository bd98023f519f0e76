from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from milseg.errors import UserError
from milseg.utils.call_syntax import check_settings, parse_call, split_calls


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max", ("max", {})),
        (" max ( ) ", ("max", {})),
        ("top-k(k=5)", ("top-k", {"k": 5})),
        ("crf(spatial-sigma=.5, iterations=+3)", ("crf", {"spatial_sigma": 0.5, "iterations": 3})),
        ("a(b=-1e-3,c=True,d=false)", ("a", {"b": -1e-3, "c": True, "d": False})),
        ("a(b=2.0)", ("a", {"b": 2.0})),
    ],
)
def test_it_reads(text: str, expected: tuple[str, dict[str, float]]) -> None:
    name, settings = parse_call(text)
    assert (name, settings) == expected
    assert {key: type(value) for key, value in settings.items()} == {
        key: type(value) for key, value in expected[1].items()
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a name"),
        ("crf(", "expected a name"),
        ("crf)", "expected a name"),
        ("5(k=1)", "expected a name"),
        ("crf(5)", "expected option=value"),
        ("crf(,k=1)", "expected option=value"),
        ("crf(**{})", "has no name"),
        ("crf(k=1j)", "expected a number"),
        ("crf(k=" + "(" * 500 + "1" + ")" * 400 + ")", "expected option=value"),
        ("crf(k=" + "1" * 5000 + ")", "expected a name"),
        ("crf(k=" + "9" * 900 + ")", "too large"),
        ("crf(k=1,k=2)", "k is given twice"),
        ("crf(k=)", "expected option=value"),
        ("crf(k=__import__('os'))", "expected a number"),
        ("crf(k=nan)", "expected a number"),
        ("crf(k=1e999)", "too large"),
        ("crf(k=1)(j=2)", "expected option=value"),
    ],
)
def test_mistakes_are_named(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_call(text)


@given(st.text(max_size=30))
def test_any_text_parses_or_is_a_user_error(text: str) -> None:
    with contextlib.suppress(UserError):
        parse_call(text)


def test_lists_split_outside_parentheses() -> None:
    assert split_calls("a,b(c=1,d=2),,e") == ["a", "b(c=1,d=2)", "e"]
    assert split_calls("") == []


def function(
    photo: int, *, count: int = 1, size: float = 2.0, plain: bool = False, what: object = None
) -> None:
    """Takes four options, one of them none that can be typed."""


def test_settings_are_held_against_the_function() -> None:
    settings = check_settings("thing", "x", {"count": 3, "size": 4, "plain": True}, function)
    assert settings == {"count": 3, "size": 4.0, "plain": True}
    assert type(settings["size"]) is float


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cuont": 3}, "unknown option of thing x 'cuont'; did you mean 'count'. Known: count, plain, size"),
        ({"photo": 3}, "unknown option"),
        ({"what": 3}, "unknown option"),
        ({"count": 3.5}, "count is 3.5; expected a whole number"),
        ({"count": True}, "expected a whole number"),
        ({"size": True}, "expected a number"),
        ({"plain": 1}, "expected true or false"),
        ({"count": 10**6}, "count is 1000000; expected 0 to 100"),
        ({"size": -1}, "size is -1; expected 0.5 to 8"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_settings("thing", "x", settings, function, limits={"count": (0, 100), "size": (0.5, 8)})


def test_a_function_without_options_says_so() -> None:
    with pytest.raises(UserError, match="thing x has no options; found k"):
        check_settings("thing", "x", {"k": 1}, lambda photo: photo)
