"""Imports run one way. Reads every file of the package, runs none."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import milseg

SOURCE = Path(milseg.__file__).parent

# From the bottom up. A package imports only packages on the lines above its own, and files of its own folder;
# packages on one line know nothing of each other. A new file or folder is given its place here.
LAYERS = (
    ("_version", "errors"),
    ("utils",),
    ("config",),
    ("models", "distributed"),
    ("data",),
    ("rules", "refine", "annotations", "figures"),
    ("inference",),
    ("evaluation", "export", "serve"),
    ("training",),
    ("experiments",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
PLACE = {name: place for place, names in enumerate(LAYERS) for name in names}
# What `milseg --help` may load: these take a tenth of a second, torch takes seconds.
LIGHT = {"yaml"}


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def statements(body: list[ast.stmt], *, inside: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements, those for type checkers alone left out; with `inside`, those in functions too."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from statements(node.orelse, inside=inside)
        elif inside or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for field in ("body", "orelse", "finalbody"):
                yield from statements(getattr(node, field, []), inside=inside)
            for handler in getattr(node, "handlers", []):
                yield from statements(handler.body, inside=inside)


def imports(module: str, *, inside: bool = True) -> set[str]:
    """What a file imports, by full name; a name taken from a package counts as its file where it is one."""
    found = set()
    for node in statements(ast.parse(FILES[module].read_text(encoding="utf-8")).body, inside=inside):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        assert node.level == 0, f"{FILES[module]}, line {node.lineno}: write the full name, milseg..."
        home = str(node.module)
        found |= {f"{home}.{a.name}" if f"{home}.{a.name}" in FILES else home for a in node.names}
    return found


def ours(modules: set[str]) -> set[str]:
    return {name for name in modules if name.split(".")[0] == "milseg"}


def unit(module: str) -> str:
    """The file or folder directly below the package."""
    return module.split(".")[1]


def test_the_reader_reads() -> None:
    tree = ast.parse(
        "import a\n"
        "if TYPE_CHECKING:\n    import b\nelse:\n    import c\n"
        "try:\n    import d\nexcept ImportError:\n    import e\nfinally:\n    import f\n"
        "def g():\n    import h\n    if x:\n        import i\n"
        "class J:\n    import k\n"
        "with l:\n    import m\n"
        "for n in o:\n    import p\n"
    )
    top = [node.names[0].name for node in statements(tree.body, inside=False)]
    assert top == ["a", "c", "d", "f", "e", "k", "m", "p"]
    everything = {node.names[0].name for node in statements(tree.body, inside=True)}
    assert everything == {*top, "h", "i"}
    assert "milseg.data.bags" in imports("milseg.training.trainer")
    assert "milseg.experiments.table1" in imports("milseg.commands.reproduce")


def test_every_file_has_a_place_and_every_place_a_file() -> None:
    units = {unit(module) for module in FILES if module != "milseg"}
    assert sorted(units - set(PLACE)) == [], "give these a line in LAYERS"
    assert sum(map(len, LAYERS)) == len(PLACE)


@pytest.mark.parametrize("module", [module for module in FILES if module != "milseg"])
def test_imports_run_one_way(module: str) -> None:
    wrong = [
        name
        for name in ours(imports(module))
        if name == "milseg"
        or (unit(name) != unit(module) and PLACE.get(unit(name), 0) >= PLACE.get(unit(module), len(LAYERS)))
    ]
    assert wrong == [], f"{module} stands below these, or beside them (see LAYERS)"


def test_there_are_no_cycles() -> None:
    graph = {module: ours(imports(module)) & set(FILES) - {module} for module in FILES}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("module", ["milseg", "milseg.cli", "milseg.config", "milseg.__main__"])
def test_help_loads_nothing_heavy(module: str) -> None:
    """Nor anything that does: follows what is imported at once, with the packages on the way."""
    seen: set[str] = set()
    todo = {module}
    outside: set[str] = set()
    while todo:
        name = todo.pop()
        seen.add(name)
        found = imports(name, inside=False)
        outside |= {other.split(".")[0] for other in found - ours(found)}
        for other in ours(found):
            parts = other.split(".")
            todo |= {".".join(parts[: i + 1]) for i in range(len(parts))} - seen
    assert {"torch", "torchvision", "numpy", "PIL", "sklearn", "matplotlib"}.isdisjoint(outside)
    assert outside - LIGHT <= sys.stdlib_module_names


def test_tests_and_caches_are_not_what_is_read() -> None:
    assert len(FILES) > 25
    assert all("test" not in module for module in FILES)
