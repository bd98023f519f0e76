"""An exported file in the place of a model folder."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from milseg.cli import main
from milseg.config import InferenceConfig
from milseg.data.image import open_mask
from milseg.errors import UserError
from milseg.inference.model_folder import ModelSpec, load_model, save_model
from milseg.inference.onnx_network import load_onnx_network
from milseg.inference.prior import Prior
from milseg.inference.segmenter import Segmenter, load
from milseg.models.backbones import build_fcn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

CLASSES = ("background", "cat", "dog")
SPEC = ModelSpec(
    backbone="tiny",
    classes=CLASSES,
    longest_side=48,
    supervision="image tags",
    inference=InferenceConfig(flip=True, prior=0.5, refine="crf(iterations=2)"),
    prior=Prior(slope=(0.0, 0.7, 0.7), intercept=(math.inf, -1.0, -2.0)),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model folder `model` and the exported `model.onnx`."""
    home = tmp_path_factory.mktemp("exported")
    torch.manual_seed(5)
    model = build_fcn("tiny", len(CLASSES)).eval()
    with torch.no_grad():
        model.score_layer.weight.normal_(std=0.3)
    save_model(home / "model", model, SPEC)
    assert (
        main(["export", "--model", str(home / "model"), "--to", "onnx", "--out", str(home / "model.onnx")])
        == 0
    )
    return home


@pytest.fixture(autouse=True)
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    return lambda *words: main([str(word) for word in words])


def photo(height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(height).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    return np.kron(small, np.ones((8, 8, 1), dtype=np.uint8))[:height, :width]


def test_the_settings_come_back(home: Path) -> None:
    network, spec = load_onnx_network(home / "model.onnx")
    assert spec == SPEC
    built = build_fcn("tiny", 3)
    assert (network.stride, network.offset, network.field, network.minimum) == (
        built.stride,
        built.offset,
        built.field,
        built.minimum,
    )
    for size in ((1, 1), (17, 33), (48, 5)):
        assert network.map_size(*size) == built.map_size(*size)


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (37, 41), (70, 72)])
def test_scores_are_those_of_the_folder(home: Path, size: tuple[int, int]) -> None:
    """Views, prior, refiner and known tags are milseg's own; the network's scores differ by rounding."""
    folder, (network, spec) = load(home / "model", device="cpu"), load_onnx_network(home / "model.onnx")
    file = Segmenter(network, spec)
    for tags in (None, ["cat"]):
        expected, found = folder.segment(photo(*size), tags=tags), file.segment(photo(*size), tags=tags)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)
        assert (found.mask == expected.mask).mean() >= 0.999
        assert found.confidence == pytest.approx(expected.confidence, abs=1e-4)


def test_predict_takes_the_file(home: Path, tmp_path: Path, command: Callable[..., int]) -> None:
    (tmp_path / "photos").mkdir()
    for name, size in (("a", (60, 50)), ("b", (31, 72))):
        Image.fromarray(photo(*size)).save(tmp_path / "photos" / f"{name}.png")
    for name, model in (("folder", home / "model"), ("file", home / "model.onnx")):
        words = ("predict", tmp_path / "photos", "--model", model, "--out", tmp_path / name)
        assert command(*words, "--device", "cpu", "--class-bias", "cat=0.5", "--scales", "1,1.5") == 0
    for name in ("a", "b"):
        masks = [open_mask(tmp_path / where / "masks" / f"{name}.png") for where in ("folder", "file")]
        assert (masks[0] == masks[1]).mean() >= 0.999


# files that are none


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_onnx_network(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def changed(home: Path, path: Path, **metadata: str) -> Path:
    proto = onnx.load(home / "model.onnx")
    for entry in proto.metadata_props:
        entry.value = metadata.get(entry.key, entry.value)
    path.write_bytes(proto.SerializeToString())
    return path


def test_files_cut_short_anywhere(home: Path, tmp_path: Path) -> None:
    data = (home / "model.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    for share in (0.0, 0.001, 0.01, 0.3, 0.9, 0.9999):
        path.write_bytes(data[: int(len(data) * share)])
        refused(path)


def test_other_files(home: Path, tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / "nowhere.onnx")
    (tmp_path / "text.onnx").write_text("hello, this is no model at all")
    refused(tmp_path / "text.onnx")
    (tmp_path / "a.pt2").write_bytes(b"")
    assert "--to onnx" in refused(tmp_path / "a.pt2")
    proto = onnx.load(home / "model.onnx")
    del proto.metadata_props[:]
    (tmp_path / "other.onnx").write_bytes(proto.SerializeToString())
    assert "milseg export" in refused(tmp_path / "other.onnx")
    assert "format 99" in refused(changed(home, tmp_path / "new.onnx", milseg_format="99"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spec", "{}"),
        ("spec", "not JSON"),
        ("spec", "[" * 100_000),
        ("network", "{}"),
        ("network", "[]"),
    ],
)
def test_metadata_that_makes_no_sense(home: Path, tmp_path: Path, key: str, value: str) -> None:
    assert "damaged" in refused(changed(home, tmp_path / "bad.onnx", **{key: value}))


def test_a_network_that_is_not_where_the_metadata_says(home: Path, tmp_path: Path) -> None:
    proto = onnx.load(home / "model.onnx")
    told = {entry.key: entry.value for entry in proto.metadata_props}
    network = {**json.loads(told["network"]), "output": "elsewhere"}
    assert "elsewhere" in refused(changed(home, tmp_path / "bad.onnx", network=json.dumps(network)))


def test_weights_of_another_file_are_not_read(home: Path, tmp_path: Path) -> None:
    proto = onnx.load(home / "model.onnx")
    weights = max(proto.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="/etc/hostname")
    (tmp_path / "outside.onnx").write_bytes(proto.SerializeToString())
    assert "outside the file" in refused(tmp_path / "outside.onnx")


def test_scores_of_another_shape_are_no_traceback(home: Path, tmp_path: Path) -> None:
    proto = onnx.load(home / "model.onnx")
    told = {entry.key: entry.value for entry in proto.metadata_props}
    record = {**json.loads(told["spec"]), "classes": ["background", "cat"], "prior": None}
    network, spec = load_onnx_network(changed(home, tmp_path / "two.onnx", spec=json.dumps(record)))
    assert spec.classes == ("background", "cat")
    with pytest.raises(UserError, match="2 classes"):
        network(torch.zeros(1, 3, 20, 20))


def test_the_walk_stays_behind_and_is_refused_afterwards(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, spec = load_model(home / "model")
    save_model(tmp_path / "model", model, replace(spec, inference=replace(spec.inference, random_walk=2)))
    file = tmp_path / "walking.onnx"
    assert main(["export", "--model", str(tmp_path / "model"), "--to", "onnx", "--out", str(file)]) == 0
    assert "Left out: the walk among places that look alike" in capsys.readouterr().out
    network, written = load_onnx_network(file)
    assert written.inference == spec.inference
    with pytest.raises(UserError, match="walk 2: an exported model has no inner maps"):
        Segmenter(network, written, inference=replace(written.inference, random_walk=2))
