"""Help of a command and of its options, from the dataclass's docstring."""

from __future__ import annotations

import inspect
import re

_ENTRY = re.compile(r"    (\w+(?:, \w+)*): (.*)")


def command_help(settings: type) -> str:
    """The docstring before its first section, paragraphs joined by a blank line; "" without a docstring."""
    return _parts(settings)[0]


def option_help(settings: type) -> dict[str, str]:
    """One line a field, from "Attributes:" of the class and of those it inherits from.

    >>> from milseg.config.export import ExportOptions
    >>> option_help(ExportOptions)["overwrite"]
    'write over an earlier file.'
    """
    found: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        names: list[str] = []
        for line in _parts(kind)[1].splitlines():
            entry = _ENTRY.fullmatch(line)
            if entry:
                names = entry[1].split(", ")
                found.update(dict.fromkeys(names, entry[2]))
            elif line.strip():
                found.update({name: f"{found[name]} {line.strip()}" for name in names})
    return found


def _parts(kind: type) -> tuple[str, str]:
    """The docstring before "Attributes:" and the lines below it, until the next section."""
    text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    about, _, rest = text.partition("Attributes:\n")
    return about.strip(), re.split(r"\n(?=\S)", rest, maxsplit=1)[0]
