"""The command line: one dataclass of settings and one function a command.

Nothing heavy is imported before a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from milseg._version import __version__
from milseg.commands.catalog import CHOICES
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
from milseg.config.arguments import Parser, UsageError, command_parser, parse_options
from milseg.config.help_texts import command_help
from milseg.distributed.launch import is_first, launched
from milseg.distributed.preemption import STOPPED_STATUS, Stopped
from milseg.errors import UserError, unknown_name
from milseg.utils.completion import SHELLS, completion_script
from milseg.utils.console import set_up_console
from milseg.utils.files import no_empty_folder

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

START = """Begin with photos and a file of their tags (columns image, tags):
  milseg check PHOTOS --tags tags.csv
  milseg train PHOTOS --tags tags.csv --out runs/mine
  milseg predict NEW-PHOTOS --model runs/mine --out masks
milseg COMMAND --help tells of a command's options."""


def make_parser() -> Parser:
    """The parser of all commands, for `milseg --help` and for the shell's completion."""
    parser = Parser(
        prog="milseg", usage="milseg COMMAND ...", description="Pixel masks from photos with tags."
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = START
    commands = parser.add_subparsers(title="Commands", metavar="COMMAND", prog="milseg")
    for words, (settings, _) in COMMANDS.items():
        if " " not in words:
            _add_command(commands, words, settings)
    for group, about in GROUPS.items():
        commands.add_parser(group, help=about, parents=[_group_parser(group)])
    options = parser.add_argument_group("Options")
    options.add_argument("-h", "--help", action="store_true", help="show this and stop")
    options.add_argument("--version", action="store_true", help="show the version and stop")
    options.add_argument(
        "--print-completion",
        metavar="SHELL",
        choices=SHELLS,
        help="print what lets bash or zsh complete words by the Tab key, and stop",
    )
    return parser


def _group_parser(group: str) -> Parser:
    parser = Parser(prog=f"milseg {group}", usage=f"milseg {group} WHAT ...", description=GROUPS[group])
    what = parser.add_subparsers(title="What", metavar="WHAT", prog=f"milseg {group}")
    for words, (settings, _) in COMMANDS.items():
        if words.startswith(f"{group} "):
            _add_command(what, words, settings)
    parser.add_argument_group("Options").add_argument(
        "-h", "--help", action="store_true", help="show this and stop"
    )
    return parser


def _add_command(level: Any, words: str, settings: type) -> None:
    level.add_parser(
        words.rpartition(" ")[2],
        parents=[command_parser(f"milseg {words}", settings, choices=CHOICES)],
        help=command_help(settings).partition("\n")[0],
    )


def parse(arguments: Sequence[str]) -> tuple[str, Any]:
    """The command's words and its settings, as the dataclass.

    The settings are None where the words only asked for something that is printed now, such as help.

    Raises:
        UserError: a mistake in the words, or in the YAML file that they name.
    """
    first = arguments[0] if arguments else "--help"
    if first == "help":
        return parse([*arguments[1:], "--help"])
    if first.startswith("-"):
        print(_asked_text(arguments or [first]), end="")
        return "", None
    words, rest = first, list(arguments[1:])
    if words in GROUPS:
        names = [name.rpartition(" ")[2] for name in COMMANDS if name.startswith(f"{words} ")]
        if not rest or rest[0] in ("-h", "--help"):
            print(_group_parser(words).format_help(), end="")
            return "", None
        if rest[0] not in names:
            raise UsageError(f"milseg {words}", str(unknown_name(f"word after {words}", rest[0], names)))
        words, rest = f"{words} {rest[0]}", rest[1:]
    if words not in COMMANDS:
        raise UsageError("milseg", _unknown_command(words, rest))
    settings = COMMANDS[words][0]
    if "-h" in rest or "--help" in rest:
        print(command_parser(f"milseg {words}", settings).format_help(), end="")
        return words, None
    return words, parse_options(f"milseg {words}", settings, rest, CHOICES)


def _asked_text(words: Sequence[str]) -> str:
    """What `milseg --help`, `--version` and `--print-completion SHELL` print."""
    flag, _, value = words[0].partition("=")
    if flag in ("-h", "--help"):
        return make_parser().format_help()
    if flag == "--version":
        return f"milseg {__version__}\n"
    if flag == "--print-completion":
        shell = value or (words[1] if len(words) > 1 else "")
        if shell not in SHELLS:
            raise UsageError("milseg", f"{flag}: found {shell!r}; expected {' or '.join(SHELLS)}")
        return completion_script(make_parser(), shell)
    raise UsageError(
        "milseg", f"{flag}: unknown here; options follow their command, as in milseg train {flag} ..."
    )


def _unknown_command(word: str, rest: Sequence[str]) -> str:
    """What to say of a first word that is no command."""
    later = next((other for other in rest if other in COMMANDS or other in GROUPS), None)
    if later is not None:
        return f"{word!r} is no command; the command comes first: milseg {later} {word} ..."
    inner = {name.rpartition(" ")[2]: name for name in COMMANDS}
    if word in inner:
        return f"{word!r} is no command; did you mean 'milseg {inner[word]}'?"
    known = [*(name for name in COMMANDS if " " not in name), *GROUPS]
    return str(unknown_name("command", word.replace("_", "-"), known)).replace(
        word.replace("_", "-"), word, 1
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for a user's mistake, 75 when stopped with all kept, 130 when
    interrupted.
    """
    signal.signal(signal.SIGTERM, _stop)
    set_up_console()
    # Rules given as module:function may lie in the folder one is in.
    sys.path.insert(0, os.getcwd())
    try:
        words, settings = parse(sys.argv[1:] if arguments is None else arguments)
        if settings is None:
            return _flushed()
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
        return _flushed()
    except UsageError as error:
        print(f"{error.command}: {error}\nTry: {error.command} --help", file=sys.stderr)
        return 2
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


def _flushed() -> int:
    """Status 0, once what was printed has reached its reader."""
    if sys.stdout is not None:  # closed by `>&-`
        sys.stdout.flush()
    return 0


def _stop(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
