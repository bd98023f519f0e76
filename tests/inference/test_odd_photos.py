"""What one photo's files do to a run's output: overlays too large for JPEG, photos that changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from milseg.annotations import open_writer
from milseg.annotations.cleanup import forget_photos, remove_earlier
from milseg.annotations.writer import Prediction
from milseg.inference.changed_photos import file_stamp, has_changed


def add(out: Path, name: str, width: int, *, resume: bool = False) -> list[str]:
    mask = np.zeros((2, width), dtype=np.uint8)
    photo = np.zeros((2, width, 3), dtype=np.uint8)
    with open_writer("png", out, ["background", "cat"], resume=resume) as writer:
        writer.add(
            Prediction(
                name=name,
                photo_file=f"{name}.png",
                photo_path=Path(f"{name}.png"),
                size=(2, width),
                mask=mask,
                confidence=0.5,
                photo=photo,
            )
        )
        return writer.notes


def test_an_overlay_too_large_for_jpeg_is_png_and_goes_with_its_photo(tmp_path: Path) -> None:
    (note,) = add(tmp_path, "wide", 65_501)
    assert "wide.png: its overlay is PNG" in note
    with Image.open(tmp_path / "overlays" / "wide.png") as image:
        assert image.size == (65_501, 2)
    assert not add(tmp_path, "small", 9, resume=True)
    forget_photos(tmp_path, {"wide"})
    left = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    assert left == [".parts/png.jsonl", "masks/small.png", "overlays/small.jpg"]
    remove_earlier(tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_photo_has_changed_when_its_bytes_have(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"first")
    stamp = file_stamp(path)
    assert not has_changed(stamp, path)
    path.write_bytes(b"first")  # another time of change, the same bytes
    assert not has_changed(stamp, path)
    path.write_bytes(b"other")
    assert has_changed(stamp, path)
    assert not has_changed(None, path)
