"""Model folders and training states: safe to read, written whole or not at all.

A model folder holds `model.safetensors`, `config.yaml` (how to build the network, what supervised it) and
`labels.json` (the class names). Nothing here is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from milseg._version import __version__
from milseg.config import EARLIER, ROUNDING_ONLY, InferenceConfig
from milseg.errors import UserError
from milseg.inference.prior import Prior
from milseg.models.backbones import build_fcn
from milseg.models.fcn import FCN
from milseg.utils.files import atomic_path, check_writable, remove_leftovers, write_json, write_text
from milseg.utils.yaml import parse_yaml

FILES = ("config.yaml", "labels.json", "model.safetensors")
# What a text that is damaged, or not what it should be, raises on the way to its values.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What it takes to build a network again, and what it learned from.

    Attributes:
        backbone, output_stride, vgg_padding: as in `build_fcn`.
        classes: class names, background first.
        supervision: what chose the weights: "tags", "masks", "none (classifier only)", ...
        tags_from: where the tags came from.
        longest_side: the size at which the network saw its training photos; None: their own.
        inference: how its maps become masks.
        prior: the calibration of the image-level prior; None where none was fitted.
    """

    backbone: str
    classes: tuple[str, ...]
    output_stride: int | None = None
    vgg_padding: str = "same"
    supervision: str = "tags"
    tags_from: str = ""
    longest_side: int | None = None
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    prior: Prior | None = None
    milseg_version: str = __version__

    def build(self) -> FCN:
        """The network with fresh weights."""
        return build_fcn(
            self.backbone, len(self.classes), output_stride=self.output_stride, vgg_padding=self.vgg_padding
        )


def save_model(folder: Path, model: FCN, spec: ModelSpec) -> None:
    """Write a model folder; each file appears whole.

    Raises:
        UserError: the weights are not finite, or the folder cannot be written.
    """
    tensors = _finite(model.state_dict(), folder)
    check_writable(folder)
    for name in FILES:
        remove_leftovers(folder / name)
    record = spec_record(spec)
    classes = record.pop("classes")
    write_text(folder / "config.yaml", yaml.safe_dump(record, sort_keys=False))
    write_json(folder / "labels.json", {"classes": classes})
    _save(folder / "model.safetensors", tensors, {"milseg": __version__})


def spec_record(spec: ModelSpec) -> dict[str, Any]:
    """The spec in plain values, as YAML and JSON hold them."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(spec)))
    return plain


def load_model(folder: Path) -> tuple[FCN, ModelSpec]:
    """Build the network of a model folder and read its weights; in evaluation mode, on the CPU.

    Raises:
        UserError: a file is missing, damaged, or does not fit the others.
    """
    spec = _read_spec(folder)
    model = spec.build()
    _load_into(model, _read_tensors(folder / "model.safetensors")[0], folder / "model.safetensors")
    return model.eval(), spec


def _read_spec(folder: Path) -> ModelSpec:
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing; a model folder holds {', '.join(FILES)}")
    try:
        record = parse_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
        labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        classes = labels["classes"]
        if not isinstance(classes, list) or not classes:
            raise TypeError(f"classes are {classes!r}, expected a list of names")
        known = {field.name for field in fields(ModelSpec)} - {"classes"}
        given = {key: value for key, value in record.items() if key in known}
        if "inference" in given:
            given["inference"] = InferenceConfig(**_tuples(given["inference"]))
        if given.get("prior") is not None:
            given["prior"] = Prior(**_tuples(given["prior"]))
        spec = ModelSpec(classes=tuple(str(name) for name in classes), **given)
        if not isinstance(spec.backbone, str) or not isinstance(spec.vgg_padding, str):
            raise TypeError("backbone and vgg_padding are names")
        return spec
    except _DAMAGED as error:
        raise UserError(
            f"{folder}: config.yaml or labels.json cannot be read ({type(error).__name__}: {error}); copy "
            "the model folder again"
        ) from None


def _tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}


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
    _save(path, _finite(tensors, path), metadata)


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
    tensors, metadata = _read_tensors(path)
    now = json.loads(json.dumps(dict(config)))
    try:
        saved, step = dict(json.loads(metadata["config"])), int(metadata["step"])
        scale = json.loads(metadata.get("scaler", "null"))
    except _DAMAGED:
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
        _load_into(module, own, path)
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


def _finite(tensors: Mapping[str, torch.Tensor], where: Path) -> dict[str, torch.Tensor]:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{where}: not saved, {name} is no longer finite; lower the learning rate")
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def _save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    # safetensors writes a temporary file of its own first, which a kill leaves behind.
    for leftover in path.parent.glob(".tmp??????"):
        leftover.unlink(missing_ok=True)
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:
            raise UserError(
                f"{path}: cannot be written ({error}); nothing was changed. Free some space, or write "
                "elsewhere"
            ) from error
        temporary.chmod(0o644)  # safetensors leaves its files readable by their owner alone


def _read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        return load_file(path), metadata
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: damaged or cut short ({error}); copy it again, or start from an earlier one"
        ) from None


def _load_into(model: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    expected = model.state_dict()
    wrong = [
        name
        for name in {*expected, *tensors}
        if name not in tensors or name not in expected or tensors[name].shape != expected[name].shape
    ]
    if wrong:
        raise UserError(
            f"{path}: does not fit the network of this configuration ({len(wrong)} tensors differ, "
            f"{min(wrong)} among them); use the config.yaml and labels.json it was saved with"
        )
    model.load_state_dict(tensors)
