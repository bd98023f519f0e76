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

OPTIMIZER = "optimizer"  # begins the names of the optimizer's values


def save_state(
    path: Path,
    model: FCN,
    optimizer: torch.optim.Optimizer,
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
    names = {id(parameter): name for name, parameter in _parameters(model, beside)}
    tensors = {
        f"{part}.{name}": tensor
        for part, module in {"model": model, **beside}.items()
        for name, tensor in module.state_dict().items()
    }
    plain: dict[str, Any] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            name = f"{OPTIMIZER}.{names[id(parameter)]}.{key}"
            if isinstance(value, torch.Tensor):
                tensors[name] = value
            elif value is not None:
                plain[name] = value
    metadata = {"step": str(step), "config": json.dumps(dict(config), sort_keys=True)}
    if plain:
        metadata[OPTIMIZER] = json.dumps(plain)
    if scaler is not None and scaler.is_enabled():
        metadata["scaler"] = json.dumps(scaler.state_dict())
    remove_leftovers(path)
    save_tensors(path, finite_tensors(tensors, path), metadata)


def _parameters(model: FCN, beside: Mapping[str, nn.Module]) -> list[tuple[str, nn.Parameter]]:
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
    optimizer: torch.optim.Optimizer,
    *,
    config: Mapping[str, Any],
    beside: Mapping[str, nn.Module] = MappingProxyType({}),
    scaler: torch.amp.GradScaler | None = None,
) -> int:
    """Read a training state into `model`, `optimizer` and `scaler`; returns the step to go on at.

    Settings that change the result by rounding alone (`ROUNDING_ONLY`) may be others than they were.

    Raises:
        UserError: the file is damaged, or comes from a run with other settings.
    """
    tensors, metadata = read_tensors(path)
    try:
        saved, step = dict(json.loads(metadata["config"])), int(metadata["step"])
        scale = json.loads(metadata.get("scaler", "null"))
        plain = dict(json.loads(metadata.get(OPTIMIZER, "{}")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: not a training state; start anew, or resume from one") from None
    _refuse_changes(path, saved, config)
    for part, module in {"model": model, **beside}.items():
        start = f"{part}."
        own = {name: tensors.pop(name) for name in list(tensors) if name.startswith(start)}
        load_tensors_into(module, {name.removeprefix(start): own[name] for name in own}, path)
    if scaler is not None and scaler.is_enabled() and scale is not None:
        scaler.load_state_dict(scale)
    _load_optimizer(optimizer, tensors | plain, _parameters(model, beside), path)
    return step


def _refuse_changes(path: Path, saved: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    now = json.loads(json.dumps(dict(config)))
    saved = {name: value for name, value in EARLIER.items() if name in now} | dict(saved)
    names = {*saved, *now} - {*ROUNDING_ONLY}
    changed = sorted(key for key in names if saved.get(key) != now.get(key))
    if changed:
        changes = ", ".join(f"{key} was {saved.get(key)!r}, is {now.get(key)!r}" for key in changed)
        raise UserError(
            f"{path}: from a run with other settings ({changes}); give the same settings, or start anew "
            "elsewhere"
        )


def _load_optimizer(
    optimizer: torch.optim.Optimizer,
    values: Mapping[str, Any],
    parameters: list[tuple[str, nn.Parameter]],
    path: Path,
) -> None:
    """The state of each parameter from values by name, `optimizer.PARAMETER.KEY`; all of them must fit."""
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    by_name = {name: parameter for name, parameter in parameters if id(parameter) in trained}
    for name, value in values.items():
        kind, _, rest = name.partition(".")
        owner, _, key = rest.rpartition(".")
        parameter = by_name.get(owner)
        if kind != OPTIMIZER or parameter is None or not _fits(value, parameter):
            raise UserError(f"{path}: {name} does not fit the network; start anew elsewhere")
        if isinstance(value, torch.Tensor) and value.ndim:
            # A contiguous copy would differ in layout, and so in rounding, from a state that was never saved.
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        elif isinstance(value, torch.Tensor):
            value = value.clone()
        optimizer.state[parameter][key] = value
    states = {frozenset(state) for state in optimizer.state.values()}
    if len(states) > 1:
        raise UserError(f"{path}: the optimizer's state is not whole; start anew elsewhere")


def _fits(value: Any, parameter: nn.Parameter) -> bool:
    if not isinstance(value, torch.Tensor):
        return isinstance(value, int | float)
    return value.ndim == 0 or value.shape == parameter.shape
