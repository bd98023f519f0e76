"""The tests at the floors of pyproject.toml: the oldest version that it allows of each dependency.

    python release/floors.py [TEST ...]

Packages that milseg does not name are this environment's own, the CUDA libraries that torch looks for among them. Needs
the package index, and wheels of the floors for this Python; the two of torch are most of a gigabyte.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

from wheel import ROOT, lend

# What the floors of scikit-learn, scikit-image and matplotlib were built for; milseg does not name them.
BESIDE = ("scipy==1.11.4", "pyparsing==3.0.9")
TESTS = (
    *(
        "data/test_image.py",
        "data/test_masks.py",
        "utils/test_files.py",
        "training/test_checkpoint.py",
        "evaluation/test_evaluate.py",
        "data/test_bags.py",
    ),
    *(
        "inference/test_prior.py",
        "test_figures.py",
        "test_cli.py",
        "test_bad_input.py",
        "training/test_run.py",
    ),
    *(
        "inference/test_prediction_run.py",
        "sources",
        "annotations",
        "rules",
        "refine",
        "models/test_weights.py",
    ),
)


def floors() -> list[str]:
    """Each dependency at the oldest version that is allowed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for line in project["dependencies"]:
        match = re.fullmatch(r"([\w-]+)>=([\d.]+)", line)
        assert match, f"{line!r}: expected NAME>=VERSION"
        found.append(f"{match[1]}=={match[2]}")
    return found


def main(tests: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="milseg-floors-") as name:
        environment = Path(name)
        venv.create(environment, with_pip=True)
        python = environment / "bin" / "python"
        install = [python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "--no-deps"]
        subprocess.run([*install, *floors(), *BESIDE], check=True)
        lend(environment)
        told = "import sys, importlib.metadata as m; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
        names = [floor.partition("==")[0] for floor in [*floors(), *BESIDE]]
        subprocess.run([python, "-c", told, *names], check=True)
        words = [str(ROOT / "tests" / test) for test in tests or TESTS]
        run = [python, "-m", "pytest", *words, f"--rootdir={ROOT}", "-q", "-p", "no:cacheprovider"]
        environ = {
            "PYTHONPATH": str(ROOT / "src"),
            "OMP_NUM_THREADS": "1",
            "PATH": f"{environment}/bin:/usr/bin:/bin",
        }
        return subprocess.run(
            [*run, "-m", "not slow and not shared"], env=environ, cwd=ROOT, check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
