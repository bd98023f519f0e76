"""Atomic writing: whole files or none, no leftovers, clear messages."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from milseg.cli import main
from milseg.errors import UserError
from milseg.utils.files import (
    atomic_path,
    check_writable,
    claim_folder,
    holds_files,
    no_empty_folder,
    refuse_existing,
    remove_halves,
    remove_leftovers,
    write_json,
    write_text,
)


@pytest.mark.parametrize("sync", [True, False])
def test_atomic_path_replaces_the_old_file(tmp_path: Path, sync: bool) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"old")
    with atomic_path(target, sync=sync) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_the_middle_leaves_the_old_file_and_no_temporary(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")

    def write() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("hal")
            raise error

    with pytest.raises(error):
        write()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_new_files_have_the_usual_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "x")
    (tmp_path / "b.txt").write_text("x")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


def test_a_full_disk_is_one_message_and_the_old_file_stays(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("hal")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"a\.txt: no space left"):
        write()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_missing_folder_is_the_users_mistake_but_other_failures_keep_their_type(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "none" / "a.txt", "x")
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        (tmp_path / "input").read_bytes()


def test_a_killed_process_leaves_the_old_file_and_its_leftover_can_be_removed(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    code = (
        "import sys, time; from pathlib import Path; from milseg.utils.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as t:\n"
        "    t.write_bytes(b'hal'); print('half', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline().strip() == b"half"
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=30)
    child.stdout.close()
    assert target.read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 2
    (tmp_path / ".b.1-2.tmp.bin").touch()
    assert remove_leftovers(target) == 1
    assert sorted(os.listdir(tmp_path)) == [".b.1-2.tmp.bin", "a.bin"]


def test_write_json_reads_back_and_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"name": "Köln", "values": [1, None]})
    assert path.read_text(encoding="utf-8").endswith("}\n")
    assert "Köln" in path.read_text(encoding="utf-8")
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "Köln", "values": [1, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text(encoding="utf-8"))["values"] == [1, None]


def test_refuse_existing(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "missing")
    refuse_existing(tmp_path)
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match="--overwrite"):
        refuse_existing(tmp_path)
    refuse_existing(tmp_path, overwrite=True)
    assert (tmp_path / "a").exists()
    with pytest.raises(UserError, match="a file"):
        refuse_existing(tmp_path / "a", overwrite=True)


def test_check_writable_makes_the_folder_and_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "x" / "y")
    assert os.listdir(tmp_path / "x" / "y") == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="choose another output folder"):
            check_writable(folder)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write everywhere"
)
def test_check_writable_in_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    with pytest.raises(UserError, match="Permission denied"):
        check_writable(folder)


def test_check_writable_names_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes) -> int:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UserError, match="Read-only file system"):
        check_writable(tmp_path)


def _mistake_after_claiming(out: Path, *, keep: str | None = None) -> None:
    with no_empty_folder(out):
        check_writable(out)
        if keep:
            (out / keep).touch()
        raise UserError("a bad tag")


def test_a_mistake_leaves_no_empty_folder(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "mine"
    with pytest.raises(UserError, match="a bad tag"):
        _mistake_after_claiming(out)
    assert os.listdir(tmp_path) == []
    with pytest.raises(UserError):
        _mistake_after_claiming(out, keep="train.yaml")
    assert os.listdir(out) == ["train.yaml"]
    out = tmp_path / "was there"
    out.mkdir()
    with pytest.raises(UserError):
        _mistake_after_claiming(out)
    assert out.is_dir()


def test_a_source_that_is_not_there_leaves_no_folder_behind(tmp_path: Path) -> None:
    out = tmp_path / "a" / "run"
    assert main(["train", str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    assert os.listdir(tmp_path) == []


def test_what_a_kill_left_behind_is_no_file_of_a_run(tmp_path: Path) -> None:
    """Killed while the trial file or the first record is written: the folder counts as empty, and is cleaned."""
    for name in (".trial.4711-0123abcd.tmp", ".train.12-89abcdef.tmp.yaml"):
        (tmp_path / name).touch()
    assert not holds_files(tmp_path)
    assert not holds_files(tmp_path / "missing")
    claim_folder(tmp_path, resume=False, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == [".train.12-89abcdef.tmp.yaml"]
    for name in (".hidden", "notes.tmp", ".a.tmp.yaml"):
        (tmp_path / name).touch()
        assert holds_files(tmp_path), name
        (tmp_path / name).unlink()


def test_a_synced_file_and_its_folder_are_flushed_in_that_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What no test can show by cutting the power: the content is on the disk before the name is."""
    done: list[str] = []
    flush, rename = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        flush(descriptor)

    def replace(source: str, target: str) -> None:
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_text(tmp_path / "a.txt", "a")
    assert done == ["file", "rename", "folder"]
    done.clear()
    with atomic_path(tmp_path / "b.txt", sync=False) as temporary:
        temporary.write_text("b")
    assert done == ["rename"]


def test_leftovers_are_counted_and_only_halves_go(tmp_path: Path) -> None:
    for name in (".a.1-0123abcd.tmp.bin", ".a.2-0123abcd.tmp.bin", "a.bin"):
        (tmp_path / name).touch()
    assert remove_leftovers(tmp_path / "a.bin") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    half = ".a.1-0123abcd.tmp.bin"
    for folder in ("mine", "other", "mine/other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / half).touch()
    remove_halves(tmp_path, but="other")  # of the folder itself, not of every folder of that name
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob(half))
    assert left == [f"other/{half}"]
    remove_halves(tmp_path, but="not there")
    assert not list(tmp_path.rglob(half))


@pytest.mark.parametrize(("resume", "overwrite"), [(True, False), (False, True)])
def test_a_folder_in_use_is_taken_when_told(tmp_path: Path, resume: bool, overwrite: bool) -> None:
    (tmp_path / "train.yaml").touch()
    with pytest.raises(UserError, match="already holds files"):
        claim_folder(tmp_path, resume=False, overwrite=False)
    claim_folder(tmp_path, resume=resume, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["train.yaml"]
