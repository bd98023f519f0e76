"""Names with settings, as typed on the command line: `max`, `top-k(k=5)`, `crf(iterations=5, scale=2)`."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from milseg.errors import UserError, unknown_name

Value = bool | int | float

_CALL = re.compile(r"\s*([A-Za-z][A-Za-z0-9_-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)
_SETTING = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_-]*)\s*=\s*(.*?)\s*", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_WORDS = {"true": True, "false": False}
NO_LIMITS: Mapping[str, tuple[float, float]] = MappingProxyType({})


def parse_call(text: str) -> tuple[str, dict[str, Value]]:
    """A name and its settings.

    `name`, `name()` or `name(option=value, ...)`; values are whole numbers, decimals, true or false. Nothing
    is evaluated. An option may be typed with - for _.

    >>> parse_call("crf(iterations=5, spatial-weight=1.5)")
    ('crf', {'iterations': 5, 'spatial_weight': 1.5})
    >>> parse_call("max")
    ('max', {})

    Raises:
        UserError: anything else.
    """
    match = _CALL.fullmatch(text)
    if not match:
        raise UserError(f"{text!r}: expected a name, or name(option=value, ...)")
    name, inner = match.groups()
    settings: dict[str, Value] = {}
    for part in (inner or "").split(",") if (inner or "").strip() else ():
        setting = _SETTING.fullmatch(part)
        if not setting:
            raise UserError(f"{text!r}: found {part.strip()!r}; expected option=value, as in {name}(k=5)")
        option = setting[1].replace("-", "_")
        if option in settings:
            raise UserError(f"{text!r}: {option} is given twice")
        settings[option] = _value(text, option, setting[2])
    return name, settings


def _value(text: str, option: str, word: str) -> Value:
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    if not _NUMBER.fullmatch(word):
        raise UserError(f"{text!r}: {option} is {word!r}; expected a number, true or false")
    try:
        return int(word)
    except ValueError:
        number = float(word)
    if math.isinf(number):
        raise UserError(f"{text!r}: {option} is {word}, too large a number")
    return number


def split_calls(text: str) -> list[str]:
    """The parts of a list of names, split at commas outside parentheses; empty parts are dropped.

    >>> split_calls("max, top-k(k=5,decay=0.1),average")
    ['max', 'top-k(k=5,decay=0.1)', 'average']
    """
    return [part.strip() for part in re.split(r",(?![^()]*\))", text) if part.strip()]


def known_options(function: Callable[..., Any]) -> dict[str, Value]:
    """A function's options with their defaults: keyword-only parameters whose default is a number, true or false."""
    return {
        p.name: p.default
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY and isinstance(p.default, bool | int | float)
    }


def check_settings(
    kind: str,
    name: str,
    settings: Mapping[str, Value],
    function: Callable[..., Any],
    limits: Mapping[str, tuple[float, float]] = NO_LIMITS,
) -> dict[str, Value]:
    """Check settings against the keyword-only parameters of the function that takes them, and return them.

    A parameter whose default is a number, true or false is an option; its default's type is the option's, and
    a whole number does for a decimal.

    Args:
        limits: option -> its lowest and its highest value.

    >>> def top_k(scores, *, k=5, decay=0.0): ...
    >>> check_settings("rule", "top-k", {"k": 2, "decay": 1}, top_k)
    {'k': 2, 'decay': 1.0}

    Raises:
        UserError: an unknown option, a value of the wrong type, or one beyond its limits.
    """
    known = known_options(function)
    checked: dict[str, Value] = {}
    for option, value in settings.items():
        if not known:
            raise UserError(f"{kind} {name} has no options; found {option}")
        if option not in known:
            raise unknown_name(f"option of {kind} {name}", option, known)
        wanted = type(known[option])
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            words = {bool: "true or false", int: "a whole number", float: "a number"}
            raise UserError(f"{kind} {name}: {option} is {value}; expected {words[wanted]}")
        low, high = limits.get(option, (-math.inf, math.inf))
        if not low <= value <= high:
            expected = f"{low:g} to {high:g}" if high < math.inf else f"{low:g} or more"
            raise UserError(f"{kind} {name}: {option} is {value:g}; expected {expected}")
        checked[option] = value
    return checked
