"""The mutants of `make mutants`: each is one change, where it says, and runs."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "mutation"))

from mutants import mutants, mutated

TEXT = '''"""Words."""
LIMIT = 3


def f(a: int, b: int = 4) -> int:
    """More words."""
    assert a > 0
    if a < b and not a == 7:
        raise UserError(f"{a + 1} is too much")
    print("a" + "b")
    calls.append(a)
    return a + 1


class C:
    x: int = 5

    def g(self) -> str:
        return "word"
'''


def test_what_is_changed_and_what_is_not() -> None:
    found = [(mutant.line, mutant.function, mutant.about) for mutant in mutants(TEXT)]
    assert sorted(found) == sorted(
        [
            (8, "f", "if not"),
            (8, "f", "And -> Or"),
            (8, "f", "Lt -> LtE"),
            (8, "f", "without Not"),
            (8, "f", "Eq -> NotEq"),
            (8, "f", "7 -> 8"),
            (9, "f", "raise removed"),
            (10, "f", "call removed"),
            (11, "f", "call removed"),
            (12, "f", "returns None"),
            (12, "f", "Add -> Sub"),
            (12, "f", "1 -> 2"),
            (19, "C.g", "returns None"),
            (19, "C.g", "'word' changed"),
        ]
    )


@pytest.mark.parametrize("number", range(14))
def test_each_mutant_changes_one_line_and_compiles(number: int) -> None:
    mutant = mutants(TEXT)[number]
    before = ast.unparse(ast.parse(TEXT)).splitlines()
    tree = mutated(TEXT, mutant)
    compile(tree, "x.py", "exec")
    after = ast.unparse(tree).splitlines()
    assert len([1 for one, other in zip(before, after, strict=True) if one != other]) == 1
