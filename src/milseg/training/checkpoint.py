"""Training states: one file with all that a run needs to go on, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from milseg.config import EARLIER, ROUNDING_ONLY
from milseg.errors import UserError
from milseg.models.fcn import FCN
from milseg.utils.files import remove_leftovers
from milseg.utils.tensors import finite_tensors, load_tensors_into, read_tensors, save_tensors


def save_state(
    path: Path,
    model: FCN,
    optimiser: torch.optim.Optimizer,
    step: int,
    *,
    config: Mapping[str, Any],
    beside: Mapping[str, nn.Module] = MappingProxyType({}),
    scaler: torch.amp.GradScaler | None = None,
) -> None:
    """Write everything a run needs to go on at `step`, as one file that is replaced whole.

    Random numbers are keyed by seed and step, so no generator's state is needed.

    Args:
        beside: what the run has besides its network, by name, such as a learned rule.
        scaler: of float16's gradients, whose scale is found on the way.

    Raises:
        UserError: the weights are not finite, or the disk is full; the earlier file stays as it was.
    """
    names = {id(parameter): name for name, parameter in _trained(model, beside)}
    tensors = {
        f"{part}.{name}": tensor
        for part, module in {"model": model, **beside}.items()
        for name, tensor in module.state_dict().items()
    }
    for parameter, state in optimiser.state.items():
        if state.get("momentum_buffer") is not None:
            tensors[f"momentum.{names[id(parameter)]}"] = state["momentum_buffer"]
    metadata = {"step": str(step), "config": json.dumps(dict(config), sort_keys=True)}
    if scaler is not None and scaler.is_enabled():
        metadata["scaler"] = json.dumps(scaler.state_dict())
    remove_leftovers(path)
    save_tensors(path, finite_tensors(tensors, path), metadata)


def _trained(model: FCN, beside: Mapping[str, nn.Module]) -> list[tuple[str, nn.Parameter]]:
    """The run's parameters by name; a learned rule's are called rule.NAME."""
    own = [
        (f"{part}.{name}", parameter)
        for part, module in beside.items()
        for name, parameter in module.named_parameters()
    ]
    return [*model.named_parameters(), *own]


def load_state(
    path: Path,
    model: FCN,
    optimiser: torch.optim.Optimizer,
    *,
    config: Mapping[str, Any],
    beside: Mapping[str, nn.Module] = MappingProxyType({}),
    scaler: torch.amp.GradScaler | None = None,
) -> int:
    """Read a training state into `model`, `optimiser` and `scaler`; returns the step to go on at.

    Settings that change the result by rounding alone (`ROUNDING_ONLY`) may be others than they were.

    Raises:
        UserError: the file is damaged, or comes from a run with other settings.
    """
    tensors, metadata = read_tensors(path)
    now = json.loads(json.dumps(dict(config)))
    try:
        saved, step = dict(json.loads(metadata["config"])), int(metadata["step"])
        scale = json.loads(metadata.get("scaler", "null"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: not a training state; start anew, or resume from one") from None
    saved = {name: value for name, value in EARLIER.items() if name in now} | saved
    names = {*saved, *now} - {*ROUNDING_ONLY}
    changed = sorted(key for key in names if saved.get(key) != now.get(key))
    if changed:
        told = ", ".join(f"{key} was {saved.get(key)!r}, is {now.get(key)!r}" for key in changed)
        raise UserError(
            f"{path}: from a run with other settings ({told}); give the same settings, or start anew "
            "elsewhere"
        )
    for part, module in {"model": model, **beside}.items():
        start = f"{part}."
        own = {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
        load_tensors_into(module, own, path)
    if scaler is not None and scaler.is_enabled() and scale is not None:
        scaler.load_state_dict(scale)
    for name, parameter in _trained(model, beside):
        buffer = tensors.get(f"momentum.{name}")
        if buffer is not None and buffer.shape != parameter.shape:
            raise UserError(f"{path}: momentum.{name} does not fit the network; start anew elsewhere")
        if buffer is not None:
            optimiser.state[parameter]["momentum_buffer"] = buffer.to(parameter.device).clone(
                memory_format=torch.preserve_format
            )
    return step
