"""`make reliability`: run the tests of every case, print a line a case and the counts; exit status 1 if one failed.

    python tests/reliability/run.py [NUMBER ...]

A case passes when each of its tests is there and passes; a skipped test and an expected failure count as failures.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from reliability.cases import CASES


def matches(test: str, node: str) -> bool:
    """Whether a collected test is the named one, one of its parameters, or one in the named file or class."""
    return node == test or node.startswith((f"{test}[", f"{test}::"))


class Outcomes:
    """A pytest plugin: keeps the wanted tests, and what became of each."""

    def __init__(self, wanted: set[str]) -> None:
        self.wanted = wanted
        self.found: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if any(matches(test, item.nodeid) for test in self.wanted)]
        self.found = {item.nodeid: "not run" for item in items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        passed = report.outcome == "passed" and not hasattr(report, "wasxfail")
        if not passed:
            self.found[report.nodeid] = (
                f"{'expected failure' if hasattr(report, 'wasxfail') else report.outcome}"
            )
        elif report.when == "call" and self.found[report.nodeid] == "not run":
            self.found[report.nodeid] = "passed"


def why_not(tests: tuple[str, ...], found: dict[str, str]) -> list[str]:
    """What is wrong with the tests of a case; nothing when it holds."""
    wrong = []
    for test in tests:
        nodes = [node for node in found if matches(test, node)]
        wrong += [f"{node} {found[node]}" for node in nodes if found[node] != "passed"]
        wrong += [f"{test} missing"] * (not nodes)
    return wrong


def main(numbers: list[int]) -> int:
    """Run the cases of these numbers, or all."""
    chosen = {number: CASES[number] for number in numbers or CASES}
    wanted = {test for case in chosen.values() for test in case.tests}
    outcomes = Outcomes(wanted)
    files = sorted({test.partition("::")[0] for test in wanted})
    arguments = [*(str(ROOT / file) for file in files), f"--rootdir={ROOT}", "-p", "no:cacheprovider"]
    status = pytest.main([*arguments, "-q", "--tb=short", "--timeout=1800"], plugins=[outcomes])
    failed = 0
    for number, case in chosen.items():
        wrong = why_not(case.tests, outcomes.found)
        failed += bool(wrong)
        told = f": {'; '.join(wrong[:3])}" if wrong else ""
        print(f"case {number:2}  {'failed' if wrong else 'passed'}  {case.about}{told}")
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return int(bool(failed) or status not in (0, 1))


if __name__ == "__main__":
    sys.exit(main([int(word) for word in sys.argv[1:]]))
