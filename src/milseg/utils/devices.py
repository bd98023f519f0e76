"""Which device to compute on."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from typing import Any

import torch

from milseg.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA, then MPS, then the CPU.

    On CUDA, float32 convolutions then compute in float32: by default cuDNN rounds their inputs to TF32's 10 bits, which
    changes up to 3 % of a mask's pixels. bfloat16 and float16 (`--precision`) are the quick ways.

    Raises:
        UserError: unknown name, or a device that this machine does not have.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if present["cuda"] else "mps" if present["mps"] else "cpu"
    if not present.get(name, False):
        known = ", ".join(["auto", *(device for device, there in present.items() if there)])
        raise UserError(f"--device {name}: not on this machine; it has: {known}")
    if name == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def memory_format(network: torch.nn.Module, device: torch.device) -> torch.memory_format:
    """The layout in which a network's weights and photos are quickest on a device.

    Channels last, but for networks with depthwise convolutions on CUDA: there cuDNN would compile new kernels for each
    new size of a photo, which takes seconds each time. In the contiguous layout PyTorch's own kernels serve any size.
    """
    depthwise = device.type == "cuda" and any(
        isinstance(layer, torch.nn.Conv2d) and 1 < layer.groups == layer.in_channels
        for layer in network.modules()
    )
    return torch.contiguous_format if depthwise else torch.channels_last


def keep_freed_memory() -> bool:
    """Let glibc keep the memory that tensors free, for the next step's tensors; whether it could be asked to.

    By default it hands large blocks back at once and clears the pages of the next ones, in every layer of every step:
    on two cores that was a third of the time of a training step. Other systems' allocators are left alone.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    settings = ((mmap_max, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**26))
    taken = [
        mallopt(name, value) for name, value in settings
    ]  # each is tried, whatever became of the one before
    return all(taken)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The block in which the network computes; its weights, and the loss outside of it, stay float32."""
    kind: torch.dtype = getattr(torch, precision)
    return torch.autocast(device.type, dtype=kind, enabled=kind != torch.float32)


def compiled(network: torch.nn.Module) -> Any:
    """The network as torch.compile makes it, for photos of any size; its weights are the same tensors.

    Raises:
        UserError: no compiler that torch.compile could call.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")):
        raise UserError(
            "--compile: needs a C++ compiler, and found none; install one such as g++, or leave it out"
        )
    return torch.compile(network, dynamic=True)


def loss_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """What keeps gradients of float16 from vanishing; does nothing for the others."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")
