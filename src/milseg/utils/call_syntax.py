"""Names with settings, as typed on the command line: `max`, `top-k(k=5)`, `crf(iterations=5, scale=2)`."""

from __future__ import annotations

import ast
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from milseg.errors import UserError, unknown_name

Value = bool | int | float

NO_LIMITS: Mapping[str, tuple[float, float]] = MappingProxyType({})
LONGEST = 1000  # characters of a name with its settings
_CALL = re.compile(r"\s*([A-Za-z][A-Za-z0-9_-]*)\s*(?:\((.*)\))?\s*", re.DOTALL)
_OPTION = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(?=\s*=)")
_WORDS = {"true": True, "false": False}


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
    match = _CALL.fullmatch(text[: LONGEST + 1])
    if not match or len(text) > LONGEST:
        raise UserError(f"{text[:60]!r}: expected a name, or name(option=value, ...)")
    name, inner = match[1], _OPTION.sub(lambda option: option[0].replace("-", "_"), match[2] or "")
    try:
        call = ast.parse(f"call({inner})", mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        call = None
    if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
        raise UserError(f"{text!r}: expected option=value inside the parentheses, as in {name}(k=5)")
    settings: dict[str, Value] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in settings:
            raise UserError(f"{text!r}: {keyword.arg or 'an option'} is given twice, or has no name")
        settings[keyword.arg] = _value(text, keyword.arg, keyword.value)
    return name, settings


def _value(text: str, option: str, node: ast.expr) -> Value:
    if isinstance(node, ast.Name) and node.id.lower() in _WORDS:
        return _WORDS[node.id.lower()]
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, bool | int | float):
        raise UserError(f"{text!r}: {option} is {ast.unparse(node)}; expected a number, true or false")
    if abs(value) > sys.float_info.max:
        raise UserError(f"{text!r}: {option} is too large a number")
    return value


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
        whole_for_decimal = wanted is float and type(value) is int
        if type(value) is not wanted and not whole_for_decimal:
            words = {bool: "true or false", int: "a whole number", float: "a number"}
            raise UserError(f"{kind} {name}: {option} is {value}; expected {words[wanted]}")
        low, high = limits.get(option, (-math.inf, math.inf))
        if not low <= value <= high:
            expected = f"{low:g} to {high:g}" if high < math.inf else f"{low:g} or more"
            raise UserError(f"{kind} {name}: {option} is {value}; expected {expected}")
        checked[option] = float(value) if whole_for_decimal else value
    return checked
