"""Training from tags never opens a true mask, and every result says what its weights learned from.

The photos lie in a tree in VOC's layout, whose true masks are there to be found. An audit hook sees every file that
Python opens, by whatever way; files that other languages open (weights, by safetensors) are held by a second run in
which the masks hold something else, and which ends with the same bytes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import milseg.experiments.digits
from milseg.cli import main
from milseg.data.sources.open import open_source
from milseg.data.split import hold_out
from milseg.inference.model_folder import load_model
from milseg.training.calibration import calibrated

if TYPE_CHECKING:
    from conftest import SmallVoc

OPENED: list[list[str]] = []  # a list while somebody watches


def _see(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and OPENED:
        OPENED[-1].append(str(arguments[0]))


@contextmanager
def watched() -> Iterator[list[str]]:
    """The names of all files that are opened in this block."""
    if not getattr(watched, "hooked", False):
        sys.addaudithook(_see)  # for good: Python takes none back
        watched.hooked = True  # type: ignore[attr-defined]
    OPENED.append([])
    try:
        yield OPENED[-1]
    finally:
        OPENED.pop()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    return lambda *words: main([str(word) for word in words])


def train_words(voc: SmallVoc, out: Path) -> list[Any]:
    """All stages: from tags, a round on its own masks, selection on held-out tags."""
    return [
        *("train", voc.home, "--split", "train", "--out", out, "--recipe", "best", "--rounds", "1"),
        *"--backbone tiny --weights none --max-steps 6 --batch-size 2 --hold-out 0.5 --select-every 2".split(),
        *("--device", "cpu"),
    ]


def true_masks(names: list[str]) -> list[str]:
    return [name for name in names if "SegmentationClass" in name]


def test_training_opens_no_true_mask(
    small_voc: SmallVoc, tmp_path: Path, command: Callable[..., int]
) -> None:
    out = tmp_path / "run"
    assert len(list((small_voc.home / "SegmentationClass").glob("*.png"))) == 6
    with watched() as opened:
        assert command(*train_words(small_voc, out)) == 0
        # The prior of the whole photo, as `milseg compare` fits it, learns from tags too.
        model, spec = load_model(out)
        _, held = hold_out(open_source(small_voc.home, split="train"), 0.5, 0)
        assert calibrated(model, spec, replace(spec.inference, prior=1.0), held).prior is not None
    assert true_masks(opened) == []
    # It looked where it should: photos, annotations, and the masks that it made itself.
    for part in ("t0.jpg", "t0.xml", str(out / "pseudo-labels" / "round-1")):
        assert any(part in name for name in opened), part
    # And every stage took part.
    plan = yaml.safe_load((out / "train.yaml").read_text())["plan"]["recipe"]
    assert [stage["mask_weight"] for stage in plan["stages"]] == [0.0, 1.0]
    rows = json.loads((out / "selection.json").read_text())
    assert {row["stage"] for row in rows} == {0, 1}

    # The control: scoring does open true masks, and is seen to.
    with watched() as opened:
        assert command("evaluate", "--model", out, small_voc.root, "--device", "cpu") == 0
    assert {Path(name).stem for name in true_masks(opened)} == {"v0", "v1"}


def test_what_true_masks_hold_changes_nothing(
    small_voc: SmallVoc, tmp_path: Path, command: Callable[..., int]
) -> None:
    assert command(*train_words(small_voc, tmp_path / "whole")) == 0
    for mask in (small_voc.home / "SegmentationClass").glob("*.png"):
        mask.write_bytes(b"nothing that could be read")
    assert command(*train_words(small_voc, tmp_path / "blind")) == 0
    whole, blind = tmp_path / "whole", tmp_path / "blind"
    for name in ("config.yaml", "selection.json"):
        assert (whole / name).read_bytes() == (blind / name).read_bytes(), name
    for name in ("model.safetensors", "checkpoint.safetensors"):
        # The same tensors: the library writes the names in its header in any order.
        one, other = load_file(whole / name), load_file(blind / name)
        assert sorted(one) == sorted(other)
        assert all(torch.equal(one[key], other[key]) for key in one), name


def test_prediction_opens_no_true_mask(
    small_voc: SmallVoc, tmp_path: Path, command: Callable[..., int]
) -> None:
    assert command(*train_words(small_voc, tmp_path / "run")) == 0
    photos = small_voc.home / "JPEGImages"
    with watched() as opened:
        assert command("predict", photos, "--model", tmp_path / "run", "--out", tmp_path / "masks") == 0
    assert true_masks(opened) == []
    assert any("v0.jpg" in name for name in opened)


# what a result says of itself


def supervisions(value: Any) -> list[Any]:
    """Every word of supervision in a result, however deep."""
    if isinstance(value, dict):
        own = [value["supervision"]] if "supervision" in value else []
        return own + [word for item in value.values() for word in supervisions(item)]
    return [word for item in value for word in supervisions(item)] if isinstance(value, list) else []


def test_models_and_their_scores_name_their_supervision(
    small_voc: SmallVoc, tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert command(*train_words(small_voc, out)) == 0
    expected = "image tags (XML annotations)"
    assert yaml.safe_load((out / "config.yaml").read_text())["supervision"] == expected
    assert "no pixel mask was used" in (out / "README.md").read_text()
    capsys.readouterr()
    scored = ["evaluate", "--model", out, small_voc.root, "--json", "--out", tmp_path / "scores.json"]
    assert command(*scored) == 0
    assert json.loads(capsys.readouterr().out)["supervision"] == expected
    assert json.loads((tmp_path / "scores.json").read_text())["supervision"] == expected
    # Masks from files could come from anywhere, and the score says so.
    assert command("predict", small_voc.home / "JPEGImages", "--model", out, "--out", tmp_path / "masks") == 0
    for name in ("t0", "t1", "t2", "t3", "x0"):
        (tmp_path / "masks" / "masks" / f"{name}.png").unlink()
        (small_voc.home / "SegmentationClass" / f"{name}.png").unlink(missing_ok=True)
    capsys.readouterr()
    folders = ("--pred", tmp_path / "masks" / "masks", "--truth", small_voc.home / "SegmentationClass")
    assert command("evaluate", *folders, "--truth-labels", "voc", "--json") == 0
    assert json.loads(capsys.readouterr().out)["supervision"] == "not known (masks from files)"


def test_exported_models_name_their_supervision(
    small_voc: SmallVoc, tmp_path: Path, command: Callable[..., int]
) -> None:
    assert command(*train_words(small_voc, tmp_path / "run")) == 0
    assert command("export", "--model", tmp_path / "run", "--out", tmp_path / "model.pt2") == 0
    extra = {"supervision": ""}
    torch.export.load(str(tmp_path / "model.pt2"), extra_files=extra)
    assert extra["supervision"] == "image tags (XML annotations)"


def test_tables_name_the_supervision_of_each_row(
    small_voc: SmallVoc, tmp_path: Path, command: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milseg.experiments.digits, "SINGLES", 32)
    digits = "--scenes 8 --pretrain-steps 1 --max-steps 1 --device cpu".split()
    assert command("reproduce", "digits", *digits, "--out", tmp_path / "digits") == 0
    table = json.loads((tmp_path / "digits" / "table1.json").read_text())
    assert [row["supervision"] for row in table["rows"]] == supervisions(table)
    assert supervisions(table)[-3:] == ["image tags (generator)", "pixel masks", "image tags (generator)"]
    compare = (
        "--rules max,oracle --max-steps 1 --batch-size 2 --backbone tiny --weights none --device cpu".split()
    )
    voc = [small_voc.root, "--split", "train", "--val-split", "val"]
    assert command("compare", *voc, *compare, "--out", tmp_path / "compare") == 0
    compared = json.loads((tmp_path / "compare" / "compare.json").read_text())
    rows = compared["rows"] if isinstance(compared, dict) else compared
    assert len(rows) == 2
    assert all(len(supervisions(row)) == 1 for row in rows), rows
    assert "masks" in supervisions(rows[1])[0]
    assert "masks" not in supervisions(rows[0])[0]
