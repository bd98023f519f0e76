"""Case 29: processes share a set that does not divide, and count what one counts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .made import make_model, make_source

PATIENCE = 280  # seconds; a hang is a failure, a busy machine is none


@pytest.mark.parametrize(("reading", "count", "photos"), [("scores", 3, 5), ("labels", 2, 1)])
def test_evaluation_in_processes_equals_that_of_one(
    tmp_path: Path,
    command: Callable[[list[str]], int],
    capsys: pytest.CaptureFixture[str],
    reading: str,
    count: int,
    photos: int,
) -> None:
    place = make_source(tmp_path, photos)
    make_model(place / "model")
    (place / "truth" / "labels.json").write_text('{"classes": ["background", "cat", "dog"]}')
    words = [
        *(
            "evaluate",
            "--model",
            str(place / "model"),
            str(place / "photos"),
            "--tags",
            str(place / "tags.csv"),
        ),
        *("--truth", str(place / "truth"), "--reading", reading, "--json", "--device", "cpu"),
    ]
    assert command(words) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["photos"] == photos

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "milseg", *words, "--out", str(place / "found.json")],
            env={
                **os.environ,
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        told = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, [err for _, err in told]
    assert json.loads(told[0][0]) == alone == json.loads((place / "found.json").read_text())
    assert [out for out, _ in told[1:]] == [""] * (count - 1)  # the first one tells
