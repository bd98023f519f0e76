"""Processes that train as one: real ones, each a Python of its own, on the CPU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from milseg import cli
from milseg.config import TrainConfig
from milseg.data.bags import Bag, BagSet
from milseg.data.loader import Loader
from milseg.distributed import collectives, preemption
from milseg.errors import UserError
from milseg.models.backbones import build_fcn
from milseg.training.trainer import fit

CLASSES = ("background", "red", "blue")
PATIENCE = 600  # seconds; a hang is a failure, a busy machine is none
pytestmark = pytest.mark.timeout(3 * PATIENCE)
STARTED: list[subprocess.Popen[str]] = []
BASE = TrainConfig(max_steps=3, batch_size=5, learning_rate=1e-2, augment="flip", checkpoint_every=2)
# name -> (backbone, settings): photos of several sizes, 5 bags a step for 1, 2 or 3 processes.
CASES: dict[str, tuple[str, TrainConfig]] = {
    "max": ("tiny", replace(BASE, max_gradient=1.0)),
    "accumulate": ("tiny", replace(BASE, max_gradient=1.0, accumulate=2)),
    "own masks": ("tiny", replace(BASE, mask_weight=0.5, rule_weight=0.5)),
    "learned": ("tiny", replace(BASE, rule="attention(hidden=4)")),
    "looks across bags": ("tiny", replace(BASE, rule="max+consistency(weight=300)")),
    "looks across bags and learned": (
        "tiny",
        replace(BASE, rule="attention(hidden=4)+consistency(weight=300)"),
    ),
    "dropout": ("squeezenet1_0", replace(BASE, max_steps=2, learning_rate=1e-3)),
    "standardised": ("tiny", replace(BASE, max_gradient=1.0, standardize_features=True)),
}


def toy(count: int = 7) -> BagSet:
    """Grey photos of several sizes with a red or a blue square."""
    random = np.random.default_rng(0)
    bags = []
    for i in range(count):
        number = 1 + i % 2
        photo = random.integers(100, 140, (34 + 3 * i, 50 - 2 * i, 3)).astype(np.uint8)
        photo[8:26, 6:24] = (230, 20, 20) if number == 1 else (20, 20, 230)
        truth = np.zeros(photo.shape[:2], dtype=np.uint8)
        truth[8:26, 6:24] = number
        tags = (1, int(number == 1), int(number == 2))
        bags.append(Bag(name=f"b{i}", photo=photo, tags=tags, mask=truth))
    return BagSet(name="toy", classes=CLASSES, bags=tuple(bags), tags_from="generator")


# what the processes run


def train_case(name: str, out: Path, **more: Any) -> list[dict[str, float]]:
    """Train, and save what came of it beside the folder."""
    backbone, config = CASES[name]
    model = build_fcn(backbone, 3, seed=collectives.rank())  # all take over the first one's weights
    history = fit(model, toy(), config, out=out / name, progress=False, **more)
    if collectives.is_main():
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out / f"{name}.safetensors")
    return history


def all_cases(folder: str) -> None:
    """Each case; then one that SIGUSR1 to the last process stops in its second step, and that goes on."""
    out = Path(folder)

    def ask(step: int, loss: float) -> None:
        if step == 1 and collectives.rank() == collectives.size() - 1:
            os.kill(os.getpid(), signal.SIGUSR1)

    with collectives.process_group("cpu"):
        for name in CASES:
            train_case(name, out)
        try:
            with preemption.heeding():
                train_case("max", out / "stopped", on_step=ask)
        except preemption.Stopped as stop:
            told = str(stop)
            if collectives.is_main():
                shutil.copytree(out / "stopped" / "max", out / "kept" / "max")
        steps: list[int] = []
        train_case("max", out / "stopped", resume=True, on_step=lambda step, _: steps.append(step))
        found = collectives.gathered((told.replace(str(out), ""), steps))
    if os.environ["RANK"] == "0":
        (out / "told.json").write_text(json.dumps(found))


def fail_in_training(kind: str, *words: str) -> None:
    """`milseg train`, whose second process meets a mistake (or a bug) in the third step."""
    batches = Loader.batches

    def failing(self: Loader, start: int) -> Any:
        for number, batch in enumerate(batches(self, start)):
            if collectives.rank() == 1 and number == 2:
                yield UserError("photo.jpg: went away") if kind == "mistake" else ZeroDivisionError("a bug")
            else:
                yield batch

    Loader.batches = failing  # type: ignore[method-assign]
    raise SystemExit(cli.main(list(words)))


def watched(log: str, *words: str) -> None:
    """`milseg train`, and a list of the files that this process opened for writing, renamed or removed."""
    paths: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | Path):
            mode, flags = arguments[1], arguments[2]
            if (mode and set(mode) & set("wax+")) or (not mode and flags & (os.O_WRONLY | os.O_RDWR)):
                paths.append(str(arguments[0]))
        elif event in ("os.rename", "os.remove"):
            paths.append(str(arguments[0]))

    sys.addaudithook(hook)
    status = cli.main(list(words))
    Path(log).write_text(json.dumps(paths))
    raise SystemExit(status)


# starting them


def start(
    work: Callable[..., None], *each: list[str], folder: Path | None = None
) -> list[subprocess.Popen[str]]:
    """A process for each list of words, with torchrun's variables alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_collectives as t; "
    processes = []
    for number, words in enumerate(each):
        variables = {
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": str(len(each)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", f"{code}t.{work.__name__}(*sys.argv[1:])", *words]
        processes.append(opened(command, variables, folder))
    return processes


def opened(
    command: list[str], variables: dict[str, str], folder: Path | None = None
) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """A test that failed leaves no process behind; torchrun takes its own with it."""
    yield
    for process in STARTED:
        process.terminate()
        process.communicate()
    STARTED.clear()


def ended(processes: list[subprocess.Popen[str]]) -> tuple[list[int], str, str]:
    """Exit statuses and what all of them said; a hang is killed and fails."""
    try:
        told = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.terminate()
    return [p.returncode for p in processes], "".join(t[0] for t in told), "".join(t[1] for t in told)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Photos on the disk, with their tags."""
    (tmp_path / "photos").mkdir()
    rows = ["image,tags\n"]
    for i, bag in enumerate(toy().bags):
        assert isinstance(bag.photo, np.ndarray)
        Image.fromarray(bag.photo).save(tmp_path / "photos" / f"p{i}.png")
        rows.append(f"p{i}.png,{CLASSES[1 + i % 2]}\n")
    (tmp_path / "tags.csv").write_text("".join(rows))
    (tmp_path / "slow.py").write_text(
        "import time\nfrom milseg import mil_loss\n\n\ndef rule(scores, tags, valid, **_):\n"
        "    time.sleep(0.1)\n    return mil_loss(scores, tags, valid)\n"
    )
    return tmp_path


def words(source: Path, out: str, *more: str) -> list[str]:
    return (
        f"train {source / 'photos'} --tags {source / 'tags.csv'} --out {source / out} --backbone tiny --weights none "
        "--batch-size 3 --device cpu --recipe paper --hold-out 0.3 --learning-rate 0.01 --select-every 100"
    ).split() + list(more)


def assert_same(one: Path, other: Path) -> None:
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


# equal to one process


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    for name in CASES:
        train_case(name, out)
    return out


@pytest.fixture(scope="module", params=[2, 3])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases in 2 and in 3 processes."""
    out = tmp_path_factory.mktemp("together")
    statuses, _, errors = ended(start(all_cases, *[[str(out)]] * request.param))
    assert statuses == [0] * request.param, errors
    return out


def assert_near(one: Path, other: Path) -> None:
    left, right = load_file(one), load_file(other)
    assert left.keys() == right.keys()
    for key in left:
        # The consistency's weight makes rounding 300 times larger.
        torch.testing.assert_close(left[key], right[key], rtol=1e-4, atol=1e-5, msg=f"{one}: {key}")


def test_processes_give_what_one_gives(together: Path, alone: Path) -> None:
    """5 bags for 2 or 3 processes, photos of several sizes; also learned rules, rules across bags and dropout."""
    for name in CASES:
        np.testing.assert_allclose(losses(together / name), losses(alone / name), rtol=2e-5, err_msg=name)
        for kind in (f"{name}.safetensors", f"{name}/checkpoint.safetensors"):
            assert_near(together / kind, alone / kind)
        assert len(losses(together / name)) == CASES[name][1].max_steps  # one process wrote them


def test_the_cases_are_told_apart(alone: Path) -> None:
    """What the test above compares depends on what it is about."""
    assert losses(alone / "max") == pytest.approx(losses(alone / "accumulate"), rel=1e-5)
    backbone, config = CASES["looks across bags"]
    config = replace(config, rule="max+consistency(weight=1e-9)", max_steps=1)
    [without] = fit(build_fcn(backbone, 3, seed=0), toy(), config, progress=False)
    assert losses(alone / "looks across bags")[0] > without["loss"] + 5e-4


def test_a_signal_to_one_process_stops_all_at_the_same_step(
    together: Path, alone: Path, tmp_path: Path
) -> None:
    told = json.loads((together / "told.json").read_text())
    assert all(words == told[0] for words in told)
    assert told[0][0].startswith(
        "stopped by a signal after 2 of 3 steps; they are in /stopped/max/checkpoint.safetensors"
    )
    assert told[0][1] == [2]
    assert losses(together / "stopped" / "max") == losses(together / "max")
    for kind in ("max.safetensors", "max/checkpoint.safetensors"):
        assert_same(together / "stopped" / kind, together / kind)
    # What several processes left after the second step, one takes to the end.
    shutil.copytree(together / "kept" / "max", tmp_path / "max")
    train_case("max", tmp_path, resume=True)
    np.testing.assert_allclose(losses(tmp_path / "max"), losses(alone / "max"), rtol=2e-5)
    assert_near(tmp_path / "max.safetensors", alone / "max.safetensors")


# the command


def test_torchrun_stopped_in_a_round_and_resumed_is_bit_for_bit_the_same(source: Path) -> None:
    """SIGTERM to torchrun in the middle of an epoch of the round; then --resume. And one process alone writes, but for
    its share of the masks.
    """
    settings = ("--rule", "slow:rule", "--rounds", "1", "--max-steps", "12")
    logs = [source / f"log{number}.json" for number in range(2)]
    whole = start(watched, *[[str(log), *words(source, "whole", *settings)] for log in logs], folder=source)
    statuses, told, errors = ended(whole)
    assert statuses == [0, 0], errors
    assert told.count("The model is in") == 1
    assert_one_wrote(source / "whole", logs)

    def torchrun(out: str, *more: str) -> subprocess.Popen[str]:
        arguments = words(source, out, *settings, *more)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return opened([*launcher, "-m", "milseg", *arguments], {"OMP_NUM_THREADS": "1"}, source)

    stopped = torchrun("halves")
    until = time.monotonic() + PATIENCE
    metrics = source / "halves" / "rounds" / "1" / "metrics.jsonl"
    while time.monotonic() < until and not (metrics.exists() and metrics.read_text().count("\n") >= 1):
        time.sleep(0.02)
    stopped.send_signal(signal.SIGTERM)
    statuses, _, errors = ended([stopped])
    assert statuses != [0]
    assert errors.count("the same command with --resume goes on") == 1, errors
    done = len(losses(source / "halves" / "rounds" / "1"))
    assert 0 < done < len(losses(source / "whole" / "rounds" / "1"))
    assert not (source / "halves" / "README.md").exists()

    statuses, _, errors = ended([torchrun("halves", "--resume")])
    assert statuses == [0], errors
    for name in ("checkpoint.safetensors", "rounds/1/checkpoint.safetensors", "model.safetensors"):
        assert_same(source / "halves" / name, source / "whole" / name)
    masks = sorted(path.name for path in (source / "whole" / "pseudo-labels" / "round-1").iterdir())
    assert len(masks) == 5
    for name in masks:
        where = Path("pseudo-labels") / "round-1" / name
        assert (source / "whole" / where).read_bytes() == (source / "halves" / where).read_bytes()


@pytest.mark.parametrize(
    ("kind", "status", "told"), [("mistake", 2, "went away"), ("bug", 1, "ZeroDivisionError: a bug")]
)
def test_what_one_process_meets_ends_all(source: Path, kind: str, status: int, told: str) -> None:
    processes = start(fail_in_training, *[[kind, *words(source, "run", "--max-steps", "6")]] * 2)
    statuses, _, errors = ended(processes)
    assert statuses == [status, status], errors
    assert errors.count(told) == 1, errors
    if kind == "mistake":
        assert errors.splitlines()[-1] == "milseg: photo.jpg: went away"
    else:
        assert "another process of the run has ended" in errors
    assert len(losses(source / "run")) == 2


def assert_one_wrote(out: Path, logs: list[Path]) -> None:
    wrote = [{p for p in json.loads(log.read_text()) if p.startswith(str(out))} for log in logs]
    masks = [{p for p in paths if "pseudo-labels" in p} for paths in wrote]
    names = [{Path(p).name.split(".")[1] for p in paths} for paths in masks]  # of .NAME.NUMBER.tmp.png
    assert [len(found) for found in names] == [2, 3]
    assert not names[0] & names[1]
    assert wrote[1] == masks[1]
    for name in ("train", "metrics", "checkpoint", "model", "selection", "README"):
        assert any(Path(path).name.lstrip(".").startswith(name) for path in wrote[0]), name
