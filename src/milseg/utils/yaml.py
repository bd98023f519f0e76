"""YAML that comes from elsewhere."""

from __future__ import annotations

from typing import Any

import yaml

# What PyYAML's constructors raise on a tag whose value does not fit, such as `!!bool x` or `!!timestamp x`.
_ODD = (KeyError, IndexError, AttributeError, TypeError, RecursionError, ArithmeticError)
DEEPEST = 50
MOST_VALUES = 200_000


class _Loader(yaml.SafeLoader):
    """Plain values, nested at most `DEEPEST` deep; aliases count as many values as they stand for."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0
        self._sizes: dict[str, int] = {}  # values below each anchor that is whole

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        anchor: str | None = getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent):
            if anchor in self.anchors and anchor not in self._sizes:
                raise yaml.YAMLError(f"*{anchor} stands inside of itself")
            self._values += self._sizes.get(str(anchor), 0)
        self._depth, self._values, before = self._depth + 1, self._values + 1, self._values
        if self._depth > DEEPEST:
            raise yaml.YAMLError(f"nested more than {DEEPEST} deep")
        if self._values > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES:,} values")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            self._sizes[anchor] = self._values - before
        return node


def parse_yaml(text: str) -> Any:
    """The plain values of a YAML text; nothing in it is run.

    Raises:
        ValueError: not YAML, nested too deeply, too many values, or values that do not fit their tags; says where, as
            far as PyYAML does.

    >>> parse_yaml("seed: 1")
    {'seed': 1}
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except _ODD as error:
        raise ValueError(f"a value that does not fit its tag, {type(error).__name__}: {error}") from None
