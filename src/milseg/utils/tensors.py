"""Files of tensors by name: safetensors alone, so nothing in them is ever run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from milseg.errors import UserError
from milseg.utils.files import atomic_path


def finite_tensors(tensors: Mapping[str, torch.Tensor], where: Path) -> dict[str, torch.Tensor]:
    """The tensors as they can be saved: detached and contiguous.

    Raises:
        UserError: one of them holds a value that is not finite.
    """
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{where}: not saved, {name} is no longer finite; lower the learning rate")
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a `.safetensors` file atomically.

    Raises:
        UserError: the disk is full, or the folder does not allow writing; the earlier file stays as it was.
    """
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


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a `.safetensors` file, by name.

    Raises:
        UserError: the file is missing, damaged or cut short.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
        return load_file(path), metadata
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: damaged or cut short ({error}); copy it again, or start from an earlier one"
        ) from None


def load_tensors_into(model: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Give a network these tensors as its state.

    Raises:
        UserError: names or shapes are not the network's.
    """
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
