from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import milseg.inference.prediction_run as prediction_run
from milseg.config import PredictOptions
from milseg.distributed import preemption
from milseg.errors import UserError
from milseg.inference.merging import Shard, merge_folders, parse_shard
from milseg.inference.prediction_run import predict_run

from .test_prediction_run import FORMATS, files_below, write_model

NAMES = ("a.png", "b.png", "in/a.png", "in/deep/c.png", "in/e.png", "z.png")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (5, 6, 3)).astype(np.uint8)
        Image.fromarray(np.kron(pixels, np.ones((7, 7, 1), dtype=np.uint8))).save(path)
    return tmp_path / "photos"


def predict(model: Path, photos: Path, out: str, **changes: Any) -> dict[str, int]:
    changes = {"format": FORMATS, **changes}
    options = PredictOptions(
        inputs=(str(photos),), model=model, out=model.parent / out, device="cpu", **changes
    )
    return predict_run(options, progress=False)


def test_every_photo_is_in_one_shard() -> None:
    names = [f"folder/{number}.jpg" for number in range(1000)]
    shards = [Shard(number, 3) for number in (1, 2, 3)]
    assert all(sum(shard.holds(name) for shard in shards) == 1 for name in names)
    assert all(280 < sum(map(shard.holds, names)) < 390 for shard in shards)
    for wrong in ("0/3", "4/3", "3", "a/b", "1/0", "-1/2"):
        with pytest.raises(UserError, match="expected I/N with I from 1 to N"):
            parse_shard(wrong)


def test_shards_in_one_folder_merge_into_what_one_machine_writes(photos: Path, model: Path) -> None:
    predict(model, photos, "whole")
    out = model.parent / "parts"
    for shard in ("2/2", "1/2"):
        predict(model, photos, "parts", shard=shard)
        if shard == "2/2":
            with pytest.raises(UserError, match="no folder of shard 1/2"):
                merge_folders([out], None)
    assert merge_folders([out], None) == {"photos": 6, "failed": 0}
    assert files_below(out) == files_below(model.parent / "whole")
    for ledger in (model.parent / "whole" / ".parts").glob("*.jsonl"):
        assert (out / ".parts" / ledger.name).read_bytes() == ledger.read_bytes()
    # And it can be gone on with, as any other.
    assert predict(model, photos, "parts", resume=True)["earlier"] == 6
    with pytest.raises(UserError, match="holds no folder shards/"):
        merge_folders([out], None)


def test_folders_of_several_machines_are_copied_and_stay(photos: Path, model: Path) -> None:
    (photos / "cut.png").write_bytes(b"no photo")
    predict(model, photos, "whole")
    parts = []
    for shard in ("1/2", "2/2"):
        predict(model, photos, shard[0], shard=shard)
        parts.append(model.parent / shard[0] / "shards" / shard.replace("/", "-of-"))
    before = [files_below(part) for part in parts]
    assert merge_folders(parts, model.parent / "all") == {"photos": 6, "failed": 1}
    assert files_below(model.parent / "all") == files_below(model.parent / "whole")
    assert [files_below(part) for part in parts] == before
    with pytest.raises(UserError, match="already holds files"):
        merge_folders(parts, model.parent / "all")
    with pytest.raises(UserError, match="say where to with --out"):
        merge_folders(parts, None)


def test_parts_of_different_predictions_are_refused(photos: Path, model: Path) -> None:
    predict(model, photos, "parts", shard="1/2", format=("coco",))
    predict(model, photos, "parts", shard="2/2", format=("coco",), class_bias="cat=1")
    with pytest.raises(UserError, match="only parts of one prediction can be merged"):
        merge_folders([model.parent / "parts"], None)
    predict(model, photos, "parts", shard="2/2", format=("png",), overwrite=True)
    with pytest.raises(UserError, match=r"has no record coco\.jsonl"):
        merge_folders([model.parent / "parts"], None)


def test_a_merge_that_was_cut_short_can_be_done_again(
    photos: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(model, photos, "whole")
    for shard in ("1/2", "2/2"):
        predict(model, photos, "parts", shard=shard)
    import milseg.inference.merging as merging

    join, calls = merging._join, []

    def stopping(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        join(*arguments)

    monkeypatch.setattr(merging, "_join", stopping)
    with pytest.raises(KeyboardInterrupt):
        merge_folders([model.parent / "parts"], None)
    monkeypatch.setattr(merging, "_join", join)
    merge_folders([model.parent / "parts"], None)
    assert files_below(model.parent / "parts") == files_below(model.parent / "whole")


def test_a_signal_ends_after_the_photo_in_hand_and_resume_goes_on(
    photos: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(model, photos, "whole")
    row, written = prediction_run._row, []

    def signalled(*arguments: Any) -> Any:
        written.append(1)
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return row(*arguments)

    monkeypatch.setattr(prediction_run, "_row", signalled)
    with pytest.raises(preemption.Stopped, match=r"2 photos more are in .*, 4 are to do: .*--resume goes on"):
        predict(model, photos, "cut")
    assert predict(model, photos, "cut", resume=True) == {"photos": 6, "done": 4, "earlier": 2, "failed": 0}
    assert files_below(model.parent / "cut") == files_below(model.parent / "whole")


def test_large_photos_and_workers_change_nothing(photos: Path, model: Path) -> None:
    predict(model, photos, "one", workers=1)
    predict(model, photos, "four", workers=4)
    assert files_below(model.parent / "one") == files_below(model.parent / "four")
    with pytest.raises(UserError, match="--workers -1"):
        predict(model, photos, "none", workers=-1)


def test_the_side_that_the_network_sees_and_no_overlays(photos: Path, model: Path) -> None:
    predict(model, photos, "own", longest_side=0, no_overlays=True, format=("npz",))
    files = files_below(model.parent / "own")
    assert not any(name.startswith("overlays/") for name in files)
    with np.load(model.parent / "own" / "scores" / "a.npz") as scores:
        assert scores["input_size"].tolist() == [35, 42]  # the model's own longest side is 32
    with pytest.raises(UserError, match="--longest-side 5: expected 16 or more, or 0"):
        predict(model, photos, "none", longest_side=5)
    with pytest.raises(UserError, match="had other classes or options"):
        predict(model, photos, "own", longest_side=20, no_overlays=True, format=("npz",), resume=True)


@pytest.mark.slow
def test_processes_of_torchrun_write_what_one_writes(photos: Path, model: Path) -> None:
    (photos / "cut.png").write_bytes(b"no photo")
    predict(model, photos, "whole")
    out = model.parent / "two"
    words = ["predict", photos, "--model", model, "--out", out, "--format", ",".join(FORMATS)]
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "milseg",
    ]
    for more in ([], ["--resume"]):
        done = subprocess.run(
            [*run, *map(str, words), "--device", "cpu", *more], capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("photos segmented into") == 1
        assert files_below(out) == files_below(model.parent / "whole")
    assert not (out / "shards").exists()
    with (out / "failed.csv").open() as file:
        assert [row["photo"] for row in csv.DictReader(file)] == ["cut.png"]
