"""Consoles that are not UTF-8 print what they can; status goes to standard error, results to standard output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ENCODINGS = {
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C locale": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with a name in Greek, three photos, and tags in three scripts."""
    folder = tmp_path / "φωτο"
    folder.mkdir()
    for number in range(3):
        pixels = np.full((40, 50, 3), 60 * number + 20, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"p{number}.png")
    (tmp_path / "tags.csv").write_text("image,tags\np0.png,猫\np1.png,собака\np2.png,cat\n", encoding="utf-8")
    return folder


def run(photos: Path, words: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    clean = {
        key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONUTF8"))
    }
    return subprocess.run(
        [sys.executable, "-m", "milseg", *words],
        capture_output=True,
        env={**clean, **env},
        cwd=photos.parent,
        timeout=280,
    )


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_console_that_is_not_utf8_prints_what_it_can(photos: Path, name: str) -> None:
    words = ["check", photos.name, "--tags", "tags.csv", "--backbone", "tiny", "--max-steps", "1"]
    done = run(photos, words, ENCODINGS[name])
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    assert b"cat" in done.stdout
    assert rb"\u732b" in done.stdout  # no question mark: the name can still be told


def test_json_on_such_a_console_is_whole(photos: Path) -> None:
    words = ["check", photos.name, "--tags", "tags.csv", "--backbone", "tiny", "--max-steps", "1", "--json"]
    done = run(photos, words, ENCODINGS["ascii"])
    assert set(json.loads(done.stdout)["tag_counts"]) == {"猫", "собака", "cat"}


def test_status_is_one_line_on_standard_error(photos: Path) -> None:
    code = (
        "import logging, sys; from milseg.utils.console import set_up_console\n"
        "set_up_console(); set_up_console()\n"
        "logging.getLogger('milseg').info('on the way'); print('result')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert (done.stdout, done.stderr) == ("result\n", "milseg: on the way\n")
