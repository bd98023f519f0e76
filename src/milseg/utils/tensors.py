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

MAX_HEADER = 2**24  # bytes of the table of tensors in a file: names and shapes, not a bomb


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


def read_tensors(
    path: Path, *, expected: Mapping[str, torch.Tensor] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a `.safetensors` file, by name.

    Args:
        expected: the state of the network that they are for, on any device. Names and shapes are held against it before
            anything else is read, and the tensors come in its types.

    Raises:
        UserError: the file is missing, damaged or cut short; it does not fit; a value is not finite.
    """
    try:
        _check_header(path)
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            if expected is not None:
                names = list(file.keys())
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
                _check_shapes(path, shapes, expected)
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path}: damaged or cut short ({error}); copy it again, or start from an earlier one"
        ) from None
    for name, tensor in tensors.items() if expected is not None else ():
        assert expected is not None
        tensors[name] = _like(tensor, expected[name], f"{path}: {name}")
    return tensors, metadata


def _check_header(path: Path) -> None:
    """A file says first how long its table of tensors is."""
    with path.open("rb") as file:
        start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) == 8 and length > MAX_HEADER:
        raise ValueError(f"a table of {length:,} bytes, over the limit of {MAX_HEADER:,}")


def _check_shapes(
    path: Path, shapes: Mapping[str, tuple[int, ...]], expected: Mapping[str, torch.Tensor]
) -> None:
    wrong = [
        name
        for name in {*expected, *shapes}
        if name not in shapes or name not in expected or shapes[name] != tuple(expected[name].shape)
    ]
    if wrong:
        raise UserError(
            f"{path}: does not fit the network of this configuration ({len(wrong)} tensors differ, "
            f"{min(wrong)[:200]} among them); use the config.yaml and labels.json it was saved with"
        )


def _like(tensor: torch.Tensor, expected: torch.Tensor, where: str) -> torch.Tensor:
    """A copy in the expected type, closed to what becomes of the file; every value is finite."""
    if tensor.is_complex() or tensor.is_floating_point() != expected.is_floating_point():
        raise UserError(f"{where} holds {tensor.dtype}; expected {expected.dtype}. Copy the model again")
    found = tensor.to(expected.dtype, copy=True).contiguous()
    if not bool(torch.isfinite(found).all()):
        raise UserError(
            f"{where} holds values that are not finite; start from an earlier model, or copy it again"
        )
    return found


def load_tensors_into(model: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Give a network these tensors as its state.

    Raises:
        UserError: names or shapes are not the network's.
    """
    _check_shapes(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, model.state_dict())
    model.load_state_dict(tensors)
