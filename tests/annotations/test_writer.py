"""What all writers share: names, resuming, memory, nothing half written."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milseg.annotations import FORMATS, open_writer, writer_class
from milseg.annotations.writer import Ledger, Writer, check_name, check_photos, read_entry
from milseg.errors import UserError

from .helpers import CLASSES, mask_of, prediction

# The files that cover a whole run.
FINAL = {
    "coco": ["coco.json"],
    "labelstudio": ["labelstudio.json", "labelstudio_config.xml"],
    "cvat": ["cvat.zip"],
    "yolo": ["yolo/data.yaml"],
    "png": [],
    "npz": [],
}
MASK = mask_of([0, 1, 1], [255, 2, 0])


def files_of(out: Path) -> dict[str, bytes]:
    """Every file that a user sees, and its bytes (the archive inside a .npz carries no time)."""
    return {
        p.relative_to(out).as_posix(): p.read_bytes()
        for p in sorted(out.rglob("*"))
        if p.is_file() and ".parts" not in p.parts
    }


def test_the_table_names_every_format() -> None:
    assert list(FORMATS) == ["png", "coco", "labelstudio", "cvat", "yolo", "npz"]
    for name, row in FORMATS.items():
        assert writer_class(name).format == name
        assert row.about
    assert [name for name in FORMATS if writer_class(name).needs_scores] == ["npz"]


def test_an_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'yolo'"):
        open_writer("yolov8", tmp_path, CLASSES)


@pytest.mark.parametrize("name", FORMATS)
def test_any_photo_any_mask(tmp_path: Path, name: str) -> None:
    everything = {
        "one": mask_of([1]),
        "empty": np.zeros((4, 5), dtype=np.uint8),
        "full": np.full((4, 5), 2, dtype=np.uint8),
        "void": np.full((4, 5), 255, dtype=np.uint8),
        "deep/er/name with spaces ü": MASK,
    }
    with open_writer(name, tmp_path, CLASSES) as writer:
        assert all(writer.add(prediction(key, mask)) for key, mask in everything.items())
    assert dict(writer.done) == {key: f"{key}.jpg" for key in everything}
    assert all((tmp_path / file).is_file() for file in FINAL[name])
    assert not [p for p in tmp_path.rglob("*") if ".tmp" in p.name]


@pytest.mark.parametrize("name", FORMATS)
def test_no_photos_at_all(tmp_path: Path, name: str) -> None:
    open_writer(name, tmp_path, CLASSES).close()
    assert all((tmp_path / file).is_file() for file in FINAL[name])


@pytest.mark.parametrize("name", FORMATS)
def test_the_most_classes_there_can_be(tmp_path: Path, name: str) -> None:
    classes = ["background", *(f"class {i}" for i in range(1, 255))]
    mask = np.arange(256, dtype=np.uint8).reshape(16, 16)
    with open_writer(name, tmp_path, classes) as writer:
        assert writer.add(prediction("a", mask, scores=np.zeros((255, 1, 1)), tags=[]))
        assert writer.present(mask) == list(range(1, 255))
        assert len(writer.labels) == 254


@pytest.mark.parametrize("name", FORMATS)
def test_a_photo_is_written_once(tmp_path: Path, name: str) -> None:
    with open_writer(name, tmp_path, CLASSES) as writer:
        assert writer.add(prediction("a", MASK))
        assert not writer.add(prediction("a", np.zeros_like(MASK)))
    before = files_of(tmp_path)
    writer.close()
    assert files_of(tmp_path) == before
    assert len(writer.done) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_two_photos_of_one_name_are_an_error(tmp_path: Path, name: str) -> None:
    writer = open_writer(name, tmp_path, CLASSES)
    writer.add(prediction("x/a", MASK))
    with pytest.raises(UserError, match=r"x/a\.jpg and x/a\.png: both would be written as 'x/a'; rename"):
        writer.add(prediction("x/a", MASK, photo_file="x/a.png"))
    writer.close()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("cut", [0, 1, 25])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, name: str, cut: int) -> None:
    names = [f"{i % 2}/{i}" for i in range(5)]
    rng = np.random.default_rng(0)
    run = [prediction(n, rng.choice(np.array([0, 1, 2, 255], dtype=np.uint8), (6, 7))) for n in names]
    with open_writer(name, tmp_path / "whole", CLASSES) as writer:
        for one in run:
            writer.add(one)
    out = tmp_path / "stopped"
    first = open_writer(name, out, CLASSES)
    for one in run[:3]:
        first.add(one)
    # Killed while it wrote the third photo's line, or just after it.
    ledger = out / ".parts" / f"{name}.jsonl"
    ledger.write_bytes(ledger.read_bytes()[: -cut or None])
    with open_writer(name, out, CLASSES, resume=True) as second:
        assert list(second.done) == (names[:2] if cut else names[:3])
        assert [second.add(one) for one in run] == [False, False, bool(cut), True, True]
    assert files_of(out) == files_of(tmp_path / "whole")


@pytest.mark.parametrize("name", FORMATS)
def test_a_finished_run_takes_more_photos(tmp_path: Path, name: str) -> None:
    with open_writer(name, tmp_path / "a", CLASSES) as writer:
        writer.add(prediction("one", MASK))
    with open_writer(name, tmp_path / "a", CLASSES, resume=True) as writer:
        assert not writer.add(prediction("one", MASK))
        assert writer.add(prediction("two", MASK))
    with open_writer(name, tmp_path / "b", CLASSES) as writer:
        writer.add(prediction("one", MASK))
        writer.add(prediction("two", MASK))
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_without_resume_nothing_of_the_old_run_is_left_in_the_new_file(tmp_path: Path) -> None:
    with open_writer("coco", tmp_path, CLASSES) as writer:
        writer.add(prediction("old", MASK))
    with open_writer("coco", tmp_path, CLASSES) as writer:
        writer.add(prediction("new", MASK))
    images = json.loads((tmp_path / "coco.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["new.jpg"]


@pytest.mark.parametrize(
    ("classes", "options"), [(("background", "dog", "cat"), {}), (CLASSES, {"regions": True})]
)
def test_resuming_with_other_settings_is_refused(
    tmp_path: Path, classes: tuple[str, ...], options: dict[str, Any]
) -> None:
    open_writer("coco", tmp_path, CLASSES).close()
    with pytest.raises(UserError, match="had other classes or options"):
        open_writer("coco", tmp_path, classes, resume=True, **options)


def test_resuming_where_nothing_was_begun_starts_anew(tmp_path: Path) -> None:
    open_writer("coco", tmp_path, CLASSES, resume=True).close()
    (tmp_path / ".parts" / "coco.jsonl").write_bytes(b'{"form')
    with open_writer("coco", tmp_path, CLASSES, resume=True) as writer:
        assert writer.add(prediction("a", MASK))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_middle_leaves_no_final_file(
    tmp_path: Path, name: str, error: type[BaseException]
) -> None:
    def run() -> None:
        with open_writer(name, tmp_path, CLASSES) as writer:
            writer.add(prediction("a", MASK))
            raise error

    with pytest.raises(error):
        run()
    assert not [file for file in FINAL[name] if (tmp_path / file).exists()]


@pytest.mark.parametrize("name", ["coco", "labelstudio", "cvat"])
def test_an_exception_while_closing_leaves_the_old_file(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_writer(name, tmp_path, CLASSES) as writer:
        writer.add(prediction("a", MASK))
    before = files_of(tmp_path)
    writer = open_writer(name, tmp_path, CLASSES, resume=True)
    writer.add(prediction("b", MASK))
    entries = iter(writer._ledger)

    def broken(self: object) -> Any:
        yield next(entries)
        raise RuntimeError("in the middle")

    monkeypatch.setattr(type(writer._ledger), "__iter__", broken)
    with pytest.raises(RuntimeError, match="in the middle"):
        writer.close()
    assert files_of(tmp_path) == before


GROWTH = """
import gc, sys, tracemalloc
from pathlib import Path
import numpy as np
from annotations.helpers import CLASSES, prediction
from milseg.annotations import open_writer

name, out, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
mask = np.zeros((64, 64), dtype=np.uint8)
mask[10:50, 20:30] = 1
tracemalloc.start()
with open_writer(name, out, CLASSES) as writer:
    for i in range(count):
        writer.add(prediction(f"{i:06d}", mask.copy()))
        if i == count // 2:
            gc.collect()
            at_half = tracemalloc.get_traced_memory()[0]
    gc.collect()  # numpy's archives are in reference cycles until they are collected
    grown = tracemalloc.get_traced_memory()[0] - at_half
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
closing = tracemalloc.get_traced_memory()[1] - before
print(grown, closing)
"""


@pytest.mark.parametrize("name", FORMATS)
def test_memory_stays_flat(tmp_path: Path, name: str) -> None:
    """In a process of its own: what other tests leave in theirs is not the writers' growth."""
    count = 2000 if name in ("coco", "labelstudio") else 300
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, name, str(tmp_path), str(count)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    grown, closing = map(int, done.stdout.split())
    # Names only: some 300 bytes a photo. Each mask alone is 4096.
    assert grown < 600 * (count // 2)
    # The final file is put together a photo at a time; an archive keeps its table of contents.
    assert closing < (1500 * count if name == "cvat" else 300_000)


@pytest.mark.parametrize(
    "bad",
    [
        "", ".", "..", "../a", "a/../b", "/a", "a//b", "a/", "./a", "..\\a", "a\\..\\b", "\\a", "C:\\a",
        "C:a", "\\\\host\\share\\a", "a\nb", "a\0b", "a\x7f", "\udcff", "a" * 221, "ü" * 111,
    ],
)  # fmt: skip
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, bad: str) -> None:
    with pytest.raises(UserError):
        check_name(bad)
    out = tmp_path / "in" / "out"
    for name in FORMATS:
        with open_writer(name, out, CLASSES) as writer:
            before = files_of(tmp_path)
            with pytest.raises(UserError):
                writer.add(prediction(bad, MASK, photo_file="a.jpg"))
            with pytest.raises(UserError):
                writer.add(prediction("a", MASK, photo_file=bad))
            assert files_of(tmp_path) == before
            assert not writer.done


@pytest.mark.parametrize("good", ["a", "a/b", "a b", "..a", "a..", "...", "é/ü", "a.b.c", "#1", "a" * 220])
def test_other_names_are_fine(good: str) -> None:
    check_name(good)


def test_a_run_is_checked_before_it_starts() -> None:
    check_photos([("a", "a.jpg"), ("b", "b.jpg"), ("a", "a.jpg")])
    with pytest.raises(UserError, match=r"a\.jpg and a\.png"):
        check_photos([("a", "a.jpg"), ("b", "b.jpg"), ("a", "a.png")])
    with pytest.raises(UserError, match="leave the format cvat out"):
        check_photos([("#a", "#a.jpg")], [writer_class("coco"), writer_class("cvat")])
    check_photos([("#a", "#a.jpg")], [writer_class("coco")])


@pytest.mark.parametrize(
    "classes", [[], ["a", "a"], ["a", " "], ["a\nb"], ["a\0"], ["a\x7f"], [str(i) for i in range(256)]]
)
def test_class_names_that_cannot_be(tmp_path: Path, classes: list[str]) -> None:
    with pytest.raises(UserError):
        open_writer("coco", tmp_path, classes)


@pytest.mark.parametrize(
    "changes",
    [
        {"mask": mask_of([0, 3])},
        {"mask": mask_of([0, 254])},
        {"mask": np.zeros((1, 2))},
        {"mask": mask_of([0, 0, 0])},
        {"confidence": float("nan")},
        {"tags": [("cat", float("inf"))]},
    ],
)
def test_predictions_that_cannot_be(tmp_path: Path, changes: dict[str, Any]) -> None:
    with open_writer("coco", tmp_path, CLASSES) as writer:
        with pytest.raises(ValueError, match=r"^a: "):
            writer.add(prediction("a", **{"mask": mask_of([0, 1]), "size": (1, 2), **changes}))
        assert not writer.done


def test_a_full_disk_is_said_and_the_record_stays_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer("coco", tmp_path, CLASSES)
    writer.add(prediction("a", MASK))
    real = writer._ledger._file
    before = writer._ledger.path.read_bytes()

    class Full:
        """Takes half of the line; then there is no space."""

        truncate, seek = real.truncate, real.seek

        def write(self, line: bytes) -> int:
            return real.write(line[: len(line) // 2])

    monkeypatch.setattr(writer._ledger, "_file", Full())
    with pytest.raises(UserError, match=r"No space left.*then resume"):
        writer.add(prediction("b", MASK))
    assert list(writer.done) == ["a"]
    assert writer._ledger.path.read_bytes() == before
    monkeypatch.undo()
    assert writer.add(prediction("b", MASK))
    writer.close()
    assert len(json.loads((tmp_path / "coco.json").read_text())["images"]) == 2


def test_a_folder_that_cannot_be_written_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write there"):
        open_writer("png", tmp_path / "file", CLASSES)


def test_void_is_never_present(tmp_path: Path) -> None:
    writer: Writer = open_writer("coco", tmp_path, CLASSES)
    assert writer.present(mask_of([255, 0, 2])) == [2]
    scene = open_writer("yolo", tmp_path, ["sky", "grass"])
    assert (scene.first_label, scene.labels) == (0, ("sky", "grass"))
    assert scene.present(mask_of([255, 0])) == [0]
    writer.close()
    scene.close()


def test_a_ledger_whose_first_line_was_cut_starts_anew(tmp_path: Path) -> None:
    header = {"classes": ["a", "b"]}
    whole = tmp_path / "whole.jsonl"
    Ledger(whole, header, resume=False).close()
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(whole.read_bytes()[:-3])
    Ledger(cut, header, resume=True).close()
    assert cut.read_bytes() == whole.read_bytes()


def test_the_half_line_of_a_stopped_run_is_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    ledger = Ledger(path, {}, resume=False)
    ledger.append("köln", "köln.jpg", [1])
    ledger.close()
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"name": "' + b"x" * 500)
    again = Ledger(path, {}, resume=True)
    assert again.names == {"köln": "köln.jpg"}
    again.close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("place", [0, 1])
def test_a_run_is_checked_for_both_names_of_a_photo(place: int) -> None:
    names = ["a", "a.jpg"]
    names[place] = "../a"
    with pytest.raises(UserError, match=r"\.\./a"):
        check_photos([(names[0], names[1])])


def test_what_follows_a_damaged_line_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    ledger = Ledger(path, {}, resume=False)
    ledger.append("a", "a.jpg", None)
    whole = path.read_bytes()
    ledger.append("b", "b.jpg", None)
    ledger.append("c", "c.jpg", None)
    ledger.close()
    path.write_bytes(path.read_bytes().replace(b'"name":"b"', b'"name":"b '))
    again = Ledger(path, {}, resume=True)
    again.close()
    assert again.names == {"a": "a.jpg"}
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line",
    [
        b'{"name": "a", "photo_file": "a.jpg"}',
        b'{"name": 1, "photo_file": "a.jpg"}\n',
        b'{"name": "a", "photo_file": null}\n',
        b'{"name": "a"}\n',
        b"[]\n",
        b'{"name": "a\n',
    ],
)
def test_lines_that_are_no_entry(line: bytes) -> None:
    assert read_entry(line) is None


def test_a_record_that_json_has_no_word_for_is_not_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "a.jsonl", {}, resume=False)
    with pytest.raises(ValueError, match="JSON"):
        ledger.append("a", "a.jpg", {"score": float("nan")})
    ledger.close()
    assert (tmp_path / "a.jsonl").read_text() == "{}\n"
    assert not ledger.names
