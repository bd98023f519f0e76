"""The command line: one dataclass of settings and one function a command.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ActionConfigFile, ArgumentParser

from milseg._version import __version__
from milseg.errors import UserError
from milseg.options import DigitsOptions, EvaluateOptions, VocOptions, VocResultsOptions

# command words -> (settings, "module:function" that takes them)
COMMANDS: dict[str, tuple[type[Any], str]] = {
    "reproduce digits": (DigitsOptions, "milseg.commands:digits"),
    "reproduce voc": (VocOptions, "milseg.commands:voc"),
    "evaluate": (EvaluateOptions, "milseg.commands:evaluate"),
    "voc-results": (VocResultsOptions, "milseg.commands:voc_results"),
}
GROUPS = {"reproduce": "The paper's Table 1 and Figure 1, on digits or on PASCAL VOC."}


class Parser(ArgumentParser):
    """jsonargparse with one short message for a mistake, and exit status 2."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        text = " ".join(str(message).split())
        print(f"{self.prog}: {text}\nTry: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def names(text: Any) -> tuple[str, ...]:
    """A list typed with commas, or given as a list in a configuration file.

    >>> names("cat,dog")
    ('cat', 'dog')
    """
    parts = text.split(",") if isinstance(text, str) else list(text)
    return tuple(str(part).strip() for part in parts if str(part).strip())


def add_options(parser: ArgumentParser, settings: type[Any]) -> None:
    """One option a field: dashes for underscores, the help from the docstring's Attributes."""
    about = {p.arg_name: p.description or "" for p in parse_docstring(settings.__doc__ or "").params}
    hints = get_type_hints(settings)
    for field in fields(settings):
        _add_option(parser, field, hints[field.name], " ".join(about[field.name].split()))


def _add_option(parser: ArgumentParser, field: Field[Any], hint: Any, about: str) -> None:
    flag = "--" + field.name.replace("_", "-")
    required = field.default is MISSING and field.default_factory is MISSING
    default = None if required else field.default
    if hint is bool:
        parser.add_argument(flag, action="store_true", default=default, help=about)
    elif "tuple" in str(hint):
        parser.add_argument(flag, type=names, default=default, metavar="A,B,...", help=about)
    else:
        metavar = (
            "PATH"
            if "Path" in str(hint)
            else "N"
            if "int" in str(hint)
            else "X"
            if "float" in str(hint)
            else "NAME"
        )
        parser.add_argument(flag, type=hint, default=default, required=required, metavar=metavar, help=about)


def make_parser() -> ArgumentParser:
    """The parser of all commands."""
    parser = Parser(prog="milseg", description="Pixel masks from photos with tags.", version=__version__)
    levels = {"": parser.add_subcommands(dest="command", required=True, metavar="COMMAND")}
    for group, about in GROUPS.items():
        holder = Parser(description=about)
        levels[""].add_subcommand(group, holder, help=about)
        levels[group] = holder.add_subcommands(dest="what", required=True, metavar="WHAT")
    for words, (settings, _) in COMMANDS.items():
        group, _, name = words.rpartition(" ")
        about = parse_docstring(settings.__doc__ or "").description or ""
        child = Parser(description=about)
        child.add_argument(
            "--config", action=ActionConfigFile, metavar="FILE", help="YAML file with any of these settings"
        )
        add_options(child, settings)
        levels[group].add_subcommand(name, child, help=about.splitlines()[0])
    return parser


def parse(arguments: Sequence[str]) -> tuple[str, Any]:
    """The command's words and its settings, as the dataclass."""
    parsed = make_parser().parse_args(list(arguments)).as_dict()
    words = parsed["command"]
    values = parsed[words]
    if words in GROUPS:
        words, values = f"{words} {values['what']}", values[values["what"]]
    settings = COMMANDS[words][0]
    known = {field.name for field in fields(settings)}
    return words, settings(**{key: value for key, value in values.items() if key in known})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for a user's mistake, 130 when interrupted."""
    signal.signal(signal.SIGTERM, _stop)
    # Rules given as module:function may lie in the folder one is in.
    sys.path.insert(0, os.getcwd())
    try:
        words, settings = parse(sys.argv[1:] if arguments is None else arguments)
        module, _, function = COMMANDS[words][1].partition(":")
        command: Callable[[Any], None] = getattr(importlib.import_module(module), function)
        command(settings)
    except UserError as error:
        print(f"milseg: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nmilseg: stopped; --resume goes on from the last checkpoint where the command has it",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does; nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
