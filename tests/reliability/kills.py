"""`make kills`: SIGKILL at random moments, then go on; nothing may be lost, half-written or different.

    python tests/reliability/kills.py [--kills 50] [--seed 0] [train predict shard export]

The processes are real and so are the signals. One process loads torch and forks those that run the commands and are
killed, as loading it anew for each would take most of the time. Half of the moments are drawn evenly over the time
that an undisturbed run takes; the other half come when a temporary file appears, in the middle of a write.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml
from PIL import Image
from safetensors import safe_open

import milseg.commands.export
import milseg.commands.predict
import milseg.commands.shard
import milseg.commands.train
import milseg.data.shards.tar_index
from milseg.cli import main as milseg_main
from reliability.made import files_of, make_model, make_source, predict_words, train_words

Words = list[str]
CLOCK = {"seconds", "images_per_second"}
PATIENCE = 600  # seconds for one command


@dataclass(frozen=True, kw_only=True)
class Target:
    """A command to be killed.

    Attributes:
        words: of the command, from the folder with the photos and the name of the output.
        again: what is added to go on.
        every: after how many kills it is run to its end; each time the last before that is killed too.
        keeps: an output that was there before, which is as it was or the new one, never in between.
    """

    words: Callable[[Path, str], Words]
    again: tuple[str, ...] = ("--resume",)
    every: int = 1
    keeps: Callable[[Path, str], Path] | None = None


def shard_words(place: Path, out: str) -> Words:
    tags = ["--tags", str(place / "tags.csv")]
    return ["shard", str(place / "photos"), *tags, "--out", str(place / out), "--photos-per-shard", "3"]


def export_words(place: Path, out: str) -> Words:
    return ["export", "--model", str(place / "model"), "--out", str(place / out / "model.pt2"), "--overwrite"]


TARGETS = {
    "train": Target(words=train_words),
    "predict": Target(words=predict_words),
    "shard": Target(words=shard_words),
    "export": Target(
        words=export_words, again=(), every=5, keeps=lambda place, out: place / out / "model.pt2"
    ),
}
PHOTOS = {"train": 8, "predict": 24, "shard": 60, "export": 1}


# whether files are whole


def _lines(path: Path) -> None:
    # The last line of a record may be cut: the run that goes on drops it.
    for line in path.read_bytes().split(b"\n")[:-1]:
        json.loads(line)


def _picture(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def _tensors(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            file.get_tensor(name)


def _archive(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None


def _tar(path: Path) -> None:
    assert list(milseg.data.shards.tar_index.tar_members(path, str(path)))


WHOLE: dict[str, Callable[[Path], object]] = {
    ".jsonl": _lines,
    ".json": lambda path: json.loads(path.read_bytes()),
    ".yaml": lambda path: yaml.safe_load(path.read_bytes()),
    ".png": _picture,
    ".jpg": _picture,
    ".safetensors": _tensors,
    ".npz": _archive,
    ".zip": _archive,
    ".pt2": _archive,
    ".tar": _tar,
}


def half_written(folder: Path) -> list[str]:
    """The files under their final names that cannot be read."""
    broken = []
    for path in sorted(folder.rglob("*")):
        check = WHOLE.get(path.suffix)
        if path.is_file() and check and not is_temporary(path):
            try:
                check(path)
            except Exception as error:
                broken.append(f"{path.name}: {type(error).__name__}: {error}")
    return broken


def is_temporary(path: Path) -> bool:
    return any(part.startswith(".") and (".tmp" in part or "milseg-" in part) for part in path.parts)


def comparable(folder: Path) -> dict[str, bytes]:
    """All files, without what the clock decides."""
    found = files_of(folder)
    for name, data in found.items():
        if name.endswith(".pt2"):  # an archive, whose times and order are the clock's
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                parts = sorted((part.filename.partition("/")[2], part.CRC) for part in archive.infolist())
            found[name] = repr(parts).encode()
        if name.endswith("metrics.jsonl"):
            rows = [json.loads(line) for line in data.splitlines()]
            found[name] = json.dumps(
                [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]
            ).encode()
        elif name.endswith("README.md"):
            found[name] = re.sub(rb"[\d.,]+ (second|minute|hour)s?", b"TIME", data)
    return found


# processes


def begin(words: Words, log: Path) -> int:
    """Fork a process that runs the command; its number."""
    child = os.fork()
    if child:
        return child
    status = 99
    try:
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        status = milseg_main(words)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def finish(words: Words, log: Path) -> float:
    """Run the command to its end; the seconds it took."""
    began = time.monotonic()
    child = begin(words, log)
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() - began > PATIENCE:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    status = os.waitstatus_to_exitcode(ended[1])
    assert status == 0, f"{' '.join(words)}: status {status}\n{log.read_text(errors='replace')[-3000:]}"
    return time.monotonic() - began


def temporaries(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob(".*") if is_temporary(path))


def killed(words: Words, log: Path, out: Path, *, after: float | None, writes: int) -> bool:
    """Run the command and kill it after some seconds, or at its so many'th temporary file; False: it was quicker."""
    child = begin(words, log)
    began, seen = time.monotonic(), set(temporaries(out)) if out.exists() else set()
    met = 0
    while not os.waitpid(child, os.WNOHANG)[0]:
        if after is not None:
            due = time.monotonic() - began >= after
        else:
            new = set(temporaries(out)) - seen if out.exists() else set()
            seen |= new
            met += len(new)
            due = met >= writes
        if due or time.monotonic() - began > PATIENCE:
            os.kill(child, signal.SIGKILL)
            return os.WIFSIGNALED(os.waitpid(child, 0)[1])
        time.sleep(0.0005)
    return False


# the test


@dataclass(kw_only=True)
class Count:
    kills: int = 0
    in_a_write: int = 0
    finished: int = 0
    wrong: list[str] = field(default_factory=list)


def kill_often(name: str, place: Path, kills: int, seed: int) -> Count:
    """Kill the command so many times, each time look at what is there, and go on to its end and compare."""
    target, log, draws, count = TARGETS[name], place / "log", random.Random(seed), Count()
    make_source(place, PHOTOS[name])
    make_model(place / "model")
    (place / "whole").mkdir(exist_ok=True)
    seconds = finish(target.words(place, "whole"), log)
    whole = comparable(place / "whole")
    writes = max(1, len(whole))
    number = 0
    while count.kills < kills:
        number += 1
        out = f"run-{number}"
        folder, kept = place / out, None
        folder.mkdir()
        if target.keeps is not None:
            kept = target.keeps(place, out)
            kept.write_bytes(b"the old one")
        words = target.words(place, out)
        hits = 0
        while count.kills < kills and hits < target.every + draws.randrange(2):
            after = draws.uniform(0, seconds) if draws.random() < 0.5 else None
            if not killed(words, log, folder, after=after, writes=draws.randint(1, writes)):
                break
            hits += 1
            count.kills += 1
            count.in_a_write += bool(list(temporaries(folder)))
            if kept is None:
                count.wrong += [f"kill {count.kills}: {told}" for told in half_written(folder)]
                words = [*target.words(place, out), *target.again]
            elif kept.read_bytes() not in (b"the old one", whole[kept.name]):
                count.wrong.append(f"kill {count.kills}: {kept.name} is neither the old file nor the new one")
        try:
            finish([*target.words(place, out), *target.again], log)
        except AssertionError as error:
            count.wrong.append(f"run {number}: {error}")
            continue
        count.finished += 1
        found = comparable(folder)
        differing = sorted(key for key in {*found, *whole} if found.get(key) != whole.get(key))
        count.wrong += [f"run {number}: {key} is not what an undisturbed run writes" for key in differing]
        count.wrong += [f"run {number}: {path.name} was left" for path in temporaries(folder)]
    return count


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help="of train, predict, shard, export")
    parser.add_argument("--kills", type=int, default=50, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    failed = 0
    for name in options.targets:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="milseg-kills-") as folder:
            count = kill_often(name, Path(folder), options.kills, options.seed)
        for told in count.wrong:
            print(f"  {told}")
        failed += bool(count.wrong)
        print(
            f"{name}: {count.kills} kills, {count.in_a_write} of them in the middle of a write; {count.finished} runs "
            f"went on to the end, {len(count.wrong)} faults; {time.monotonic() - began:.0f} s",
            flush=True,
        )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
