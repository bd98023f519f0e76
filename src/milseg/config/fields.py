"""Values from files that others made, held against a dataclass: type, range and finiteness of every field.

The annotations say which type a field has. `LIMITS`, a table on the class, says what lies in range. `RENAMED`, another
one, maps names that files written earlier hold. Every message names the key, what it is, and what was expected.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from milseg.errors import UserError

LONGEST_TEXT = 10_000
MOST_ENTRIES = 10_000
SHOWN = 60  # characters of a value in a message
Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The range of a field.

    Attributes:
        least, most: of a number, or of each number in a list; both included.
        entries: the fewest and the most entries of a list.
        length: the fewest and the most characters of a text, or of each text in a list.
        infinite: whether infinity is in range too.
    """

    least: float = -math.inf
    most: float = math.inf
    entries: tuple[int, int] = (0, MOST_ENTRIES)
    length: tuple[int, int] = (0, LONGEST_TEXT)
    infinite: bool = False

    def numbers(self) -> str:
        """The range in words, for messages."""
        if self.least > -math.inf and self.most < math.inf:
            words = f" from {self.least:g} to {self.most:g}"
        elif self.least > -math.inf:
            words = f" of at least {self.least:g}"
        else:
            words = f" of at most {self.most:g}" if self.most < math.inf else ""
        return words + (", or infinity" if self.infinite else "")


ANY = Limits()


def check_fields(record: Any) -> None:
    """Check the fields of a dataclass against its annotations and its table `LIMITS`; for `__post_init__`.

    Raises:
        UserError: a field is of another type, out of range or not finite.
    """
    limits, hints = getattr(record, "LIMITS", {}), get_type_hints(type(record))
    for field in fields(record):
        checked(getattr(record, field.name), hints[field.name], limits.get(field.name, ANY), field.name)


def read_fields(kind: type[Record], values: Any, where: str, *, skip_unknown: bool = False) -> Record:
    """The dataclass of plain values, as YAML and JSON hold them.

    Args:
        where: what messages begin with: the file, and the key of the values where they are part of others.
        skip_unknown: pass over keys that the dataclass lacks, such as a later version's.

    Raises:
        UserError: a key is missing or unknown; a value is of another type, out of range or not finite.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where} is {shown(values)}; expected settings by name")
    limits, hints = getattr(kind, "LIMITS", {}), get_type_hints(kind)
    renamed = getattr(kind, "RENAMED", {})
    values = {renamed.get(key, key): value for key, value in values.items()}
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    unknown = [key for key in values if key not in known]
    if unknown and not skip_unknown:
        raise UserError(f"{where}: holds the unknown key {shown(unknown[0])}; known: {', '.join(known)}")
    found = {}
    for name, field in known.items():
        if name in values:
            found[name] = checked(
                values[name], hints[name], limits.get(name, ANY), f"{where}: {name}", lists=True
            )
        elif field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{where}: {name} is missing; expected {expected(hints[name], ANY)}")
    try:
        return kind(**found)
    except UserError as error:  # what holds between several fields
        raise UserError(f"{where}: {error}") from None


def checked(value: Any, hint: Any, limits: Limits, where: str, *, lists: bool = False) -> Any:
    """The value as the annotation has it: a whole number does for a decimal, and a list for a tuple.

    Args:
        hint: bool, int, float, str, a dataclass, a NamedTuple, `tuple[X, ...]`, `dict[str, X]`, or one of these or
            None.
        lists: whether tuples come as lists, as in files.

    Raises:
        UserError: it is of another type, out of range or not finite.
    """
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    plain = next(option for option in options if option is not type(None))
    if get_origin(plain) is tuple and isinstance(value, list if lists else tuple):
        fewest, most = limits.entries
        if fewest <= len(value) <= most:
            kind = get_args(plain)[0]
            return tuple(checked(v, kind, limits, f"{where}[{i}]", lists=lists) for i, v in enumerate(value))
    elif get_origin(plain) is dict and isinstance(value, Mapping):
        names, kind = get_args(plain)
        return {
            checked(name, names, ANY, f"{where}: a key"): checked(
                v, kind, limits, f"{where}: {name}", lists=lists
            )
            for name, v in value.items()
        }
    elif hasattr(plain, "_fields") and isinstance(value, list if lists else plain):
        names, kinds = plain._fields, get_type_hints(plain)
        if len(value) == len(names):
            inner = getattr(plain, "LIMITS", {})
            row = zip(names, value, strict=True)
            return plain(
                *(checked(v, kinds[n], inner.get(n, limits), f"{where}.{n}", lists=lists) for n, v in row)
            )
    elif is_dataclass(plain):
        if isinstance(value, plain):  # type: ignore[arg-type]
            return value  # checked when it was made
        if lists:
            return read_fields(plain, value, where)  # type: ignore[arg-type]
    elif plain in (bool, int, float, str) and _fits(value, plain, limits):
        return float(value) if plain is float else value
    raise UserError(f"{where} is {shown(value)}; expected {expected(hint, limits)}")


def _fits(value: Any, kind: Any, limits: Limits) -> bool:
    """Whether a value is of a plain type, and in range."""
    if kind is str:
        fewest, most = limits.length
        return isinstance(value, str) and fewest <= len(value) <= most and "\0" not in value
    if kind is bool:
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return limits.infinite and value == math.inf
    return limits.least <= value <= limits.most and (kind is int or abs(value) <= 1e300)


def expected(hint: Any, limits: Limits, *, one: bool = True) -> str:
    """A type and its range in words.

    >>> expected(int | None, Limits(least=1, most=8))
    'a whole number from 1 to 8, or none'
    """
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        return f"{expected(kinds[0], limits)}, or none"
    if get_origin(hint) is tuple:
        fewest, most = limits.entries
        return f"a list of {fewest} to {most:,} {expected(get_args(hint)[0], limits, one=False)}"
    if hasattr(hint, "_fields"):
        words, range_ = ("list", "lists"), f" of {len(hint._fields)} values ({', '.join(hint._fields)})"
    elif hint is bool:
        return "true or false" if one else "values true or false"
    elif hint is str:
        words, range_ = ("text", "texts"), f" of {limits.length[0]} to {limits.length[1]:,} characters"
    elif hint is int:
        words, range_ = ("whole number", "whole numbers"), limits.numbers()
    elif hint is float:
        words, range_ = ("number", "numbers"), limits.numbers()
    else:
        return "settings by name"
    return (f"a {words[0]}" if one else words[1]) + range_


def shown(value: Any) -> str:
    """A value in a message, short whatever it is.

    >>> shown(None), shown([1, 2]), shown(10**5000), len(shown("x" * 99))
    ('none', 'a list of 2', 'a whole number of more than 60 digits', 65)
    """
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, int) and abs(value) >= 10**SHOWN:
        return f"a whole number of more than {SHOWN} digits"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return repr(value) if len(value) <= SHOWN else f"{value[:SHOWN]!r}..."
    if isinstance(value, tuple) and len(value) <= 5 and all(isinstance(v, int | float) for v in value):
        return f"({', '.join(map(shown, value))})"
    if isinstance(value, list | tuple):
        return f"a list of {len(value):,}"
    return "settings by name" if isinstance(value, Mapping) else f"a {type(value).__name__}"
