"""`make mutants`: change the code a little, many times, and see whether the fast unit tests notice.

    python mutation/run.py [--count 300] [--seed 0] [--only GROUP]

One process loads everything and collects the tests. Each mutant is made in a fork of it, by giving the functions new
code, and there the tests that call the changed function run, the quickest first, until one fails. A mutant that runs
ten times as long as the tests did (and ten seconds) counts as caught. Prints the survivors, then the counts of each
group and of all; exit status 1 below 90 %.
"""

from __future__ import annotations

import argparse
import gc
import os
import pickle
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "milseg"
sys.path[:0] = [str(ROOT), str(ROOT / "mutation")]

import pytest
import torch
from mutants import Mutant, mutants, mutated

ENOUGH = 0.9
# group -> (files below src/milseg, tests)
GROUPS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "rules": (("rules/*.py",), ("rules",)),
    "evaluation": (
        ("evaluation/confusion.py", "evaluation/evaluate.py"),
        ("evaluation/test_evaluate.py", "data/sources/test_scoring_sets.py"),
    ),
    "prior": (("inference/prior.py",), ("inference/test_prior.py",)),
    "checkpoints": (
        ("inference/model_folder.py", "training/checkpoint.py", "utils/tensors.py", "utils/files.py"),
        ("inference/test_model_folder.py", "training/test_checkpoint.py", "utils/test_files.py"),
    ),
    "annotation writers": (("annotations/*.py",), ("annotations",)),
}
# Tests in processes of their own see no mutant.
NOT = "not kill and not written_whole and not memory"

Key = tuple[str, str, int]  # file, qualified name, first line
Called = dict[int, tuple[float, set[Key]]]  # by test: its seconds and the functions it calls


class Job(NamedTuple):
    group: str
    file: str
    mutant: Mutant


def key_of(code: CodeType) -> Key:
    return code.co_filename, code.co_qualname, code.co_firstlineno


def codes(code: CodeType) -> dict[Key, CodeType]:
    """All code objects in a module's, by key."""
    found = {key_of(code): code}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= codes(constant)
    return found


def sampled(count: int, seed: int, only: str | None) -> list[Job]:
    """Mutants drawn evenly from all that the groups' files have."""
    jobs = [
        Job(group, str(path), mutant)
        for group, (patterns, _) in GROUPS.items()
        if only in (None, group)
        for pattern in patterns
        for path in sorted(SOURCE.glob(pattern))
        for mutant in mutants(path.read_text(encoding="utf-8"))
    ]
    print(f"{len(jobs)} mutants, {min(count, len(jobs))} of them drawn with seed {seed}", flush=True)
    return sorted(random.Random(seed).sample(jobs, min(count, len(jobs))))


class Session:
    """A pytest plugin: in place of running the tests once, runs them on every mutant."""

    def __init__(self, jobs: list[Job]) -> None:
        self.jobs = jobs
        self.failed = False
        self.survivors: list[tuple[Job, str]] = []
        self.tried: list[Job] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        files = {job.file for job in self.jobs}
        functions = [
            f for f in gc.get_objects() if type(f) is FunctionType and f.__code__.co_filename in files
        ]
        gc.freeze()
        called: Called = pickle.loads(self._child(lambda: self._record(session.items, files), limit=3600)[1])
        print(f"{len(called)} tests, {sum(seconds for seconds, _ in called.values()):.0f} s", flush=True)
        for number, job in enumerate(self.jobs, start=1):
            outcome = self._try(job, functions, called, session.items)
            if outcome != "not made":
                self.tried.append(job)
            if outcome not in ("caught", "not made"):
                self.survivors.append((job, outcome))
                place = f"{Path(job.file).relative_to(SOURCE)}:{job.mutant.line}"
                print(
                    f"survived  {place}  {job.mutant.function}  {job.mutant.about}  ({outcome})", flush=True
                )
            if number % 50 == 0:
                print(f"... {number} of {len(self.jobs)}, {len(self.survivors)} survived", flush=True)
        return True

    def _record(self, items: list[pytest.Item], files: set[str]) -> bytes:
        """Which functions of the files each test calls, and how long it takes."""
        called: Called = {}
        now: set[Key] = set()

        def note(frame: FrameType, event: str, argument: Any) -> None:
            if event == "call" and frame.f_code.co_filename in files:
                now.add(key_of(frame.f_code))

        for number, item in enumerate(items):
            now = set()
            began = time.monotonic()
            threading.setprofile(note)
            sys.setprofile(note)
            self._run(items, number)
            sys.setprofile(None)
            called[number] = time.monotonic() - began, now
            if self.failed:
                raise SystemExit(f"{item.nodeid} fails without any mutant")
        return pickle.dumps(called)

    def _run(self, items: list[pytest.Item], number: int) -> None:
        item = items[number]
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)

    def _try(self, job: Job, functions: list[FunctionType], called: Called, items: list[pytest.Item]) -> str:
        text = Path(job.file).read_text(encoding="utf-8")
        new = codes(compile(mutated(text, job.mutant), job.file, "exec"))
        changed = [
            (function, new[key_of(function.__code__)])
            for function in functions
            if function.__code__.co_filename == job.file
            and new.get(key_of(function.__code__), function.__code__) != function.__code__
        ]
        if any(len(f.__code__.co_freevars) != len(code.co_freevars) for f, code in changed):
            return "not made"
        tests = [
            (seconds, number)
            for number, (seconds, keys) in called.items()
            if any(file == job.file and name == job.mutant.function for file, name, _ in keys)
        ]
        if not tests:
            return "no test calls it"

        def attempt() -> bytes:
            for function, code in changed:
                function.__code__ = code
            for _, number in sorted(tests):
                self._run(items, number)
                if self.failed:
                    return b"caught"
            return b"survived"

        limit = 10 + 10 * sum(seconds for seconds, _ in tests)
        _, said = self._child(attempt, limit=limit)
        return f"{len(tests)} tests pass" if said == b"survived" else "caught"

    def _child(self, work: Callable[[], bytes], *, limit: float) -> tuple[int, bytes]:
        """What some work returns, done in a fork; nothing where it was killed for taking too long."""
        told, tell = os.pipe()
        child = os.fork()
        if not child:
            os.close(told)
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            try:
                answer = work()
                with os.fdopen(tell, "wb") as pipe:
                    pipe.write(answer)
            finally:
                os._exit(0)
        os.close(tell)
        killer = threading.Timer(limit, os.kill, (child, signal.SIGKILL))
        killer.start()
        with os.fdopen(told, "rb") as pipe:
            answer = pipe.read()
        killer.cancel()
        killer.join()
        return os.waitpid(child, 0)[1], answer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(GROUPS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    jobs = sampled(options.count, options.seed, options.only)
    session = Session(jobs)
    tests = [str(ROOT / "tests" / test) for name in {job.group for job in jobs} for test in GROUPS[name][1]]
    words = [*sorted(tests), f"--rootdir={ROOT}", "-q", "-s", "-p", "no:cacheprovider", "-p", "no:timeout"]
    began = time.monotonic()
    pytest.main([*words, "-o", "timeout=0", "-k", NOT, "-m", "not slow and not shared"], plugins=[session])
    print()
    for group in GROUPS:
        total = sum(job.group == group for job in session.tried)
        caught = total - sum(job.group == group for job, _ in session.survivors)
        if total:
            print(f"{group}: {caught} of {total} caught ({100 * caught / total:.1f} %)")
    total, caught = len(session.tried), len(session.tried) - len(session.survivors)
    share = caught / max(total, 1)
    print(
        f"all: {caught} of {total} mutants caught ({100 * share:.1f} %) in {time.monotonic() - began:.0f} s"
    )
    return int(share < ENOUGH)


if __name__ == "__main__":
    sys.exit(main())
