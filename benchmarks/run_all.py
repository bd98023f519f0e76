"""Run every benchmark, one after the other, and print each one's JSON line at the end.

    python benchmarks/run_all.py [--quick] [--only NAME ...]

`make benchmarks` is this, `make benchmarks QUICK=1` is this with --quick: few repetitions on little, to see that all of
them work; its figures are not to be quoted. None needs the network, photos or weights. A benchmark whose rival is not
installed is left out, with the extra that brings it. Exit status 1 where one failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

# name -> its words for a quick run; those without a row have none.
QUICK = {
    "area": "--max-megapixels 1.6 --rounds 1",
    "class_maps": "--rounds 1",
    "crf": "--repeats 1",
    "evaluation": "--quick",
    "export": "--repeats 3",
    "index": "--quick",
    "loss": "--repeats 2 --batch 4",
    "predict": "--photos 12 --rounds 1",
    "predict_memory": "--counts 50 500",
    "serve": "--requests 64 --rounds 1",
    "shards": "--photos 500 --per-shard 125 --repeats 1",
    "training": "--quick",
    "two_processes": "--steps 6 --repeats 1",
    "vgg_padding": "--quick",
    "windows": "--quick",
}
# name -> a module that it cannot do without, and the extra that brings it.
NEEDED = {
    "class_maps": ("pytorch_grad_cam", "bench"),
    "evaluation": ("torchmetrics", "bench"),
    "export": ("openvino", "export"),
    "serve": ("fastapi", "serve"),
    "shards": ("webdataset", "shards-test"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="such as: crf loss")
    options = parser.parse_args()
    files = {
        path.stem.removeprefix("bench_"): path for path in sorted(Path(__file__).parent.glob("bench_*.py"))
    }
    unknown = set(options.only or ()) - set(files)
    if unknown:
        sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are: {', '.join(files)}")
    last: dict[str, str] = {}
    failed = []
    for name in options.only or files:
        module, extra = NEEDED.get(name, ("", ""))
        if module and find_spec(module) is None:
            last[name] = f'{name}: left out: {module} is not installed; pip install "milseg[{extra}]"'
            print(last[name], flush=True)
            continue
        print(f"== {name}", flush=True)
        began = time.monotonic()
        line = run(
            [sys.executable, str(files[name]), *(QUICK.get(name, "").split() if options.quick else ())]
        )
        print(f"   {time.monotonic() - began:.0f} s", flush=True)
        if line is None:
            failed.append(name)
        last[name] = line or f"{name}: failed"
    print("== each one's last line", *last.values(), sep="\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(command: list[str]) -> str | None:
    """The last line of a benchmark, all being printed as they come; None where it failed or that is no JSON."""
    line = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
    try:
        found = json.loads(line)
    except json.JSONDecodeError:
        return None
    return line.strip() if process.returncode == 0 and "ratio" in found else None


if __name__ == "__main__":
    main()
