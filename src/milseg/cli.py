"""The command line: one dataclass of settings and one function a command.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
from argparse import Action
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_type_hints

from docstring_parser import parse as parse_docstring
from jsonargparse import ActionConfigFile, ArgumentParser, DefaultHelpFormatter  # type: ignore[attr-defined]

from milseg._version import __version__
from milseg.config import (
    CheckOptions,
    CompareOptions,
    DigitsOptions,
    EvaluateOptions,
    ExportOptions,
    ListOptions,
    MergeOptions,
    PredictOptions,
    ServeOptions,
    ShardOptions,
    TrainOptions,
    VocOptions,
    VocResultsOptions,
)
from milseg.distributed.launch import is_first, launched
from milseg.distributed.preemption import STOPPED_STATUS, Stopped
from milseg.errors import UserError, unknown_name
from milseg.utils.files import no_empty_folder
from milseg.utils.yaml import parse_yaml

# command words -> (settings, "module:function" that takes them)
COMMANDS: dict[str, tuple[type[Any], str]] = {
    "check": (CheckOptions, "milseg.commands.check:check"),
    "shard": (ShardOptions, "milseg.commands.shard:shard"),
    "train": (TrainOptions, "milseg.commands.train:train"),
    "predict": (PredictOptions, "milseg.commands.predict:predict"),
    "merge": (MergeOptions, "milseg.commands.merge:merge_shards"),
    "serve": (ServeOptions, "milseg.serve.run:serve"),
    "evaluate": (EvaluateOptions, "milseg.commands.evaluate:evaluate"),
    "export": (ExportOptions, "milseg.commands.export:export"),
    "compare": (CompareOptions, "milseg.commands.compare:compare"),
    "list": (ListOptions, "milseg.commands.catalog:show"),
    "reproduce digits": (DigitsOptions, "milseg.commands.reproduce:digits"),
    "reproduce voc": (VocOptions, "milseg.commands.reproduce:voc"),
    "voc-results": (VocResultsOptions, "milseg.commands.voc_results:voc_results"),
}
# Those that several processes do together; the others would do the same work in each, into the same folder.
TOGETHER = ("train", "predict", "evaluate")
GROUPS = {"reproduce": "The paper's Table 1 and Figure 1, on digits or on PASCAL VOC."}

PRINT = "--print-config"
NO_SETTINGS = ("help", "config", "print_config")


class Help(DefaultHelpFormatter):
    """An option's own words, and its default where there is one worth saying."""

    def _format_action_invocation(self, action: Action) -> str:
        # jsonargparse's own shows a backspace and flags.
        return PRINT if PRINT in action.option_strings else super()._format_action_invocation(action)

    def _get_help_string(self, action: Action) -> str:
        if PRINT in action.option_strings:
            return "print the settings, as --config takes them, and stop"
        about, default = action.help or "", action.default
        if isinstance(default, bool) or not isinstance(default, str | int | float | Path):
            return about
        return about if default == "==SUPPRESS==" else f"{about.removesuffix('.')} (default: {default})"


class ConfigFile(ActionConfigFile):
    """A YAML file of settings, checked here, where its name is known."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        try:
            settings = parse_yaml(Path(values).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{values}: cannot be read as YAML ({reason})") from None
        if not isinstance(settings, dict):
            raise UserError(f"{values}: expected settings, one a line, such as 'seed: 1'")
        known = {action.dest: action for action in parser._actions if action.dest not in NO_SETTINGS}
        for name, value in settings.items():
            if name not in known:
                raise UserError(f"{values}: {unknown_name('setting', str(name), known)}")
            if known[name].nargs == 0 and not isinstance(value, bool):
                raise UserError(f"{values}: {name} is {value!r}; expected true or false")
        parser.config_file = values
        super().__call__(parser, namespace, values, option_string)  # type: ignore[no-untyped-call]


class Parser(ArgumentParser):
    """jsonargparse with one short message for a mistake, and exit status 2."""

    config_file = "--config"

    def __init__(self, **options: Any) -> None:
        super().__init__(print_config=PRINT, formatter_class=Help, **options)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        text = " ".join(str(message).split())
        # Where jsonargparse speaks of its own insides: values of the file, and words left out.
        text = re.sub(r'Parser key "(\w+)"', rf"{self.config_file}: \1", text)
        text = re.sub(r'expected "[\w.]+" to be one of \{(.+)\}, but it was.*', r"expected one of \1", text)
        print(f"{self.prog}: {text}\nTry: {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def names(text: Any) -> tuple[str, ...]:
    """A list typed with commas, or given as a list in a configuration file.

    >>> names("cat,dog")
    ('cat', 'dog')
    """
    parts = text.split(",") if isinstance(text, str) else list(text)
    return tuple(str(part).strip() for part in parts if str(part).strip())


def whole(value: Any) -> int | None:
    """A whole number; None, as a configuration file may say it, stays None."""
    return None if value is None else _converted(int, value)


def number(value: Any) -> float | None:
    """A number; None, as a configuration file may say it, stays None."""
    return None if value is None else _converted(float, value)


def _converted(kind: type[Any], value: Any) -> Any:
    try:
        return kind(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is not a {'whole ' * (kind is int)}number") from None


def wholes(value: Any) -> tuple[int, ...]:
    """Whole numbers typed with commas, or a list of them in a configuration file."""
    return tuple(_converted(int, part) for part in names(_as_list(value)))


def numbers(value: Any) -> tuple[float, ...]:
    """Numbers typed with commas, or a list of them in a configuration file."""
    return tuple(_converted(float, part) for part in names(_as_list(value)))


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, int | float) else value


# What a message calls them: "invalid whole number value: 'x'".
whole.__name__, number.__name__, names.__name__ = "whole number", "number", "list"
wholes.__name__, numbers.__name__ = "whole numbers", "numbers"

# the hint without "| None" -> (how it is read, what stands for it in the help)
TYPES: dict[Any, tuple[Any, str]] = {
    int: (whole, "N"),
    float: (number, "X"),
    tuple[str, ...]: (names, "A,B,..."),
    tuple[int, ...]: (wholes, "N,M,..."),
    tuple[float, ...]: (numbers, "X,Y,..."),
    Path: (Path, "PATH"),
    Path | None: (Path | None, "PATH"),
    str: (str, "NAME"),
    str | None: (str | None, "NAME"),
}


def add_options(parser: ArgumentParser, settings: type[Any]) -> None:
    """One option a field: dashes for underscores, the help from the docstring's Attributes."""
    # What a class takes over from another one is told there.
    docs = [parse_docstring(kind.__dict__.get("__doc__") or "").params for kind in reversed(settings.__mro__)]
    about = {p.arg_name: p.description or "" for params in docs for p in params}
    hints = get_type_hints(settings)
    for field in fields(settings):
        _add_option(parser, field, hints[field.name], " ".join(about[field.name].split()))


def _add_option(parser: ArgumentParser, field: Field[Any], hint: Any, about: str) -> None:
    flag = "--" + field.name.replace("_", "-")
    if field.metadata.get("positional"):
        many = hint == tuple[str, ...]
        options: dict[str, Any] = {"nargs": "+", "type": str} if many else {"type": Path}
        if not _required(field):
            options["nargs"] = "?"
        parser.add_argument(field.name, metavar=field.name.upper(), help=about, **options)
        return
    if hint is bool:
        parser.add_argument(flag, action="store_true", default=field.default, help=about)
        return
    kind, metavar = TYPES[hint] if hint in TYPES else TYPES[hint.__args__[0]]
    if _required(field):
        # Not argparse's `required`, whose message names no option as it is typed; see `parse`.
        about = f"{about.removesuffix('.')} (required)"
    default = None if _required(field) else field.default
    parser.add_argument(flag, type=kind, default=default, metavar=metavar, help=about)


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def make_parser() -> tuple[Parser, dict[str, Parser]]:
    """The parser of all commands, and each command's own by its words."""
    parser = Parser(prog="milseg", description="Pixel masks from photos with tags.", version=__version__)
    levels = {"": parser.add_subcommands(dest="command", required=True, metavar="COMMAND")}
    for group, about in GROUPS.items():
        holder = Parser(description=about)
        levels[""].add_subcommand(group, holder, help=about)
        holder.prog = f"milseg {group}"
        levels[group] = holder.add_subcommands(dest="what", required=True, metavar="WHAT")
    children = {}
    for words, (settings, _) in COMMANDS.items():
        group, _, name = words.rpartition(" ")
        about = parse_docstring(settings.__doc__ or "").description or ""
        child = children[words] = Parser(description=about)
        child.add_argument(
            "--config", action=ConfigFile, metavar="FILE", help="YAML file with any of these settings"
        )
        add_options(child, settings)
        levels[group].add_subcommand(name, child, help=about.splitlines()[0])
        child.prog = f"milseg {words}"
    return parser, children


def parse(arguments: Sequence[str]) -> tuple[str, Any]:
    """The command's words and its settings, as the dataclass."""
    parser, children = make_parser()
    parsed = parser.parse_args(list(arguments)).as_dict()
    words = parsed["command"]
    values = parsed[words]
    if words in GROUPS:
        words, values = f"{words} {values['what']}", values[values["what"]]
    settings = COMMANDS[words][0]
    for field in fields(settings):
        if _required(field) and not field.metadata.get("positional") and values[field.name] is None:
            children[words].error(f"--{field.name.replace('_', '-')} is missing")
    given = {field.name: values[field.name] for field in fields(settings)}
    return words, settings(**{key: tuple(v) if isinstance(v, list) else v for key, v in given.items()})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for a user's mistake, 75 when stopped with all kept, 130 when
    interrupted.
    """
    signal.signal(signal.SIGTERM, _stop)
    # Rules given as module:function may lie in the folder one is in.
    sys.path.insert(0, os.getcwd())
    try:
        words, settings = parse(sys.argv[1:] if arguments is None else arguments)
        if launched() and words not in TOGETHER:
            if not is_first():
                return 2
            raise UserError(
                f"{words} runs in one process, and {os.environ['WORLD_SIZE']} were started; start it without torchrun, "
                f"which is for {', '.join(TOGETHER)}"
            )
        module, _, function = COMMANDS[words][1].partition(":")
        command: Callable[[Any], None] = getattr(importlib.import_module(module), function)
        with no_empty_folder(getattr(settings, "out", None)):
            command(settings)
        sys.stdout.flush()
    except UserError as error:
        print(f"milseg: {error}", file=sys.stderr)
        return 2
    except Stopped as stop:
        print(f"\nmilseg: {stop}", file=sys.stderr)
        return STOPPED_STATUS
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
