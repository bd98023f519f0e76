"""An exported file in the place of a model folder."""

from __future__ import annotations

import itertools
import json
import math
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    assert "missing" in refused(tmp_path / "nowhere.onnx")
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
    ("key", "value", "words"),
    [
        ("spec", "{}", "spec: backbone is missing"),
        ("spec", "not JSON", "spec is damaged"),
        ("spec", "[" * 100_000, "spec is damaged"),
        ("spec", "[1]", "spec is a list of 1; expected settings by name"),
        ("spec", " " * 2_000_000, "spec has 2,000,000 characters, over the limit"),
        ("network", "{}", "network: input is missing"),
        ("network", "[]", "network is a list of 0"),
    ],
)
def test_metadata_that_makes_no_sense(home: Path, tmp_path: Path, key: str, value: str, words: str) -> None:
    assert words in refused(changed(home, tmp_path / "bad.onnx", **{key: value}))


@pytest.mark.parametrize(
    ("key", "changes", "words"),
    [
        ("spec", {"classes": ["background", "cat", "cat"]}, "classes[1] 'cat' comes twice"),
        ("spec", {"classes": [str(number) for number in range(100_000)]}, "over the limit|a list of 100,000"),
        ("spec", {"longest_side": "48"}, "spec: longest_side is '48'"),
        ("spec", {"inference": {"scales": [math.nan]}}, "spec: inference: scales[0] is nan"),
        ("spec", {"prior": {"slope": ["nan"] * 3, "intercept": ["1"] * 3}}, "spec: prior: slope[0] is nan"),
        ("spec", {"prior": {"slope": ["x"] * 3, "intercept": ["1"] * 3}}, "spec: prior: slope[0] is 'x'"),
        ("spec", {"prior": {"slope": 1, "intercept": ["1"] * 3}}, "spec: prior: slope is 1"),
        ("network", {"image_padding": None}, "network: image_padding is none"),
        ("network", {"image_padding": 10**9}, "network: image_padding is 1000000000"),
        ("network", {"offset": None}, "network: holds the unknown key 'offset'"),
        ("network", {"input": 5}, "network: input is 5"),
        ("network", {"layers": []}, "network: layers is a list of 0"),
        (
            "network",
            {"layers": [[3, 2, 1, 1, False]]},
            "network: layers[0] is a list of 5; expected a list of 6",
        ),
        ("network", {"layers": [[3, 2, 1, 1, 0, 0]]}, "network: layers[0].ceil is 0; expected true or false"),
        ("network", {"layers": [[3, 0, 1, 1, False, 0]]}, "a kernel, stride or dilation of 0"),
        ("network", {"layers": [[3, 10**9, 1, 1, False, 0]]}, "network: layers[0].stride is 1000000000"),
        ("network", {"layers": [[3, 2, 1, 1, False, 0]] * 5000}, "network: layers is a list of 5,000"),
        ("network", {"layers": [[3, 2, 1, 1, False, 0]] * 900}, "layers give no map of a photo"),
        ("network", {"layers": [[3, 2, 1, 1, False, 0]]}, "expected [1, 3, 48, 48]"),
    ],
)
def test_values_of_the_metadata_that_make_no_sense(
    home: Path, tmp_path: Path, key: str, changes: dict[str, object], words: str
) -> None:
    metadata = {entry.key: entry.value for entry in onnx.load(home / "model.onnx").metadata_props}
    record = json.dumps(json.loads(metadata[key]) | changes)
    told = refused(changed(home, tmp_path / "bad.onnx", **{key: record}))
    assert any(word in told for word in words.split("|")), told
    assert len(told) < 1000


def graph_of(
    home: Path, path: Path, nodes: list[Any], weights: dict[str, np.ndarray] | None = None, domain: str = ""
) -> Path:
    """The exported file, with these nodes from its inner image to its scores."""
    proto = onnx.load(home / "model.onnx")
    for node in proto.graph.node:
        for number, name in enumerate(node.output):
            if name == "network_scores":
                node.output[number] = "before"
    proto.graph.node.extend(nodes)
    for name, values in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    if domain:
        proto.opset_import.add(domain=domain, version=1)
    path.write_bytes(proto.SerializeToString())
    return path


def node(kind: str, *inputs: str, out: str = "network_scores", **attributes: Any) -> Any:
    return onnx.helper.make_node(kind, list(inputs), [out], **attributes)


def loop() -> list[Any]:
    helper, kinds = onnx.helper, onnx.TensorProto
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", kinds.INT64, []),
            helper.make_tensor_value_info("go", kinds.BOOL, []),
            helper.make_tensor_value_info("x", kinds.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", kinds.BOOL, []),
            helper.make_tensor_value_info("y", kinds.FLOAT, None),
        ],
    )
    return [node("Loop", "many", "", "before", body=body)]


def doubled(times: int) -> list[Any]:
    """Maps of twice as many channels each time."""
    names = ["before", *(f"twice{number}" for number in range(times))]
    grown = [node("Concat", a, a, out=b, axis=1) for a, b in itertools.pairwise(names)]
    return [*grown, node("Identity", names[-1])]


HUGE = np.array([2**40], dtype=np.int64)
LARGE = np.array([0, 0, 60_000, 60_000] * 2, dtype=np.int64)
GRAPHS: dict[str, tuple[Callable[[], list[Any]], dict[str, np.ndarray], str]] = {
    "a loop without end": (loop, {"many": np.array(2**62)}, "a graph inside an operator|the operator Loop"),
    "maps twice as large, 60 times": (lambda: doubled(60), {}, "Concat gives"),
    "maps twice as large, 3000 times": (lambda: doubled(3000), {}, "Concat gives|damaged"),
    "more operators than any network": (lambda: doubled(5000), {}, "operators; at most"),
    "a constant of 4 TiB": (lambda: [node("ConstantOfShape", "n")], {"n": HUGE}, "operator ConstantOfShape"),
    "Expand": (lambda: [node("Expand", "before", "n")], {"n": HUGE}, "operator Expand"),
    "Tile": (lambda: [node("Tile", "before", "n")], {"n": HUGE}, "operator Tile"),
    "Resize": (
        lambda: [node("Resize", "before", "", "n")],
        {"n": np.full(4, 1e6, np.float32)},
        "operator Resize",
    ),
    "Range": (lambda: [node("Range", "n", "n", "n")], {"n": HUGE}, "operator Range"),
    "RandomNormal": (lambda: [node("RandomNormal", shape=[2**40])], {}, "operator RandomNormal"),
    "another domain": (
        lambda: [node("FusedMatMul", "before", "before", domain="com.microsoft")],
        {},
        "operator com.microsoft.FusedMatMul",
    ),
    "padding without end": (
        lambda: [node("Pad", "before", "n")],
        {"n": LARGE * 2**20},
        "a number over 65,536",
    ),
    "a large padding": (lambda: [node("Pad", "before", "n")], {"n": LARGE}, "Pad gives"),
    "windows of everything": (
        lambda: [node("MaxPool", "before", kernel_shape=[60_001, 60_001], pads=[30_000] * 4)],
        {},
        "multiplications for a photo of|damaged",
    ),
    "a padding in a convolution": (
        lambda: [node("Conv", "before", "w", pads=[2**40] * 4)],
        {"w": np.ones((3, 3, 1, 1), np.float32)},
        "Conv has 'pads' as milseg does not write it",
    ),
    "maps of a third power": (
        lambda: [
            node("Transpose", "before", out="a", perm=[0, 2, 3, 1]),
            node("Transpose", "before", out="b", perm=[0, 2, 1, 3]),
            node("MatMul", "a", "b"),
        ],
        {},
        "MatMul gives|for a photo of",
    ),
    "a broadcast": (
        lambda: [node("Add", "before", "n")],
        {"n": np.ones((1000, 3, 1, 1), np.float32)},
        "expected [1, 3, 24, 24]",
    ),
    "weights that are not finite": (
        lambda: [node("Mul", "before", "n")],
        {"n": np.array([np.nan], np.float32)},
        "the weights 'n' are not finite",
    ),
    "an attribute of its own": (lambda: [node("Relu", "before", slope=3.0)], {}, "Relu has 'slope'"),
    "nothing that fits": (lambda: [node("Conv", "before", "before")], {}, "damaged"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_that_milseg_does_not_write(home: Path, tmp_path: Path, name: str) -> None:
    """Refused before ONNX Runtime sees them, at once, and no memory taken."""
    nodes, weights, words = GRAPHS[name]
    path = graph_of(home, tmp_path / "bad.onnx", nodes(), weights, domain="com.microsoft")
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told = refused(path)
    assert any(word in told for word in words.split("|")), told
    assert time.process_time() - began < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def field(number: int, data: bytes) -> bytes:
    """A field of a protobuf message."""
    length, size = len(data), b""
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + data


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (field(7, b"\x0a\x00" * 20_000_000), "more than 500,000 fields"),
        (field(7, field(5, b"\x0a\x00" * 20_000_000)), "more than 500,000 fields"),
        (field(7, field(1, b"\x0a\x00" * 20_000_000)), "more than 500,000 fields"),
        (b"\xca\x01\x00", "holds functions"),
        (field(7, field(1, field(5, field(6, b"")))), "a graph inside an operator"),
        (b"\xff" * 100, "no protobuf"),
        (b"\x3a\xff\xff\xff\xff\x0f", "cut short"),
    ],
)
def test_files_are_measured_before_they_are_parsed(tmp_path: Path, data: bytes, words: str) -> None:
    """40 MB of empty operators would be 4 GB once parsed."""
    (tmp_path / "bad.onnx").write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert words in refused(tmp_path / "bad.onnx")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


def test_a_file_of_terabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(2**40)
    assert "over the limit of 2,147,483,647 for a model" in refused(path)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["squeezenet1_0", "mobilenet_v2", "resnet18", "convnext_tiny"])
def test_every_kind_of_network_is_within_the_bounds(tmp_path: Path, backbone: str) -> None:
    model, spec = build_fcn(backbone, 3).eval(), replace(SPEC, backbone=backbone)
    save_model(tmp_path / "model", model, spec)
    assert (
        main(
            ["export", "--model", str(tmp_path / "model"), "--to", "onnx", "--out", str(tmp_path / "a.onnx")]
        )
        == 0
    )
    network, _ = load_onnx_network(tmp_path / "a.onnx")
    assert (network.stride, network.offset) == (model.stride, model.offset)


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


def test_scores_of_another_shape_are_refused(home: Path, tmp_path: Path) -> None:
    proto = onnx.load(home / "model.onnx")
    told = {entry.key: entry.value for entry in proto.metadata_props}
    record = {**json.loads(told["spec"]), "classes": ["background", "cat"], "prior": None}
    path = changed(home, tmp_path / "two.onnx", spec=json.dumps(record))
    assert "scores of [1, 3, 24, 24] for a photo of 96 x 96; expected [1, 2, 24, 24]" in refused(path)


def test_the_walk_stays_behind_and_is_refused_afterwards(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, spec = load_model(home / "model")
    save_model(tmp_path / "model", model, replace(spec, inference=replace(spec.inference, random_walk=2)))
    file = tmp_path / "walking.onnx"
    assert main(["export", "--model", str(tmp_path / "model"), "--to", "onnx", "--out", str(file)]) == 0
    assert "left out: the random walk, which needs" in capsys.readouterr().err
    network, written = load_onnx_network(file)
    assert written.inference == spec.inference
    with pytest.raises(UserError, match="random walk 2: an exported model has no inner maps"):
        Segmenter(network, written, inference=replace(written.inference, random_walk=2))
