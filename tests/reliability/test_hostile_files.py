"""Case 22: what a header promises is not believed, and no memory is taken for it."""

from __future__ import annotations

import json
import os
import resource
import struct
import sys
from pathlib import Path

import pytest
import torch

from milseg.errors import UserError
from milseg.inference.model_folder import load_model
from milseg.models.weights import read_state

from .made import make_model

GIB = 2**30


def with_header(header: bytes, data: bytes = b"", *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def tensor(shape: list[int], start: int, stop: int) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}}).encode()


HOSTILE = {
    "a header of 2 GiB": with_header(b"{}", length=2 * GIB),
    "a header of 90 MB that is not there": with_header(b"{}", length=90_000_000),
    "a tensor of 4 TiB": with_header(tensor([2**40], 0, 2**42), bytes(4)),
    "a shape that overflows": with_header(tensor([2**40, 2**40], 0, 4), bytes(4)),
    "offsets behind the end": with_header(tensor([GIB], 0, 4 * GIB), bytes(4)),
    "offsets backwards": with_header(tensor([1], 4, 0), bytes(4)),
    "data behind the last tensor": with_header(tensor([1], 0, 4), bytes(400)),
    "cut short": with_header(tensor([100], 0, 400), bytes(399)),
}


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of a fork")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_safetensors_are_told_without_memory(tmp_path: Path, name: str) -> None:
    """With no more than 1 GiB of addresses beyond those in use."""
    folder = make_model(tmp_path / "model")
    for path in (folder / "model.safetensors", tmp_path / "weights.safetensors"):
        path.write_bytes(HOSTILE[name])
    torch.set_num_threads(torch.get_num_threads())  # torch's own threads are set up before the limit
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        status = "nothing was raised"
        try:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            resource.setrlimit(resource.RLIMIT_AS, (used + GIB, used + GIB))
            for read, what in ((load_model, folder), (read_state, tmp_path / "weights.safetensors")):
                try:
                    read(what)
                    status = f"{read.__name__} took it"
                    break
                except UserError as error:
                    status = "" if "damaged or cut short" in str(error) else str(error)
        except BaseException as error:
            status = f"{type(error).__name__}: {error}"
        finally:
            os.write(tell, status.encode()[:4000])
            os._exit(0)
    os.close(tell)
    with os.fdopen(told, "rb") as reading:
        found = reading.read().decode()
    os.waitpid(child, 0)
    assert found == ""


def test_more_than_a_gigabyte_would_be_refused_there(tmp_path: Path) -> None:
    """The limit of the test above is one: asking for 2 GiB in such a fork fails."""
    child = os.fork()
    if not child:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + GIB, used + GIB))
        try:
            bytearray(2 * GIB)
        except MemoryError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
