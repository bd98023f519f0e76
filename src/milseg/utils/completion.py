"""Completion of the command line by the Tab key, as a script of the shell."""

from __future__ import annotations

import argparse

from milseg.errors import UserError

SHELLS = ("bash", "zsh")


def completion_script(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script that the shell reads; commands, options, names of choices and files complete.

    Raises:
        UserError: shtab, of the extra `completion`, is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise UserError(
            '--print-completion: needs shtab, which is not installed; run pip install "milseg[completion]"'
        ) from None
    return str(shtab.complete(parser, shell=shell))
