"""Training states: written whole or not at all, and safe to read."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from milseg.errors import UserError
from milseg.inference.model_folder import ModelSpec
from milseg.models.fcn import FCN
from milseg.rules.attention import Attention
from milseg.training.checkpoint import load_state, save_state

SPEC = ModelSpec(backbone="tiny", classes=("background", "cat", "dög"), output_stride=2, longest_side=320)
FILES = ["config.yaml", "labels.json", "model.safetensors"]


def net(seed: int = 0) -> FCN:
    """Every weight random, batch norm's statistics too."""
    model = SPEC.build()
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.normal_(std=0.1, generator=generator)
            if "running_var" in name:
                tensor.abs_().add_(0.5)
    return model.eval()


def optimiser_of(model: FCN, *, steps: int = 2) -> torch.optim.SGD:
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    for _ in range(steps):
        model(torch.ones(1, 3, 8, 8)).square().mean().backward()
        optimiser.step()
    return optimiser


def test_a_state_brings_back_weights_momentum_and_step(tmp_path: Path) -> None:
    model = net()
    optimiser = optimiser_of(model)
    path = tmp_path / "checkpoint.safetensors"
    save_state(path, model, optimiser, 17, config={"seed": 3, "rate": 1e-4, "side": None})
    twin = net(5)
    other = torch.optim.SGD(twin.parameters(), lr=1e-3, momentum=0.9)
    assert load_state(path, twin, other, config={"side": None, "rate": 1e-4, "seed": 3}) == 17
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q), name
        assert torch.equal(optimiser.state[p]["momentum_buffer"], other.state[q]["momentum_buffer"]), name
    assert path.stat().st_mode & 0o777 == 0o644
    # The file is closed to what goes on in memory.
    with torch.no_grad():
        twin.score_layer.weight.zero_()
    assert load_state(path, twin, other, config={"seed": 3, "rate": 1e-4, "side": None}) == 17
    assert torch.equal(twin.score_layer.weight, model.score_layer.weight)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"seed": 4}, "seed was 3, is 4"),
        ({}, "seed was 3, is None"),
        ({"seed": 3, "dropout": True}, "dropout was None, is True"),
    ],
)
def test_a_state_of_other_settings_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    model = net()
    path = tmp_path / "checkpoint.safetensors"
    save_state(path, model, optimiser_of(model), 1, config={"seed": 3})
    with pytest.raises(UserError, match=message):
        load_state(path, model, optimiser_of(model), config=config)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"step": "3"},
        {"config": "{}"},
        {"config": "{", "step": "3"},
        {"config": "[1]", "step": "3"},
        {"config": "{}", "step": "x"},
    ],
)
def test_weights_that_are_no_training_state(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata=metadata)
    model = net()
    with pytest.raises(UserError, match=r"checkpoint\.safetensors: not a training state"):
        load_state(path, model, optimiser_of(model, steps=0), config={})


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    model, path = net(), tmp_path / "checkpoint.safetensors"
    save_state(path, model, optimiser_of(model), 1, config={})
    other = replace(SPEC, classes=("background", "cat")).build()
    with pytest.raises(UserError, match=r"checkpoint\.safetensors: does not fit"):
        load_state(path, other, optimiser_of(other, steps=0), config={})
    tensors = load_file(path)
    tensors["optimizer.score_layer.bias.momentum_buffer"] = torch.zeros(2)
    save_file(tensors, path, metadata={"config": "{}", "step": "1"})
    with pytest.raises(UserError, match=r"optimizer\.score_layer\.bias\.momentum_buffer does not fit"):
        load_state(path, model, optimiser_of(model, steps=0), config={})


def test_a_truncated_state_is_named(tmp_path: Path) -> None:
    model, path = net(), tmp_path / "checkpoint.safetensors"
    save_state(path, model, optimiser_of(model), 1, config={})
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"checkpoint\.safetensors: damaged or cut short"):
        load_state(path, model, optimiser_of(model), config={})


def test_momentum_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    model, path = net(), tmp_path / "checkpoint.safetensors"
    optimiser = optimiser_of(model)
    save_state(path, model, optimiser, 1, config={})
    before = path.read_bytes()
    optimiser.state[model.score_layer.bias]["momentum_buffer"][0] = float("nan")
    with pytest.raises(UserError, match=r"not saved, optimizer\.score_layer\.bias\.momentum_buffer"):
        save_state(path, model, optimiser, 2, config={})
    assert path.read_bytes() == before


def test_a_state_brings_back_the_scale_of_half_precision(tmp_path: Path) -> None:
    model = net()
    optimiser = optimiser_of(model)
    path = tmp_path / "checkpoint.safetensors"
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    save_state(path, model, optimiser, 1, config={}, scaler=scaler)
    again = torch.amp.GradScaler("cpu", init_scale=2.0)
    assert load_state(path, model, optimiser, config={}, scaler=again) == 1
    assert again.get_scale() == 8.0
    off = torch.amp.GradScaler("cpu", enabled=False)
    assert load_state(path, model, optimiser, config={}, scaler=off) == 1


def test_a_state_brings_back_a_learned_rule(tmp_path: Path) -> None:
    model = net()
    path = tmp_path / "checkpoint.safetensors"
    rule, other = Attention(3, seed=0), Attention(3, seed=1)
    save_state(path, model, optimiser_of(model), 1, config={}, beside={"rule": rule})
    load_state(path, model, optimiser_of(model), config={}, beside={"rule": other})
    assert torch.equal(rule.V, other.V)
    assert torch.equal(rule.w, other.w)


def test_a_state_from_before_there_was_a_choice_of_precision_is_one_of_float32(tmp_path: Path) -> None:
    model = net()
    path = tmp_path / "checkpoint.safetensors"
    save_state(path, model, optimiser_of(model), 4, config={})
    assert load_state(path, model, optimiser_of(model), config={"precision": "float32"}) == 4
    with pytest.raises(UserError, match="precision was 'float32', is 'bfloat16'"):
        load_state(path, model, optimiser_of(model), config={"precision": "bfloat16"})


def test_what_safetensors_left_half_written_is_cleaned_by_the_next_save(tmp_path: Path) -> None:
    (tmp_path / ".tmpAb12Cd").touch()
    (tmp_path / ".tmp-mine").touch()
    model = net()
    save_state(tmp_path / "a.safetensors", model, optimiser_of(model), 1, config={})
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tmp-mine", "a.safetensors"]


# kills and full disks, in processes of their own

# One process loads torch and forks those that save and are killed.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from milseg.inference.model_folder import ModelSpec, load_model, save_model
from milseg.training.checkpoint import load_state, save_state

torch.set_num_threads(1)
folder, wait, step = Path(sys.argv[1]), random.Random(0), 0
spec = ModelSpec(backbone="tiny", classes=("background", "cat"), output_stride=2)


def start():
    model = spec.build()
    return model, torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)


def save_for_ever(step, told):
    model, optimiser = start()
    model(torch.ones(1, 3, 8, 8)).square().mean().backward()
    optimiser.step()
    first = step
    while True:
        with torch.no_grad():
            model.score_layer.bias.fill_(step)
        save_state(folder / "checkpoint.safetensors", model, optimiser, step, config={})
        save_model(folder / "model", model, spec)
        if step == first:
            os.write(told, b"saved")
        step += 1


for _ in range(int(sys.argv[2])):
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        save_for_ever(step, tell)
    assert os.read(told, 5) == b"saved"
    time.sleep(wait.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    model, optimiser = start()
    found = load_state(folder / "checkpoint.safetensors", model, optimiser, config={})
    assert found >= step, (found, step)
    assert model.score_layer.bias.tolist() == [found] * 2
    assert len(optimiser.state) == len(list(model.parameters()))
    saved = float(load_model(folder / "model")[0].score_layer.bias[0])
    assert saved in (found, found - 1), (saved, found)
    step = found + 1
    print(step, flush=True)

model, optimiser = start()
save_state(folder / "checkpoint.safetensors", model, optimiser, step, config={})
save_model(folder / "model", model, spec)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("kills", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_a_kill_during_a_save_leaves_a_checkpoint_that_loads(tmp_path: Path, kills: int) -> None:
    """SIGKILL at random moments; each time a whole file is there, and the next save cleans up."""
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(kills)], capture_output=True, text=True, timeout=280
    )
    assert child.returncode == 0, child.stderr
    assert len(child.stdout.split()) == kills
    assert sorted(os.listdir(tmp_path)) == ["checkpoint.safetensors", "model"]
    assert sorted(os.listdir(tmp_path / "model")) == FILES
