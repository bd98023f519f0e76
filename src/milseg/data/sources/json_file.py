"""JSON files from anywhere: whatever is in them, the only error is one that says where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from milseg.data.sources.tag_file import read_text
from milseg.errors import UserError

Kind = TypeVar("Kind")
WORDS = {"dict": "an object", "list": "a list", "str": "a text"}


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text.

    Raises:
        UserError: not JSON, or nested too deeply, or a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not JSON ({error.msg}, line {error.lineno}, column {error.colno}); was the file cut "
            "short?"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: JSON that cannot be read ({error})") from None


def read_json(path: Path, kind: str) -> Any:
    """The value in a JSON file; errors as `read_text` and `parse_json`."""
    return parse_json(read_text(path, kind), str(path))


def typed(value: object, kind: type[Kind], where: str) -> Kind:
    """The value, when it is of that type.

    Raises:
        UserError: it is of another.
    """
    if not isinstance(value, kind):
        shown = (
            repr(value)[:60] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
        )
        raise UserError(f"{where}: is {shown}; expected {WORDS[kind.__name__]}")
    return value


def texts(value: object, where: str) -> tuple[str, ...]:
    """A list of texts, blank ends cut off, each once; empty texts skipped.

    Raises:
        UserError: something else.
    """
    items = [typed(item, str, f"{where}[{i}]").strip() for i, item in enumerate(typed(value, list, where))]
    return tuple(dict.fromkeys(item for item in items if item))
