"""The one exception that means "the input is at fault, not the program"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake the user can mend.

    The message names the file or option, what was found, what was expected and the way out. The command line
    prints it to standard error and leaves with status 2; any other exception is a bug and keeps its
    traceback.
    """


class OutputError(UserError):
    """The output can take nothing more (a full disk, a folder that cannot be written): it ends a run.

    Any other `UserError` of one photo leaves that photo out, and the run goes on.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """An error for a name that is in no table, with the nearest known names.

    >>> str(unknown_name("backbone", "vgg61", ["vgg16", "resnet18"]))
    "unknown backbone 'vgg61'; did you mean 'vgg16'? Known: resnet18, vgg16"
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return UserError(f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}")
