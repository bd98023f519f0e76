"""Which device to compute on."""

from __future__ import annotations

import torch

from milseg.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        UserError: unknown name, or a device that this machine does not have.
    """
    here = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if here["cuda"] else "mps" if here["mps"] else "cpu")
    if not here.get(name, False):
        known = ", ".join(["auto", *(device for device, present in here.items() if present)])
        raise UserError(f"--device {name}: not on this machine; it has: {known}")
    return torch.device(name)
