"""Values as they are typed, or as a YAML file gives them, to the types of the settings."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from milseg.errors import UserError, unknown_name

# As YAML says it; a number that is left to the recipe is typed so too.
NOTHING = ("none", "null")
_CALL = re.compile(r"\s*([A-Za-z][A-Za-z0-9_-]*)\s*(\(.*\))?\s*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Names that an option takes.

    Attributes:
        kind: the word for such a name in messages.
        table: those that are known, as keys of the table that does the work.
        more: further names that the option takes.
        meant: other words for them, which are not taken but suggest a name.
        calls: options may follow in parentheses, more names after a plus, and package.module:function is one too.
    """

    kind: str
    table: Collection[str]
    more: tuple[str, ...] = ()
    meant: Mapping[str, str] = field(default_factory=dict)
    calls: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All names, looked up now, so that a row added to the table counts."""
        return (*self.more, *self.table)

    def check(self, text: str) -> None:
        """Raise a UserError that suggests the nearest name, unless `text` is known.

        >>> Choice(kind="rule", table=("max", "top-k"), calls=True).check("top-k(k=3)+max")
        """
        for part in re.split(r"\+(?![^()]*\))", text) if self.calls else [text]:
            call = _CALL.fullmatch(part) if self.calls else None
            name = call[1] if call else part
            # Other odd texts are for the reader of calls, which says what is wrong with them.
            if name not in self.names and (call or not self.calls):
                if name.lower() in self.meant:
                    raise UserError(
                        f"unknown {self.kind} {name!r}; did you mean {self.meant[name.lower()]!r}?"
                    )
                raise unknown_name(self.kind, name, self.names)


def read_text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UserError(f"{value!r} is not a text; put it in quotes")
    if not str(value).strip():
        raise UserError("empty; expected a value, or leave the option out")
    return os.path.expanduser(str(value))


def read_path(value: Any) -> Path:
    text = read_text(value)
    if "\0" in text:
        raise UserError("holds a NUL character, which no path does")
    return Path(text)


def read_list(value: Any) -> tuple[str, ...]:
    """Names with commas, or a list; a comma in parentheses separates nothing.

    >>> read_list("max, top-k(k=5,decay=0.1)")
    ('max', 'top-k(k=5,decay=0.1)')
    """
    parts = re.split(r",(?![^()]*\))", value) if isinstance(value, str) else _as_list(value)
    names = tuple(read_text(part).strip() for part in parts if str(part).strip())
    if not names:
        raise UserError("expected one or more, with commas")
    return names


def read_paths(value: Any) -> tuple[str, ...]:
    """Paths typed one after the other; a comma is part of a name."""
    paths = tuple(read_text(part) for part in _as_list(value))
    if not paths:
        raise UserError("expected one or more paths")
    return paths


def read_int(value: Any) -> int:
    try:
        return int(str(value))
    except ValueError:
        raise UserError(f"{value!r} is not a whole number") from None


def read_float(value: Any) -> float:
    """
    >>> read_float("1e-3")
    0.001
    """
    try:
        number = float(str(value))
    except ValueError:
        hint = "; decimals have a point" if re.fullmatch(r"-?\d+,\d+", str(value)) else ""
        raise UserError(f"{value!r} is not a number{hint}") from None
    if not math.isfinite(number):
        raise UserError(f"{value!r} is not a finite number")
    return number


def read_ints(value: Any) -> tuple[int, ...]:
    return tuple(map(read_int, read_list(value)))


def read_floats(value: Any) -> tuple[float, ...]:
    return tuple(map(read_float, read_list(value)))


def read_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{value!r}; expected true or false")
    return value


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, dict):
        raise UserError("expected a list, such as [a, b]; found a table")
    return list(value) if isinstance(value, list | tuple) else [value]


# The hint without "| None" -> (how it is read, what stands for it in the help).
READERS: dict[Any, tuple[Callable[[Any], Any], str]] = {
    bool: (read_bool, ""),
    int: (read_int, "N"),
    float: (read_float, "X"),
    str: (read_text, "NAME"),
    Path: (read_path, "PATH"),
    tuple[str, ...]: (read_list, "A,B,..."),
    tuple[int, ...]: (read_ints, "N,M,..."),
    tuple[float, ...]: (read_floats, "X,Y,..."),
}
LISTS = (tuple[str, ...], tuple[int, ...], tuple[float, ...])


def plain_hint(hint: Any) -> Any:
    """The type without `| None`."""
    kinds = [kind for kind in getattr(hint, "__args__", ()) if kind is not type(None)]
    return hint if hint in READERS else kinds[0]


def read_value(hint: Any, value: Any, *, many: bool = False, choice: Choice | None = None) -> Any:
    """The value of a field with this type hint.

    Args:
        hint: a key of `READERS`, or that with `| None`.
        many: the field takes several paths, typed one after the other.
        choice: the names it takes.

    Raises:
        UserError: a value that is none of the type, or a name that is not known. Names no option.
    """
    plain = plain_hint(hint)
    reader = read_paths if many else READERS[plain][0]
    if hint != plain and plain in (int, float) and str(value).lower() in NOTHING:
        return None
    found = reader(value)
    if choice is not None:
        for name in found if isinstance(found, tuple) else (found,):
            choice.check(name)
    return found


def with_default(choice: Choice | None, default: Any) -> Choice | None:
    """The choice with the field's own default among the names, such as "auto"."""
    if choice is None or not isinstance(default, str) or default in choice.names:
        return choice
    return replace(choice, more=(default, *choice.more))


Choices = Mapping[str, Choice]
