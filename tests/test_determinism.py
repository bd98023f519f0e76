"""The same seed twice gives the same bytes: weights, masks, tables; on the CPU, on as many threads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from reliability.made import files_of, make_model, make_source

import milseg.experiments.digits
from milseg.config import DigitsOptions, PredictOptions, TrainOptions
from milseg.inference.prediction_run import predict_run
from milseg.training.run import train_run

CLOCK = {"seconds", "images_per_second"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make_source(tmp_path)


@pytest.fixture
def other_random_numbers() -> Callable[[], None]:
    """What is drawn elsewhere plays no part: each call leaves torch's own generator somewhere else."""

    def disturb() -> None:
        torch.manual_seed(torch.initial_seed() % 1000 + 17)
        torch.rand(3)

    return disturb


def without_clock(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if key not in CLOCK}


def train(place: Path, out: str, **changes: Any) -> dict[str, bytes]:
    settings: dict[str, Any] = {
        **{"source": place / "photos", "tags": place / "tags.csv", "out": place / out, "device": "cpu"},
        **{"backbone": "tiny", "weights": "none", "max_steps": 6, "batch_size": 2, "hold_out": 0.3},
        **{"recipe": "best", "rounds": 1, "augment": "flip,scale(most=1.5),jitter", "select_every": 2},
        **changes,
    }
    train_run(TrainOptions(**settings), progress=False)
    found = files_of(place / out)
    for name in [name for name in found if name.endswith("metrics.jsonl")]:
        found[name] = json.dumps([without_clock(line) for line in found[name].decode().splitlines()]).encode()
    del found["README.md"]  # it says how long it took
    return found


def test_train_twice(place: Path, other_random_numbers: Callable[[], None]) -> None:
    """All stages and files: weights, checkpoints, own masks, selection, pictures."""
    first = train(place, "first")
    other_random_numbers()
    again = train(place, "again")
    assert first.keys() == again.keys()
    assert [name for name in first if first[name] != again[name]] == []
    assert {"model.safetensors", "checkpoint.safetensors", "rounds/1/checkpoint.safetensors"} <= first.keys()
    assert len([name for name in first if name.startswith("pseudo-labels/round-1/")]) >= 5
    other = train(place, "other", seed=1)
    assert other["model.safetensors"] != first["model.safetensors"]
    assert other["metrics.jsonl"] != first["metrics.jsonl"]


def predict(place: Path, out: str, **changes: Any) -> dict[str, bytes]:
    settings: dict[str, Any] = {
        **{"inputs": (str(place / "photos"),), "model": place / "model", "out": place / out, "device": "cpu"},
        **{"format": ("coco", "labelstudio", "cvat", "yolo", "npz"), "refine": "crf(iterations=2)"},
        **changes,
    }
    predict_run(PredictOptions(**settings), progress=False)
    return files_of(place / out)


def test_predict_twice(place: Path, other_random_numbers: Callable[[], None]) -> None:
    """Every format, a refiner, several views; also with other numbers of photos at once."""
    make_model(place / "model")
    first = predict(place, "first", workers=1)
    other_random_numbers()
    for workers in (1, 3):
        again = predict(place, f"again-{workers}", workers=workers)
        assert first.keys() == again.keys()
        assert [name for name in first if first[name] != again[name]] == []
    assert len([name for name in first if name.startswith("masks/")]) == 8
    make_model(place / "model", seed=6)
    other = predict(place, "other")
    assert [name for name in first if name.startswith("masks/") and other[name] != first[name]]


def test_reproduce_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_random_numbers: Callable[[], None]
) -> None:
    monkeypatch.setattr(milseg.experiments.digits, "SINGLES", 32)

    def run(out: str, seed: int = 3) -> dict[str, bytes]:
        settings = DigitsOptions(
            out=tmp_path / out, seed=seed, scenes=8, pretrain_steps=2, max_steps=2, device="cpu"
        )
        milseg.experiments.digits.reproduce_digits(settings, progress=False)
        return files_of(tmp_path / out)

    first = run("first")
    other_random_numbers()
    again = run("again")
    assert first.keys() == again.keys()
    steady = [name for name in first if name.endswith((".safetensors", ".png")) and "curves" not in name]
    assert len([name for name in steady if name.endswith("model.safetensors")]) >= 3
    assert "figure1.png" in steady
    assert [name for name in steady if first[name] != again[name]] == []
    rows = [
        [{key: value for key, value in row.items() if key not in CLOCK} for row in json.loads(run)["rows"]]
        for run in (first["table1.json"], again["table1.json"])
    ]
    assert rows[0] == rows[1]
    other = run("other", seed=4)
    assert [name for name in steady if name.endswith("model.safetensors") and other[name] != first[name]]
