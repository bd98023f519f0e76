"""What an earlier run wrote goes by its own records, and nothing else does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from milseg.annotations import FORMATS, open_writer
from milseg.annotations.cleanup import remove_earlier
from milseg.annotations.writer import Prediction

CLASSES = ["background", "cat"]


def below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def write(out: Path, formats: list[str], *names: str, **options: object) -> None:
    for name in formats:
        with open_writer(name, out, CLASSES, **options) as writer:
            for photo in names:
                writer.add(
                    Prediction(
                        name=photo,
                        photo_path=Path(f"{photo}.jpg"),
                        photo_file=f"{photo}.jpg",
                        size=(2, 3),
                        mask=np.array([[0, 1, 1], [0, 0, 1]], dtype=np.uint8),
                        photo=np.zeros((2, 3, 3), dtype=np.uint8),
                        confidence=0.5,
                        scores=np.zeros((2, 1, 1), dtype=np.float32),
                        stride=4,
                        offset=0.0,
                    )
                )


@pytest.mark.parametrize("name", FORMATS)
def test_of_each_format_nothing_is_left(tmp_path: Path, name: str) -> None:
    write(tmp_path, [name], "a", "in/deep/b", "{}")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 2
    assert remove_earlier(tmp_path) == len(written) - 1  # the ledger goes uncounted
    assert below(tmp_path) == []
    assert remove_earlier(tmp_path) == 0


def test_other_files_stay(tmp_path: Path) -> None:
    mine = [
        "masks/in/mine.png",
        "overlays/a.png",
        "coco.json",
        "yolo/labels/own.txt",
        ".parts/notes",
        "a.jpg",
    ]
    for name in mine:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"mine")
    # coco.json is the user's: no run of that format is recorded.
    write(tmp_path, ["png", "yolo"], "a", "in/b")
    remove_earlier(tmp_path)
    assert [name for name in below(tmp_path) if (tmp_path / name).is_file()] == sorted(mine)
    assert all((tmp_path / name).read_bytes() == b"mine" for name in mine)


def test_overlays_as_that_run_wrote_them(tmp_path: Path) -> None:
    write(tmp_path, ["png"], "a", overlay_suffix=".png")
    (tmp_path / "overlays" / "a.jpg").write_bytes(b"mine")
    remove_earlier(tmp_path)
    assert below(tmp_path) == ["overlays", "overlays/a.jpg"]


def test_files_to_keep(tmp_path: Path) -> None:
    write(tmp_path, ["png"], "a", "b")
    remove_earlier(tmp_path, keep={(tmp_path / "masks" / "a.png").resolve()})
    assert below(tmp_path) == ["masks", "masks/a.png"]


@pytest.mark.parametrize("name", ["../mine", "/mine", "x/../../mine", "C:/mine", ""])
def test_a_ledger_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    write(out, ["png"], "a")
    outside = [tmp_path / "mine.png", out / "mine.png", out / "masks" / ".png"]
    for path in outside:
        path.write_bytes(b"mine")
    ledger = out / ".parts" / "png.jsonl"
    entry = json.dumps({"name": name, "photo_file": "x.jpg", "data": None})
    ledger.write_text(ledger.read_text() + entry + "\n")
    remove_earlier(out)
    assert all(path.read_bytes() == b"mine" for path in outside)
    assert not (out / "masks" / "a.png").exists()


def test_links_are_not_followed_out_of_the_folder(tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    write(out, ["png"], "a", "in/a")
    elsewhere.mkdir()
    (out / "masks" / "in" / "a.png").rename(elsewhere / "a.png")
    (out / "masks" / "in").rmdir()
    (out / "masks" / "in").symlink_to(elsewhere)
    remove_earlier(out)
    assert (elsewhere / "a.png").is_file()
    assert not (out / "masks" / "a.png").exists()


@pytest.mark.parametrize("text", ["", "{", '{"format": "png"}', '{"format": "coco"}\n', "[]\n", "\xff\n"])
def test_what_is_no_ledger_of_ours_removes_nothing(tmp_path: Path, text: str) -> None:
    write(tmp_path, ["png"], "a")
    ledger = tmp_path / ".parts" / "png.jsonl"
    entries = ledger.read_bytes().split(b"\n", 1)[1] if text.endswith("\n") else b""
    ledger.write_bytes(text.encode("latin-1") + entries)
    assert remove_earlier(tmp_path) == 0
    assert Image.open(tmp_path / "masks" / "a.png").size == (3, 2)


def test_cut_short_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ["png", "coco"], "a", "b", "c")
    unlink, gone = Path.unlink, []

    def stopping(path: Path, missing_ok: bool = False) -> None:
        if len(gone) == 3:
            raise KeyboardInterrupt
        gone.append(path)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", stopping)
    with pytest.raises(KeyboardInterrupt):
        remove_earlier(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / ".parts" / "png.jsonl").exists()
    assert (tmp_path / "coco.json").exists()
    remove_earlier(tmp_path)
    assert below(tmp_path) == []
