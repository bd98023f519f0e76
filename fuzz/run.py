"""`make fuzz SECONDS=600`: atheris on every target, so long each; a line a target, exit status 1 after an escape.

    python fuzz/run.py [--seconds 600] [--runs N] [TARGET ...]

Needs `pip install atheris`. Each target runs in a process of its own, whose coverage of milseg guides the changes; what
escapes is written to fuzz/found/TARGET-*, from where it goes into fuzz/seeds, and tests/reliability keeps it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def fuzz_one(target: str, arguments: list[str]) -> None:
    """Fuzz in this process, for ever or as libFuzzer's arguments say."""
    import atheris

    sys.path.insert(0, str(HERE))
    with atheris.instrument_imports(include=["milseg"]):
        import targets

    run = targets.TARGETS[target]
    targets.place()
    atheris.Setup([sys.argv[0], *arguments], run)
    atheris.Fuzz()


def fuzz_for(target: str, seconds: int, runs: int | None) -> tuple[int, str]:
    """The number of inputs, and what escaped or an empty text."""
    (HERE / "found").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="milseg-corpus-") as corpus:
        limits = [f"-max_total_time={seconds}", f"-artifact_prefix={HERE / 'found' / target}-", "-timeout=60"]
        limits += ["-rss_limit_mb=6000", "-print_final_stats=1", "-verbosity=1", "-max_len=8192"]
        limits += [f"-runs={runs}"] * (runs is not None)
        words = [sys.executable, __file__, "--one", target, *limits, corpus, str(HERE / "seeds" / target)]
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    told = done.stdout + done.stderr
    counts = re.findall(r"number_of_executed_units: (\d+)", told) or re.findall(
        r"^#(\d+)", told, re.MULTILINE
    )
    # Leaving by the limit of time is status 0; whatever else is an escape, a hang, or too much memory.
    return int(counts[-1]) if counts else 0, "" if done.returncode == 0 else escape(told, done.returncode)


def escape(told: str, status: int) -> str:
    """What escaped, without libFuzzer's lines on its coverage."""
    lines = [line for line in told.splitlines() if not re.match(r"#\d+\t", line)]
    return "\n".join([f"exit status {status}", *lines[-60:]])


def main() -> int:
    if sys.argv[1:2] == ["--one"]:
        fuzz_one(sys.argv[2], sys.argv[3:])
        return 0
    sys.path.insert(0, str(HERE))
    names = sorted(path.name for path in (HERE / "seeds").iterdir())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("targets", nargs="*", default=names)
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("--runs", type=int, help="inputs for each target, where that is fewer")
    options = parser.parse_args()
    escapes = total = 0
    for target in options.targets:
        count, escaped = fuzz_for(target, options.seconds, options.runs)
        total += count
        escapes += bool(escaped)
        print(f"{target}: {count:,} inputs, {'ESCAPE' if escaped else 'no escape'}", flush=True)
        print(escaped, end="\n" if escaped else "")
    print(f"{total:,} inputs for {len(options.targets)} targets, {escapes} with an escape")
    return int(bool(escapes))


if __name__ == "__main__":
    sys.exit(main())
