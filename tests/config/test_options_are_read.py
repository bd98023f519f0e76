"""Every setting of every command is read somewhere, and none is lost where one command's settings become another's."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import milseg
import milseg.data.sources.evaluation_set as evaluation_set
import milseg.data.sources.open as open_module
from milseg.cli import COMMANDS
from milseg.config import (
    CompareOptions,
    EvaluateOptions,
    SourceOptions,
    shared_settings,
)
from milseg.errors import UserError

SOURCE = Path(milseg.__file__).parent
OTHER: dict[str, Any] = {
    "source": Path("elsewhere"),
    "tags": Path("other.csv"),
    "split": "part",
    "classes": ("cat",),
    "tags_are": "partial",
    "kind": "table",
    "tags_key": "labels",
    "cache": Path("cache"),
    "cache_size": "1MB",
}


def attributes(folder: Path) -> Iterator[str]:
    """Names that any code outside the settings themselves asks an object for, by name or by text."""
    for path in folder.rglob("*.py"):
        if "config" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                yield node.attr
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_every_field_of_every_command_is_read() -> None:
    read = set(attributes(SOURCE)) | {"shard_size", "host"}  # by properties of their own classes
    for kind, _ in COMMANDS.values():
        unread = [field.name for field in fields(kind) if field.name not in read]
        assert not unread, f"{kind.__name__}: nothing reads {unread}"


class Stop(Exception):
    pass


def opened(monkeypatch: pytest.MonkeyPatch, module: Any, call: Any) -> dict[str, Any]:
    """What `open_source` is called with, reading nothing."""
    found: dict[str, Any] = {}

    def record(source: Path, **given: Any) -> None:
        found.update(given, source=source)
        raise Stop

    monkeypatch.setattr(module, "open_source", record)
    with pytest.raises(Stop):
        call()
    return found


@pytest.mark.parametrize("name", [field.name for field in fields(SourceOptions)])
def test_no_setting_of_a_source_is_lost_on_the_way_to_its_reader(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = SourceOptions(source=Path("photos"))
    value = OTHER.get(name, not getattr(plain, name) if isinstance(getattr(plain, name), bool) else "yes")
    other = replace(plain, **{name: value})
    both = [
        opened(monkeypatch, open_module, lambda given=given: open_module.open_source_of(given))
        for given in (plain, other)
    ]
    assert both[0] != both[1]


@pytest.mark.parametrize("name", ["source", "tags", "kind", "tags_key", "cache", "cache_size", "val_split"])
def test_compare_scores_on_photos_read_as_those_it_learns_from(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = CompareOptions(source=Path("photos"), truth=Path("truth"), split="train", val_split="val")
    other = replace(plain, **{name: "part" if name == "val_split" else OTHER[name]})

    def read(options: CompareOptions) -> dict[str, Any]:
        given = shared_settings(EvaluateOptions, options, split=options.val_split)
        call = lambda: evaluation_set.evaluation_bags(given, ("background", "cat"))  # noqa: E731
        return opened(monkeypatch, evaluation_set, call)

    assert read(plain) != read(other)


def test_settings_that_two_commands_share_go_over_by_name() -> None:
    names = {field.name for field in fields(CompareOptions)} & {
        field.name for field in fields(EvaluateOptions)
    }
    assert {"truth", "truth_labels", "truth_values", "tags", "kind", "cache", "device"} <= names
    given = CompareOptions(source=Path("a"), truth_values=("0=background",), split="train", val_split="val")
    found = shared_settings(EvaluateOptions, given, split=given.val_split)
    for name in names - {"split"}:
        assert getattr(found, name) == getattr(given, name)
    assert found.split == "val"


def test_names_of_values_are_refused_without_a_folder_of_masks() -> None:
    for given in ({"truth_labels": "voc"}, {"truth_values": ("0=background",)}):
        with pytest.raises(UserError, match=r"--truth-\w+ goes with --truth alone"):
            evaluation_set.truth_names(EvaluateOptions(**given))  # type: ignore[arg-type]
    both = EvaluateOptions(truth=Path("t"), truth_labels="voc", truth_values=("0=cat",))
    with pytest.raises(UserError, match="--truth-labels and --truth-values both name the values"):
        evaluation_set.truth_names(both)
    for text in ("cat", "=cat", "300=cat", "1=", "-1=cat"):
        with pytest.raises(UserError, match="expected VALUE=NAME with a value from 0 to 255"):
            evaluation_set.truth_names(EvaluateOptions(truth=Path("t"), truth_values=(text,)))
