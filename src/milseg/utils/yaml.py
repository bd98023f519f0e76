"""YAML that comes from elsewhere."""

from __future__ import annotations

from typing import Any

import yaml

# What PyYAML's constructors raise on a tag whose value does not fit, such as `!!bool x` or `!!timestamp x`.
_ODD = (KeyError, IndexError, AttributeError, TypeError, RecursionError)


def parse_yaml(text: str) -> Any:
    """The plain values of a YAML text; nothing in it is run.

    Raises:
        ValueError: not YAML, or values that do not fit their tags; says where, as far as PyYAML does.

    >>> parse_yaml("seed: 1")
    {'seed': 1}
    """
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except _ODD as error:
        raise ValueError(f"a value that does not fit its tag, {type(error).__name__}: {error}") from None
