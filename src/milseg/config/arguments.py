"""A command's parser, from its dataclass: argparse takes the words apart, `values` reads them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import yaml

from milseg.config.headings import HEADINGS, METAVARS, heading_of
from milseg.config.help_texts import command_help, option_help
from milseg.config.values import LISTS, READERS, Choices, plain_hint, read_value, with_default
from milseg.errors import UserError, unknown_name
from milseg.utils.yaml import parse_yaml

CONFIG, PRINT_CONFIG = "--config", "--print-config"
# What shtab takes for a file's name: its shtab.FILE, which is not imported here.
FILES = {"bash": "_shtab_compgen_files", "zsh": "_files"}
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2212"  # what word processors make of "--"
SWITCH_WORDS = ("true", "false", "yes", "no", "on", "off")


class UsageError(UserError):
    """A mistake in the words of a command.

    Attributes:
        command: the words whose `--help` helps.
    """

    def __init__(self, command: str, message: str) -> None:
        super().__init__(message)
        self.command = command


class Parser(argparse.ArgumentParser):
    """argparse that raises its messages and knows no abbreviations, which would change with every new option."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, add_help=False, formatter_class=_formatter, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(self.prog, message.removeprefix("argument "))


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=27)


def flag_of(name: str) -> str:
    """
    >>> flag_of("max_steps")
    '--max-steps'
    """
    return "--" + name.replace("_", "-")


def typed_name(field: Field[Any]) -> str:
    """The field as it stands in `--help`: SOURCE, or --max-steps."""
    return field.name.upper() if is_positional(field) else flag_of(field.name)


def is_positional(field: Field[Any]) -> bool:
    return bool(field.metadata.get("positional"))


def is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def hints_of(settings: type) -> dict[str, Any]:
    """Type hints of the fields, without `| None`."""
    hints = get_type_hints(settings)
    return {field.name: plain_hint(hints[field.name]) for field in fields(settings)}


def command_parser(command: str, settings: type, *, choices: Choices | None = None) -> Parser:
    """The parser of one command; its values are texts, which `parse_options` reads.

    With `choices`, the actions are marked for the shell's completion; such a parser is not for parsing.
    """
    hints, about = hints_of(settings), option_help(settings)
    rows = fields(settings)
    words = [
        f"{field.name.upper()}{' ...' * (hints[field.name] in LISTS)}"
        for field in rows
        if is_positional(field)
    ]
    words += [
        f"{flag_of(f.name)} {_metavar(f.name, hints)}"
        for f in rows
        if is_required(f) and not is_positional(f)
    ]
    parser = Parser(
        prog=command, description=command_help(settings), usage=" ".join([command, *words, "[OPTION ...]"])
    )
    groups = {heading: [f for f in rows if heading_of(f.name) == heading] for heading in HEADINGS}
    for heading, members in groups.items():
        group = parser.add_argument_group(heading) if members else parser
        for field in members:
            action = _add_option(group, field, hints, about.get(field.name, ""))
            if choices is not None:
                _mark_for_completion(action, field, hints, choices)
    group = parser.add_argument_group("Help and settings")
    group.add_argument("-h", "--help", action="help", help="show this and stop")
    group.add_argument(
        CONFIG, metavar="FILE", help="YAML file with any of these settings; options go before it"
    )
    group.add_argument(
        PRINT_CONFIG, action="store_true", help="print the settings, as --config takes them, and stop"
    )
    return parser


def _metavar(name: str, hints: Mapping[str, Any]) -> str:
    return METAVARS.get(name, READERS[hints[name]][1])


def _add_option(
    group: argparse._ArgumentGroup | Parser, field: Field[Any], hints: Mapping[str, Any], about: str
) -> argparse.Action:
    options: dict[str, Any] = {
        "help": _with_default(field, about).replace("%", "%%"),
        "default": argparse.SUPPRESS,
    }
    if is_positional(field):
        many = hints[field.name] in LISTS
        return group.add_argument(
            field.name, metavar=field.name.upper(), nargs="*" if many else "?", **options
        )
    if hints[field.name] is bool:
        return group.add_argument(flag_of(field.name), action="store_true", **options)
    return group.add_argument(
        flag_of(field.name), metavar=_metavar(field.name, hints), action="append", **options
    )


def _mark_for_completion(
    action: argparse.Action, field: Field[Any], hints: Mapping[str, Any], choices: Choices
) -> None:
    """Set what shtab reads: the names of a choice, else files."""
    choice = with_default(choices.get(field.name), field.default)
    if choice is not None:
        action.choices = list(choice.names)
    elif is_positional(field) or hints[field.name] is Path or field.name in METAVARS:
        action.complete = FILES  # type: ignore[attr-defined]


def _with_default(field: Field[Any], about: str) -> str:
    """The help with the default, if it says more than "nothing"."""
    if is_required(field):
        return about if is_positional(field) else f"{about.removesuffix('.')} (required)"
    if isinstance(field.default, bool) or not isinstance(field.default, str | int | float | Path):
        return about
    return f"{about.removesuffix('.')} (default: {field.default})"


def parse_options(command: str, settings: type, words: Sequence[str], choices: Choices) -> Any:
    """The settings that these words mean; None where only help or the settings were asked for and printed.

    Args:
        command: "milseg train", for messages.
        settings: the dataclass.
        words: what follows the command.
        choices: the names that options of these names take.

    Raises:
        UsageError: a mistake in the words. UserError: one in the YAML file, or values that contradict each other.
    """
    parser = command_parser(command, settings)
    _check_flags(command, settings, words)
    parsed, extra = parser.parse_known_intermixed_args(list(words))
    given = vars(parsed)
    if extra:
        raise UsageError(command, _unexpected(settings, given, extra))
    values = {}
    if given["config"] is not None:
        values = _file_values(Path(given["config"]), settings, choices)
    values |= _typed_values(command, settings, given, choices)
    if given["print_config"]:
        print(config_text(settings, values), end="")
        return None
    missing = [field for field in fields(settings) if is_required(field) and field.name not in values]
    if missing:
        raise UsageError(command, f"{typed_name(missing[0])} is missing")
    return settings(**values)


def _check_flags(command: str, settings: type, words: Sequence[str]) -> None:
    """Refuse unknown options first: argparse would take the value of one for SOURCE."""
    hints = hints_of(settings)
    flags = {flag_of(f.name): f for f in fields(settings) if not is_positional(f)}
    known = [*flags, "--help", CONFIG, PRINT_CONFIG]
    words = list(words)
    for at, word in enumerate(words):
        if word == "--":
            return
        flag, equals, value = word.partition("=")
        if word[:1] in DASHES or (word[:1] == "-" and word[1:2].isalpha() and word != "-h"):
            plain = "--" + flag.lstrip("-" + DASHES)
            near = plain if plain in known else next(iter(get_close_matches(plain, known, 1, 0.5)), None)
            raise UsageError(
                command, f"unknown option {flag!r}" + (f"; did you mean {near}?" if near else "")
            )
        if not word.startswith("--"):
            continue
        if flag not in known:
            raise UsageError(command, f"unknown option {flag}{_nearest_flag(flag, settings)}")
        if flag in flags and hints[flags[flag].name] is bool:
            after = words[at + 1] if at + 1 < len(words) else ""
            value = value if equals else after if after.lower() in SWITCH_WORDS else ""
            if equals or value:
                raise UsageError(
                    command, f"{flag} takes no value; found {value!r}. Give {flag} alone, or leave it out"
                )


def _nearest_flag(flag: str, settings: type) -> str:
    known = [flag_of(field.name) for field in fields(settings) if not is_positional(field)]
    positional = [field.name.upper() for field in fields(settings) if is_positional(field)]
    if flag[2:].upper() in positional:
        return f"; give {flag[2:].upper()} without a name, as in --help"
    near = (
        get_close_matches(flag.replace("_", "-"), known, 1, 0.6)
        or [k for k in known if k.startswith(flag)][:1]
    )
    return f"; did you mean {near[0]}?" if near else ""


def _unexpected(settings: type, given: Mapping[str, Any], extra: Sequence[str]) -> str:
    """What to say of words that belong to nothing; most are a path with spaces, or a pattern of the shell."""
    positional = next((field.name for field in fields(settings) if is_positional(field)), None)
    if positional is None or positional not in given:
        absent = [f.name for f in fields(settings) if is_required(f) and f.name not in given]
        hint = (
            f"; did you mean {flag_of(absent[0])} {extra[0]}?"
            if absent
            else "; this command takes options alone"
        )
        return f"unexpected {extra[0]!r}{hint}"
    first = given[positional]
    whole = " ".join([first, *extra])
    if Path(whole).exists():
        return f"unexpected {extra[0]!r}; a path with spaces needs quotes: {whole!r}"
    if (
        "tags" in hints_of(settings)
        and "tags" not in given
        and {Path(first).is_dir(), Path(extra[0]).is_dir()} == {True, False}
    ):
        folder, file = (first, extra[0]) if Path(first).is_dir() else (extra[0], first)
        return f"unexpected {extra[0]!r}; did you mean {folder} --tags {file}?"
    return (
        f"unexpected {extra[0]!r} after {positional.upper()} {first!r}; expected one {positional.upper()}, such as a "
        "folder. A path with spaces needs quotes; several values of an option take commas, not spaces"
    )


def _typed_values(command: str, settings: type, given: Mapping[str, Any], choices: Choices) -> dict[str, Any]:
    hints, values = get_type_hints(settings), {}
    for field in fields(settings):
        if field.name not in given:
            continue
        value = given[field.name]
        plain = plain_hint(hints[field.name])
        if not is_positional(field) and plain is not bool:
            if len(value) > 1 and plain in LISTS:
                joined = ",".join(value)
                raise UsageError(
                    command, f"{flag_of(field.name)} is given twice; write {flag_of(field.name)} {joined}"
                )
            value = value[-1]
        if is_positional(field) and plain in LISTS and not value:
            continue
        try:
            values[field.name] = _read(field, hints[field.name], value, choices)
        except UserError as error:
            raise UsageError(command, f"{typed_name(field)}: {error}") from None
    return values


def _read(field: Field[Any], hint: Any, value: Any, choices: Choices) -> Any:
    choice = with_default(choices.get(field.name), field.default)
    many = is_positional(field) and plain_hint(hint) in LISTS
    return read_value(hint, value, many=many, choice=choice)


def _file_values(path: Path, settings: type, choices: Choices) -> dict[str, Any]:
    """Settings of a YAML file; a null leaves the default.

    Raises:
        UserError: no such file, not YAML, an unknown setting, a value of another type.
    """
    try:
        found = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read as YAML ({reason})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected settings, one a line, such as 'seed: 1'")
    known = {field.name: field for field in fields(settings)}
    hints, values = get_type_hints(settings), {}
    for name, value in found.items():
        if name not in known:
            raise UserError(f"{path}: {unknown_name('setting', str(name), known)}")
        try:
            if value is not None:
                values[name] = _read(known[name], hints[name], value, choices)
        except UserError as error:
            raise UserError(f"{path}: {name}: {error}") from None
    return values


def config_text(settings: type, values: Mapping[str, Any]) -> str:
    """The settings as YAML, defaults included, as `--config` takes them."""
    plain = {}
    for field in fields(settings):
        value = values.get(field.name, None if is_required(field) else field.default)
        value = list(value) if isinstance(value, tuple) else value
        plain[field.name] = str(value) if isinstance(value, Path) else value
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text
