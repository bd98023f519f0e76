"""The table of cases, and that its runner believes nothing but tests that ran and passed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .cases import CASES, Case
from .run import ROOT, matches


def test_every_case_names_files_and_functions_that_exist() -> None:
    assert list(CASES) == list(range(1, len(CASES) + 1))
    for number, case in CASES.items():
        for test in case.tests:
            file, _, name = test.partition("::")
            text = (ROOT / file).read_text(encoding="utf-8")
            word = name.partition("[")[0]
            assert not word or f"def {word}(" in text or f"class {word}:" in text, (number, test)


def test_names_match_whole_tests_only() -> None:
    assert matches("a.py::test_b", "a.py::test_b")
    assert matches("a.py::test_b", "a.py::test_b[1]")
    assert matches("a.py::T", "a.py::T::test_b[1]")
    assert matches("a.py", "a.py::test_b")
    assert not matches("a.py::test_b", "a.py::test_bc")
    assert not matches("a.py::test_b[1]", "a.py::test_b[10]")


TESTS = """
import pytest
def test_good(): pass
def test_bad(): assert False
def test_skipped(): pytest.skip()
@pytest.mark.xfail
def test_expected(): assert False
@pytest.mark.xfail
def test_expected_and_passing(): pass
@pytest.mark.parametrize("x", [1, 2])
def test_half(x): assert x == 1
@pytest.fixture
def broken(): raise ValueError
def test_broken(broken): pass
@pytest.fixture
def leaves(): yield; raise ValueError
def test_leaves(leaves): pass
"""
HELD = ("good",)
NOT_HELD = ("bad", "skipped", "expected", "expected_and_passing", "half", "broken", "leaves", "not_there")


def test_only_what_ran_and_passed_counts(tmp_path: Path) -> None:
    """In a process of its own: pytest within pytest."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text(TESTS)
    cases = {
        number: Case(name, (f"tests/test_x.py::test_{name}",))
        for number, name in enumerate((*HELD, *NOT_HELD), start=1)
    }
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from pathlib import Path\nfrom reliability import run\nfrom reliability.cases import Case\n"
        f"run.ROOT, run.CASES = Path({str(tmp_path)!r}), {cases!r}\n"
        "sys.exit(run.main([]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("case ")]
    told = {line.split()[3].rstrip(":"): line.split()[2] for line in lines}
    assert told == dict.fromkeys(HELD, "passed") | dict.fromkeys(NOT_HELD, "failed"), done.stderr
    assert done.stdout.splitlines()[-1] == "1 passed, 8 failed"
    assert done.returncode == 1
