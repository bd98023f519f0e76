"""Weights from files: whole, or refused with a message; never run."""

from __future__ import annotations

import pickle
import re
from contextlib import suppress
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file

from milseg.errors import UserError
from milseg.models.backbone_table import BACKBONES
from milseg.models.backbones import cast_classifier, make_classifier
from milseg.models.weights import imagenet_categories, load_classifier, read_state

DIGITS = tuple("0123456789")


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return {k: v.contiguous() for k, v in make_classifier("tiny", 10, seed=1).state_dict().items()}


def save(state: dict[str, torch.Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def refused(
    path: Path, match: str, *, backbone: str = "tiny", categories: tuple[str, ...] | None = DIGITS
) -> None:
    """The message names the file and says what `match` does."""
    with pytest.raises(UserError, match=match) as caught:
        load_classifier(backbone, path, categories=categories)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".PTH"])
def test_round_trip(state, tmp_path, suffix):
    network, names = load_classifier("tiny", save(state, tmp_path / f"net{suffix}"), categories=DIGITS)
    assert names == DIGITS
    assert not network.training
    images = torch.randn(2, 3, 32, 32)
    original = make_classifier("tiny", 10, seed=1).eval()
    assert torch.equal(network(images), original(images))
    assert all(p.requires_grad and p.device.type == "cpu" for p in network.parameters())


def test_a_network_with_batch_norm_loads_and_trains(tmp_path):
    original = make_classifier("resnet18", 1000, seed=1).eval()
    tensors = {k: v for k, v in original.state_dict().items() if not k.endswith("num_batches_tracked")}
    network, names = load_classifier("resnet18", save(tensors, tmp_path / "net.safetensors"))
    assert names == imagenet_categories()
    images = torch.randn(1, 3, 32, 32)
    model = cast_classifier("resnet18", network)
    assert torch.allclose(model.classify(images), original(images), atol=1e-5)
    model(images).sum().backward()


def test_half_precision_becomes_float32(state, tmp_path):
    path = save({k: v.half() for k, v in state.items()}, tmp_path / "net.safetensors")
    network, _ = load_classifier("tiny", path, categories=DIGITS)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_no_weights_is_a_seeded_start():
    a, names = load_classifier("tiny", None, seed=4)
    b, _ = load_classifier("tiny", None, seed=4)
    assert names == ()
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_missing_file_and_wrong_suffix(tmp_path):
    refused(tmp_path / "none.pth", "no such weights file")
    refused(tmp_path / "net.h5", r"must be 'imagenet' or a file that ends in \.safetensors, \.pth, \.pt")
    (tmp_path / "folder.pth").mkdir()
    refused(tmp_path / "folder.pth", "no such weights file")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_truncated_at_any_length(state, tmp_path, suffix):
    whole = save(state, tmp_path / f"net{suffix}").read_bytes()
    path = tmp_path / f"cut{suffix}"
    for length in (0, 1, 7, 8, 9, 100, 1000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        refused(path, "damaged or cut short")


def test_lying_headers(tmp_path):
    path = tmp_path / "net.safetensors"
    for header in (b"\xff" * 8, (10**12).to_bytes(8, "little"), b"\x02" + bytes(7) + b"{]"):
        path.write_bytes(header + b"{}")
        refused(path, "damaged or cut short")
    huge = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    path.write_bytes(len(huge).to_bytes(8, "little") + huge)
    refused(path, "damaged or cut short")


def test_flipped_bytes_never_raise_anything_else(state, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for suffix in (".safetensors", ".pth"):
        whole = save(state, tmp_path / f"net{suffix}").read_bytes()
        path = tmp_path / f"flipped{suffix}"
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(4):
                data[int(torch.randint(0, 2000, (), generator=generator))] ^= 0x55
            path.write_bytes(data)
            with suppress(UserError):
                network, _ = load_classifier("tiny", path, categories=DIGITS)
                assert all(bool(p.isfinite().all()) for p in network.parameters())


class Evil:
    """Unpickled, this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_code_in_a_pickle_is_not_run(state, tmp_path):
    mark = tmp_path / "ran"
    for content in (Evil(mark), {**state, "extra": Evil(mark)}):
        torch.save(content, tmp_path / "evil.pth")
        refused(tmp_path / "evil.pth", "not a plain table of tensors")
        (tmp_path / "plain.pth").write_bytes(pickle.dumps(content, protocol=2))
        refused(tmp_path / "plain.pth", "not a plain table of tensors|damaged")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Evil(mark)))
    assert mark.exists(), "the trap itself must work"


def test_other_contents(state, tmp_path):
    path = tmp_path / "net.pth"
    for content, found in (
        ([1, 2], "a list"),
        ({"epoch": 3, "state_dict": state}, "a dict with 'epoch', 'state_dict'"),
        ({1: torch.zeros(1)}, "a dict with 1"),
    ):
        torch.save(content, path)
        refused(path, f"holds {found}; expected a state dict")


def test_other_networks_file(state, tmp_path):
    path = save(state, tmp_path / "net.safetensors")
    refused(
        path,
        "not a squeezenet1_0 in torchvision's layout, which has 52 tensors: .* tensors are missing",
        backbone="squeezenet1_0",
        categories=None,
    )
    with torch.device("meta"):
        network = BACKBONES["resnet18"].make(1000)
    other = {k: torch.zeros(v.shape, dtype=v.dtype) for k, v in network.state_dict().items()}
    refused(
        save(other, tmp_path / "resnet.safetensors"),
        "not a resnet50 .* missing .* have another shape",
        backbone="resnet50",
        categories=None,
    )


def test_one_tensor_wrong(state, tmp_path):
    path = tmp_path / "net.pth"
    first = "features.0.weight"
    for change, message in (
        ({first: None}, r"1 tensors are missing \(features\.0\.weight"),
        ({"more": torch.zeros(1)}, r"1 do not belong to it \(more"),
        (
            {first: torch.zeros(24, 3, 5, 5)},
            r"features\.0\.weight: \[24, 3, 5, 5\] instead of \[24, 3, 3, 3\]",
        ),
        ({first: torch.zeros(24, 3, 3, 3, dtype=torch.int64)}, "not plain floating-point tensors"),
        ({first: torch.zeros(24, 3, 3, 3).to_sparse()}, "not plain floating-point tensors|not a plain table"),
        (
            {first: torch.full((24, 3, 3, 3), float("nan"))},
            "features.0.weight holds values that are not finite",
        ),
        ({"classifier.weight": torch.zeros(7, 96)}, "a classifier of 7 classes where 10 were expected"),
        # One number that claims to be a terabyte: refused by its shape, before anything is made of it.
        ({first: torch.zeros(1).expand(2**38)}, "have another shape"),
    ):
        changed = {k: v for k, v in {**state, **change}.items() if v is not None}
        torch.save(changed, path)
        refused(path, message)


def test_categories_must_fit_the_rows(state, tmp_path):
    refused(
        save(state, tmp_path / "net.pth"),
        "a classifier of 10 classes where 1000 were expected",
        categories=None,
    )


def test_failed_download_names_the_way_out(monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(
        UserError, match=r"could not download .* resnet18 .*no route to host.*local \.safetensors"
    ):
        load_classifier("resnet18", "imagenet")
    with pytest.raises(UserError, match="tiny has no published ImageNet weights"):
        load_classifier("tiny", "imagenet")


def test_read_state_keeps_every_tensor(state, tmp_path):
    found = read_state(save(state, tmp_path / "net.safetensors"))
    assert found.keys() == state.keys()
    assert re.fullmatch(r"[\w.]+", min(found))
