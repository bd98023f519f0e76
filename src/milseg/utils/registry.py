"""Tables of things that are called by name: each row says where its function is, and loads it when it is used.

A table imports nothing heavy, so `milseg list` and `--help` read the very table that does the work.
"""

from __future__ import annotations

import importlib
from typing import Any


def load_object(where: str) -> Any:
    """Return the object at "package.module:name", importing the module.

    >>> load_object("milseg.errors:UserError").__name__
    'UserError'
    """
    module, _, path = where.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found
