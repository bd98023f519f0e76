"""Which device to compute on, and in which layout."""

from __future__ import annotations

import pytest
import torch

from milseg.errors import UserError
from milseg.models.backbones import build_fcn
from milseg.utils.devices import memory_format, pick_device

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_float32_on_cuda_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert pick_device("cpu") == CPU
    assert torch.backends.cudnn.allow_tf32
    assert pick_device("auto") == CUDA
    assert not torch.backends.cudnn.allow_tf32


def test_a_device_that_is_not_there_names_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--device cuda: not on this machine; it has: auto, cpu"):
        pick_device("cuda")


@pytest.mark.parametrize(
    ("backbone", "device", "expected"),
    [
        ("mobilenet_v2", CUDA, torch.contiguous_format),
        ("mobilenet_v2", CPU, torch.channels_last),
        ("resnet18", CUDA, torch.channels_last),
    ],
)
def test_depthwise_networks_are_contiguous_on_cuda(
    backbone: str, device: torch.device, expected: torch.memory_format
) -> None:
    assert memory_format(build_fcn(backbone, 3), device) == expected
