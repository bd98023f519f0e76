"""Bad and odd input, each kind of it for each of the commands check, train, predict and evaluate.

The readers' own tests look closer; here a mistake is one message with exit status 2, and what can be taken is taken.
"""

from __future__ import annotations

import json
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from milseg.cli import main
from milseg.data.image import open_mask
from milseg.data.masks import write_mask
from milseg.inference.model_folder import ModelSpec, save_model

COMMANDS = ("check", "train", "predict", "evaluate")
SPEC = ModelSpec(backbone="tiny", classes=("background", "cat", "dog"))
HEIGHT, WIDTH = 33, 41
TRAIN = "--backbone=tiny --weights=none --max-steps=1 --batch-size=2 --hold-out=0".split()  # noqa: SIM905


class Place:
    """Four photos, tags.csv, truth/ with a mask each, a model; and the four commands on them."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root, self.capsys = root, capsys
        self.photos, self.tags, self.truth = root / "photos", root / "tags.csv", root / "truth"
        for name in ("a", "b", "in/c", "in/d"):
            self.photo(f"{name}.png")
        self.write_tags("a,cat\nb,dog\nin/c,cat\nin/d,dog\n")
        save_model(root / "model", SPEC.build(), SPEC)

    def pixels(self, name: str) -> np.ndarray:
        random = np.random.default_rng(sum(name.encode()))
        return np.kron(random.integers(0, 256, (5, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8)[
            :HEIGHT, :WIDTH
        ]

    def photo(self, name: str, **options: Any) -> Path:
        """A photo, and its mask as it is shown."""
        path = self.photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.pixels(name)).save(path, **options)
        self.mask(name, (HEIGHT, WIDTH))
        return path

    def mask(self, name: str, size: tuple[int, int]) -> None:
        path = (self.truth / name).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = np.zeros(size, dtype=np.uint8)
        mask[size[0] // 3 :] = 1  # a mask of one class alone is refused: it tells no model from a constant
        write_mask(path, mask)

    def write_tags(self, rows: str) -> None:
        self.tags.write_text(f"image,tags\n{rows}", encoding="utf-8")

    def words(self, command: str, *, source: Path | None = None, tags: Path | None = None) -> list[str]:
        out, model = self.root / f"out-{command}", self.root / "model"
        given = ["--tags", str(tags or self.tags)] if source is None else []
        return [
            command,
            str(source or self.photos),
            *given,
            *{
                "check": ["--backbone", "tiny", "--max-steps", "1", "--json"],
                "train": [*TRAIN, "--out", str(out)],
                "predict": ["--model", str(model), "--out", str(out)],
                "evaluate": ["--model", str(model), "--truth", str(self.truth), "--json"],
            }[command],
        ]

    def run(self, command: str, *more: str, **given: Any) -> tuple[int, str, str]:
        self.capsys.readouterr()
        status = main([*self.words(command, **given), *more, "--device", "cpu"])
        return status, *self.capsys.readouterr()

    def files(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*") if path.is_file())

    def fails(self, command: str, *more: str, **given: Any) -> str:
        """The message of a mistake; no file was written."""
        before = self.files()
        status, out, err = self.run(command, *more, **given)
        assert status == 2, (out, err)
        assert "Traceback" not in err
        assert err.count("milseg: ") == 1, err
        assert self.files() == before
        return err

    def works(self, command: str, *more: str, **given: Any) -> tuple[str, str]:
        status, out, err = self.run(command, *more, **given)
        assert status == 0, err
        return out, err


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    return Place(tmp_path, capsys)


def bomb(path: Path, side: int = 11_000) -> Path:
    """A PNG of 121 million pixels in some hundred bytes: any decoding would be seen."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )
    return path


# 10: no tags


def test_photos_without_a_tag(place: Place) -> None:
    place.write_tags("a,cat\nb,dog\nin/c,\nin/d,\n")
    report = json.loads(place.works("check")[0])
    assert report["untagged"] == 2
    assert any(
        "2 photos without any tag kept as background-only bags, such as in/c" in n for n in report["notes"]
    )
    place.works("train")
    assert "2 photos without any tag" in (place.root / "out-train" / "README.md").read_text()
    place.works("predict")
    assert set(np.unique(open_mask(place.root / "out-predict" / "masks" / "in" / "c.png"))) == {0}
    assert json.loads(place.works("evaluate")[0])["photos"] == 4


# 11: unknown tags


@pytest.mark.parametrize("command", ["check", "train", "predict"])
def test_an_unknown_tag(place: Place, command: str) -> None:
    place.write_tags("a,cat\nb,dog\nin/c,dgo\nin/d,dog\n")
    more = [] if command == "predict" else ["--classes", "cat,dog"]
    told = place.fails(command, *more)
    assert f"{place.tags}, line 4: unknown tag 'dgo'; did you mean 'dog'" in told
    place.works(command, *more, "--ignore-unknown-tags")


def test_scoring_asks_no_tags(place: Place) -> None:
    place.write_tags("a,cat\nb,dog\nin/c,dgo\nin/d,dgo cat\n")
    assert json.loads(place.works("evaluate")[0])["photos"] == 4


# 12: a folder of a tag without a photo


def test_an_empty_folder_of_a_tag_keeps_its_place(place: Place) -> None:
    source = place.root / "pets"
    for tag, name in (("cat", "a"), ("dog", "b")):
        (source / tag).mkdir(parents=True)
        (place.photos / f"{name}.png").rename(source / tag / f"{name}.png")
    (source / "cow").mkdir()
    note = "1 classes without a photo, which keep their place: cow"
    report = json.loads(place.works("check", source=source)[0])
    assert report["tag_counts"] == {"cat": 1, "cow": 0, "dog": 1}
    assert note in report["notes"]
    place.works("train", source=source)
    labels = json.loads((place.root / "out-train" / "labels.json").read_text())
    assert labels == {"classes": ["background", "cat", "cow", "dog"]}
    found = json.loads(place.works("evaluate", source=source)[0])
    assert found["photos"] == 2


# 13: tables as programs write them


@pytest.mark.parametrize("command", COMMANDS)
def test_a_byte_order_mark_and_semicolons(place: Place, command: str) -> None:
    place.tags.write_bytes("\ufeffimage;tags\r\na.png;cat\r\nb.png;dog,cat\r\n".encode())
    out, err = place.works(command)
    if command == "check":
        assert json.loads(out)["tag_counts"] == {"cat": 2, "dog": 1}
    elif command == "evaluate":
        assert json.loads(out)["photos"] == 2
    elif command == "predict":
        assert "2 photos have no row" in err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"image,tags\na,cat\nb,caf\xe9\n", "line 3: byte 0xe9 is not UTF-8"),
        (b"image,tags\na,c\0t\n", "line 2: holds a NUL byte"),
        ("image,tags\na,cat\n".encode("utf-16-le"), "holds a NUL byte"),
        (b"PK\x03\x04", "an Excel workbook; save a workbook as CSV UTF-8"),
        (b"photo,label\na,cat\n", "line 1: the columns are 'photo', 'label'; expected"),
        (b'{"image": "a", "tags": ["cat"]}\n{"image": ', "line 2: not JSON"),
        (b"", "is empty"),
    ],
)
def test_tables_that_cannot_be_read(place: Place, command: str, data: bytes, words: str) -> None:
    place.tags.write_bytes(data)
    told = place.fails(command)
    assert str(place.tags) in told
    assert words in told


# 14 and 15: damaged photos, and those that would fill the memory


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-60]), "damaged or cut short"),
        (bomb, "11000 x 11000 = 121,000,000 pixels, more than the limit"),
    ],
)
def test_a_photo_that_cannot_be_read(
    place: Place, spoil: Callable[[Path], object], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place.photos / "b.png"
    spoil(path)
    data = path.read_bytes()
    report = json.loads(place.works("check")[0])
    assert report["unreadable"]["b"].startswith(reason)
    _, told = place.works("train")
    assert reason in told
    assert "b" in told
    _, told = place.works("predict")
    assert f"left out: {path}: {reason}" in told
    assert (place.root / "out-predict" / "masks" / "a.png").exists()
    assert f"{path}: {reason}" in (place.root / "out-predict" / "failed.csv").read_text()
    # A score of the other photos is another score, and the result says so.
    out, told = place.works("evaluate")
    assert f"left out: {path}: {reason}" in told
    assert json.loads(out)["photos"] == 3
    assert f"1 photos that cannot be read left out, such as {path}: {reason}" in out
    assert path.read_bytes() == data


# 16 and 17: pixel modes and orientations


@pytest.mark.parametrize("command", COMMANDS)
def test_odd_pixel_modes(place: Place, command: str) -> None:
    rows = []
    for i, mode in enumerate(("1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "animated")):
        name = f"odd{i}" + {"CMYK": ".jpg", "animated": ".gif"}.get(mode, ".png")
        image = Image.fromarray(place.pixels(name))
        if mode == "I;16":
            image = Image.fromarray(place.pixels(name)[..., 0].astype(np.uint16) * 257)
        elif mode != "animated":
            image = image.convert(mode)
        more = {"save_all": True, "append_images": [image.rotate(180)]} if mode == "animated" else {}
        image.save(place.photos / name, **more)
        place.mask(name, (HEIGHT, WIDTH))
        rows.append(f"{name},{('cat', 'dog')[i % 2]}\n")
    place.write_tags("".join(rows))
    out, err = place.works(command)
    if command == "check":
        assert json.loads(out)["unreadable"] == {}
        assert json.loads(out)["photos"] == 8
    elif command == "train":
        assert "left out" not in err
    elif command == "predict":
        masks = sorted((place.root / "out-predict" / "masks").glob("odd*.png"))
        assert [open_mask(mask).shape for mask in masks] == [(HEIGHT, WIDTH)] * 8
    else:
        assert json.loads(out)["photos"] == 8


@pytest.mark.parametrize("command", COMMANDS)
def test_orientations(place: Place, command: str) -> None:
    """Photos are 33 x 41 as shown; those of orientation 5 to 8 lie on their side in the file."""
    for i in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = i
        pixels = place.pixels("x")
        Image.fromarray(pixels if i < 5 else pixels.transpose(1, 0, 2)).save(
            place.photos / f"o{i}.png", exif=exif
        )
        place.mask(f"o{i}.png", (HEIGHT, WIDTH))
    place.write_tags("".join(f"o{i},{('cat', 'dog')[i % 2]}\n" for i in range(1, 9)))
    out, _ = place.works(command)
    if command == "check":
        sizes = json.loads(out)["sizes"]
        assert sizes["width"] == [WIDTH] * 3
        assert sizes["height"] == [HEIGHT] * 3
    elif command == "predict":
        masks = sorted((place.root / "out-predict" / "masks").glob("o*.png"))
        assert [open_mask(mask).shape for mask in masks] == [(HEIGHT, WIDTH)] * 8
    elif command == "evaluate":
        # A mask that lay as the file does would be of another size, and an error.
        assert json.loads(out)["photos"] == 8
        place.mask("o6.png", (WIDTH, HEIGHT))
        assert f"o6.png: mask of {HEIGHT} x {WIDTH} pixels for a photo of {WIDTH} x {HEIGHT}" in place.fails(
            command
        )


# 19: names that collide


@pytest.mark.parametrize("command", COMMANDS)
def test_one_stem_in_two_folders_is_fine_with_two_extensions_it_is_not(place: Place, command: str) -> None:
    place.photo("in/a.png")
    place.write_tags("a.png,cat\nb.png,dog\nin/a.png,dog\n")
    out, _ = place.works(command)
    if command == "evaluate":
        assert json.loads(out)["photos"] == 3
    elif command == "predict":
        for name in ("a.png", "in/a.png"):
            assert (place.root / "out-predict" / "masks" / name).is_file()
    elif command == "check":
        assert json.loads(out)["photos"] == 3
    place.photo("in/a.jpg")
    place.write_tags("a.png,cat\nin/a.jpg,dog\nin/a.png,dog\n")
    more = ["--overwrite"] if command in ("train", "predict") else []
    told = place.fails(command, *more)
    assert "in/a.jpg" in told
    assert "in/a.png" in told


# 20: folders that are in use


@pytest.mark.parametrize("command", ["train", "predict"])
def test_an_output_folder_that_holds_files(place: Place, command: str) -> None:
    out = place.root / f"out-{command}"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert f"{out}: already holds files; --resume" in place.fails(command)
    place.works(command, "--overwrite")
    assert (out / "mine.txt").read_text() == "mine"


# 23: paths that lead out


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tags.csv", "image,tags\n../secret.png,cat\n"),
        ("tags.csv", "image,cat\n/etc/secret.png,1\n"),
        ("tags.jsonl", '{"image": "in/../../secret.png", "tags": ["cat"]}\n'),
        (
            "tags.json",
            '{"images": [{"id": 1, "file_name": "../secret.png"}], "categories": [{"id": 1, "name": "cat"}], '
            '"annotations": [{"image_id": 1, "category_id": 1}]}',
        ),
        ("tags.json", '[{"data": {"image": "/data/local-files/?d=..%2Fsecret.png"}, "annotations": []}]'),
    ],
)
def test_paths_that_lead_out(place: Place, command: str, name: str, text: str) -> None:
    place.photo("../secret.png")
    (place.root / name).write_text(text)
    told = place.fails(command, tags=place.root / name)
    assert "leads out of the photos' folder" in told
    assert "secret.png" in told
    assert str(place.root / name) in told


@pytest.mark.parametrize("command", ["check", "train", "evaluate"])
def test_a_list_of_voc_that_leads_out(place: Place, command: str) -> None:
    home = place.root / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (home / folder).mkdir(parents=True)
    (place.photos / "a.png").rename(home / "JPEGImages" / "a.png")
    (home / "Annotations" / "a.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    (home / "ImageSets" / "Segmentation" / "val.txt").write_text("../../../secret\n")
    told = place.fails(command, "--split", "val", source=home)
    assert "val.txt, line 1: '../../../secret' is no photo id" in told
