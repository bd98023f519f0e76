"""Build the wheel, install it into an empty environment, and run it there.

    python release/wheel.py            # its dependencies too, from the index: torch is large
    python release/wheel.py --quick    # dependencies are lent by this environment; milseg itself is the wheel's

Run by `.ci/run` in its quick form. Nothing of the checkout is seen: the commands run in an empty folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# In the new environment: the package is the wheel's, with all that is no Python, and its files work.
CHECK = """
import sys
from importlib.resources import files
from pathlib import Path
import milseg
home = Path(milseg.__file__).resolve()
assert home.is_relative_to(Path(sys.prefix).resolve()), home
package = files("milseg")
for name in ("py.typed", "models/voc_synsets.yaml", "serve/page/index.html"):
    assert package.joinpath(name).is_file(), name
print("milseg", milseg.__version__, "from the wheel")
"""
PHOTOS = """
from pathlib import Path
from PIL import Image
from milseg.data.masks import write_mask
from milseg.data.sources.digits import read_digits
for folder in ("photos", "truth"):
    Path(folder).mkdir()
rows = ["image,tags"]
for bag in read_digits("train", 8).bags:
    Image.fromarray(bag.photo).save(f"photos/{bag.name}.png")
    write_mask(Path(f"truth/{bag.name}.png"), bag.mask)
    rows.append(f"{bag.name}.png," + " ".join(f"digit{i - 1}" for i in range(1, 11) if bag.tags[i] == 1))
Path("tags.csv").write_text("\\n".join(rows))
names = ["background", *(f"digit{i}" for i in range(10))]
Path("truth/labels.json").write_text('{"classes": ["' + '", "'.join(names) + '"]}')
"""


def call(*words: object, folder: Path) -> None:
    print("+", *words if len(str(words[-1])) < 200 else words[:-1], flush=True)
    subprocess.run([str(word) for word in words], cwd=folder, check=True)


def lend(environment: Path) -> None:
    """Let the new environment see this one's packages, after its own; paths within paths are not followed, so that
    a milseg which is installed here from a checkout is not seen.
    """
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="lend the dependencies")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="milseg-wheel-") as name:
        folder = Path(name)
        built, environment, empty = folder / "built", folder / "env", folder / "empty"
        empty.mkdir()
        call(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", built, ROOT, folder=empty)
        (wheel,) = built.glob("milseg-*.whl")
        venv.create(environment, with_pip=True)
        python, milseg = environment / "bin" / "python", environment / "bin" / "milseg"
        call(python, "-m", "pip", "install", "--quiet", *["--no-deps"] * options.quick, wheel, folder=empty)
        if options.quick:
            lend(environment)
        call(python, "-c", CHECK, folder=empty)
        call(python, "-c", PHOTOS, folder=empty)
        call(milseg, "--version", folder=empty)
        tiny = (
            "--backbone tiny --weights none --max-steps 2 --batch-size 2 --recipe fast --device cpu".split()
        )
        call(milseg, "train", "photos", "--tags", "tags.csv", *tiny, "--out", "run", folder=empty)
        call(
            milseg, "predict", "photos", "--model", "run", "--out", "masks", "--format", "coco", folder=empty
        )
        call(milseg, "evaluate", "--pred", "masks/masks", "--truth", "truth", folder=empty)
        assert len(list((empty / "masks" / "masks").glob("*.png"))) == 8
        print(f"{wheel.name}: built, installed into an empty environment and run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
