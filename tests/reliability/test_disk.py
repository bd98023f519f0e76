"""Cases 3 and 4: a disk that is full, a folder that is read-only."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# All of it, before a test is somebody who may not read the checkout.
import milseg.commands.evaluate
import milseg.commands.export
import milseg.commands.predict
import milseg.commands.shard
import milseg.commands.train
import milseg.data.shards.write
import milseg.export.write
import milseg.inference.prediction_run
import milseg.training.run
import milseg.utils.files
import milseg.utils.tensors

from .made import files_of, make_model, make_source, predict_words, train_words

Command = Callable[[list[str]], int]


def test_a_disk_that_fills_while_training(
    place: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fourth file of weights finds no space: status 2, and what was there is what the run goes on from."""
    words = train_words(place, "run", "--recipe", "paper", "--augment", "flip")
    assert command(train_words(place, "whole", "--recipe", "paper", "--augment", "flip")) == 0
    save, saved = milseg.utils.tensors.save_file, []

    def filling(tensors: Any, path: Path, metadata: Any) -> None:
        saved.append(path.name)
        if len(saved) < 4:
            save(tensors, path, metadata=metadata)
            return
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(milseg.utils.tensors, "save_file", filling)
        capsys.readouterr()
        assert command(words) == 2
    told = capsys.readouterr().err
    assert "no space left on the disk; nothing was changed" in told
    assert "Traceback" not in told
    assert not [name for name in files_of(place / "run") if ".tmp" in name]
    assert command([*words, "--resume"]) == 0
    for name in ("checkpoint.safetensors", "model.safetensors", "selection.json"):
        assert files_of(place / "run")[name] == files_of(place / "whole")[name], name


def test_a_disk_that_fills_while_predicting(
    place: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model(place / "model")
    assert command(predict_words(place, "whole")) == 0
    replace, replaced = os.replace, []

    def filling(source: Any, target: Any) -> None:
        replaced.append(target)
        if len(replaced) > 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(source))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", filling)
        capsys.readouterr()
        assert command(predict_words(place)) == 2
    assert "no space left on the disk" in capsys.readouterr().err
    assert not [name for name in files_of(place / "masks") if ".tmp" in name]
    assert command(predict_words(place, "masks", "--resume")) == 0
    assert files_of(place / "masks") == files_of(place / "whole")


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that other users can enter, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["train", "predict", "shard", "export"])
def test_a_read_only_folder_is_told_before_work_starts(
    open_to_all: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    """As a user who may not write there; the superuser, who may, becomes nobody for a while."""
    place = make_source(open_to_all)
    make_model(place / "model")
    locked = place / "locked"
    locked.mkdir(mode=0o555)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("work has started")

    for module, function in (
        (milseg.training.run, "fit"),
        (milseg.inference.prediction_run, "_segment"),
        (milseg.data.shards.write, "pack_photo"),
        (milseg.export.write, "metadata"),
    ):
        monkeypatch.setattr(module, function, never)
    words = {
        "train": train_words(place, "locked/run"),
        "predict": predict_words(place, "locked/masks"),
        "shard": ["shard", str(place / "photos"), "--tags", str(place / "tags.csv"), "--out", f"{locked}/s"],
        "export": ["export", "--model", str(place / "model"), "--out", f"{locked}/model.pt2"],
    }[name]
    superuser = os.geteuid() == 0
    if superuser:
        os.seteuid(65534)
    try:
        capsys.readouterr()
        status = command(words)
    finally:
        if superuser:
            os.seteuid(0)
    told = capsys.readouterr().err
    assert status == 2, told
    assert "cannot write there (Permission denied)" in told
    assert list(locked.iterdir()) == []
