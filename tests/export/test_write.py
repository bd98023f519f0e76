"""What `milseg export` writes, opened by other programs: no milseg on the way from the file to the mask."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from milseg.cli import main
from milseg.config import ExportOptions, InferenceConfig
from milseg.errors import UserError
from milseg.export.photo_graph import PhotoGraph
from milseg.export.write import export_run, metadata
from milseg.inference.model_folder import ModelSpec, save_model
from milseg.inference.prior import Prior
from milseg.inference.segmenter import Segmenter, load
from milseg.models.backbones import build_fcn

CLASSES = ("background", "cat", "cow", "dog")
LONGEST = 48
# Nothing to shrink: the same pixels reach the network, and the masks must be the same.
SMALL = ((1, 1), (1, 40), (37, 41), (48, 48), (5, 2))
LARGE = ((1, 500), (100, 70), (333, 500), (49, 2))
PRIOR = Prior(slope=(0.0, 0.7, 0.7, 0.7), intercept=(math.inf, -1.0, -2.0, -3.0))
PLAIN = InferenceConfig()
VIEWS = InferenceConfig(flip=True, scales=(1.0, 1.5), prior=0.7)


def network(backbone: str = "tiny", stride: int | None = None) -> torch.nn.Module:
    torch.manual_seed(5)
    model = build_fcn(backbone, len(CLASSES), output_stride=stride).eval()
    with torch.no_grad():
        model.score_layer.weight.normal_(std=0.3)
    return model


def spec_of(
    inference: InferenceConfig, backbone: str = "tiny", longest_side: int | None = LONGEST
) -> ModelSpec:
    return ModelSpec(
        backbone=backbone, classes=CLASSES, longest_side=longest_side, inference=inference, prior=PRIOR
    )


def blocks(height: int, width: int) -> np.ndarray:
    random = np.random.default_rng(1000 * height + width)
    small = random.integers(0, 256, (-(-height // 8), -(-width // 8), 3)).astype(np.uint8)
    return np.kron(small, np.ones((8, 8, 1), dtype=np.uint8))[:height, :width]


def same(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float((found == expected).mean())


@pytest.mark.parametrize("inference", [PLAIN, VIEWS], ids=["plain", "views and prior"])
def test_the_graph_says_what_the_segmenter_says(inference: InferenceConfig) -> None:
    """Before any export: scores, confidence and masks; torch shrinks a little otherwise than Pillow."""
    model, spec = network(), spec_of(inference)
    graph, segmenter = PhotoGraph(model, spec), Segmenter(model, spec)
    for size in (*SMALL, *LARGE):
        photo = blocks(*size)
        expected = segmenter.segment(photo)
        with torch.inference_mode():
            mask, scores, tags, confidence = graph(torch.from_numpy(photo)[None])
        assert mask.dtype == torch.uint8
        assert scores.shape[1:] == expected.scores.shape
        # Views larger than the photo are resized too, so only the plain one is exact.
        exact = size in SMALL and inference == PLAIN
        assert same(mask[0].numpy(), expected.mask) >= (1.0 if exact else 0.99), size
        assert np.abs(scores[0].numpy() - expected.scores).max() < (1e-5 if exact else 0.05), size
        assert abs(confidence.item() - expected.confidence) < 1e-3
        for name, sure in expected.tags:
            assert tags[0, CLASSES.index(name)].item() == pytest.approx(sure, abs=0.01)


def test_no_longest_side_shows_the_network_the_photo_as_it_is() -> None:
    model, spec = network(), spec_of(PLAIN, longest_side=None)
    photo = blocks(130, 90)
    with torch.inference_mode():
        mask = PhotoGraph(model, spec)(torch.from_numpy(photo)[None])[0][0].numpy()
    assert same(mask, Segmenter(model, spec).segment(photo).mask) == 1.0


def test_photos_of_one_size_go_together() -> None:
    graph = PhotoGraph(network(), spec_of(VIEWS))
    photos = [torch.from_numpy(blocks(30, 50)), torch.from_numpy(blocks(50, 30)).permute(1, 0, 2)]
    with torch.inference_mode():
        both = graph(torch.stack(photos))
        for number, photo in enumerate(photos):
            for whole, one in zip(both, graph(photo[None]), strict=True):
                torch.testing.assert_close(whole[number], one[0], atol=1e-4, rtol=1e-4)


def test_the_metadata_is_all_that_a_reader_needs() -> None:
    told = metadata(network(), spec_of(VIEWS))
    assert json.loads(told["classes"]) == list(CLASSES)
    assert told["supervision"] == "tags"
    assert json.loads(told["inference"])["flip"] is True
    assert json.loads(told["spec"])["prior"]["intercept"][0] == "inf"
    assert json.loads(told["network"])["image_padding"] == 0
    assert set(map(type, told.values())) == {str}


# files

ALONE = """
import sys, numpy as np
class Refuse:
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] != "milseg", name
sys.meta_path.insert(0, Refuse())
file, photos, out = sys.argv[1:]
if file.endswith(".pt2"):
    import torch
    run = torch.export.load(file).module()
    masks = [run(torch.from_numpy(p)[None])[0][0].detach().numpy() for p in np.load(photos).values()]
elif file.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(file)
    masks = [session.run(["mask"], {"photo": p[None]})[0][0] for p in np.load(photos).values()]
else:
    import openvino
    model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    masks = [model({"photo": p[None]})["mask"][0] for p in np.load(photos).values()]
np.savez(out, *masks)
"""


def masks_of(file: Path, photos: list[np.ndarray]) -> list[np.ndarray]:
    """The masks of a file by a program that cannot import milseg."""
    np.savez(file.parent / "photos.npz", *photos)
    words = [sys.executable, "-c", ALONE, file, file.parent / "photos.npz", file.parent / "masks.npz"]
    subprocess.run([str(word) for word in words], check=True, timeout=280, cwd=file.parent)
    return list(np.load(file.parent / "masks.npz").values())


def export(tmp_path: Path, end: str, spec: ModelSpec, *, stride: int | None = None) -> tuple[Path, Segmenter]:
    model = network(spec.backbone, stride)
    save_model(tmp_path / "model", model, spec)
    file = tmp_path / f"file{end}"
    export_run(ExportOptions(model=tmp_path / "model", out=file))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    return file, Segmenter(model, spec)


@pytest.mark.parametrize(
    ("end", "package", "shrunk"),
    [(".onnx", "onnxruntime", 0.999), (".xml", "openvino", 0.99), (".pt2", "torch", 0.99)],
)
def test_the_file_gives_the_masks_of_predict(tmp_path: Path, end: str, package: str, shrunk: float) -> None:
    for needed in (package, *(("onnx", "onnxscript") if end != ".pt2" else ())):
        pytest.importorskip(needed)
    file, segmenter = export(tmp_path, end, spec_of(PLAIN))
    photos = [blocks(*size) for size in (*SMALL, *LARGE)]
    for size, photo, mask in zip((*SMALL, *LARGE), photos, masks_of(file, photos), strict=True):
        assert mask.dtype == np.uint8
        assert same(mask, segmenter.segment(photo).mask) >= (1.0 if size in SMALL else shrunk), size


def test_views_and_prior_are_inside(tmp_path: Path) -> None:
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed)
    file, segmenter = export(tmp_path, ".onnx", spec_of(VIEWS))
    photos = [blocks(*size) for size in (*SMALL, *LARGE)]
    agreed = [
        same(mask, segmenter.segment(photo).mask)
        for photo, mask in zip(photos, masks_of(file, photos), strict=True)
    ]
    assert min(agreed) >= 0.99, agreed
    # The settings matter here: without them the masks are others.
    plain = Segmenter(segmenter.model, spec_of(PLAIN))
    assert same(plain.segment(photos[-2]).mask, segmenter.segment(photos[-2]).mask) < 0.95


def photo_folder(folder: Path) -> Path:
    folder.mkdir()
    for number, size in enumerate([*SMALL, *LARGE, (48, 40), (60, 90)]):
        Image.fromarray(blocks(*size)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no photo")
    return folder


@pytest.mark.parametrize("inference", [PLAIN, VIEWS], ids=["one view", "views"])
def test_eight_bits_are_nearly_the_same_masks_from_a_smaller_file(
    tmp_path: Path, inference: InferenceConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed)
    import onnx

    exact, segmenter = export(tmp_path, ".onnx", spec_of(inference))
    rough = tmp_path / "rough.onnx"
    words = ["export", "--model", str(tmp_path / "model"), "--out", str(rough)]
    assert main([*words, "--int8", str(photo_folder(tmp_path / "photos"))]) == 0
    assert "8 bits, scales from 11 photos: " in capsys.readouterr().out
    proto = onnx.load(str(rough))
    views = len(inference.scales)
    # Each convolution of each size of view takes numbers that were 8 bits, and no mask is interpolated in 8 bits.
    maker = {name: node.op_type for node in proto.graph.node for name in node.output}
    taken = [maker[node.input[0]] for node in proto.graph.node if node.op_type == "Conv"]
    assert taken == ["DequantizeLinear"] * 8 * views
    into_bits = [maker.get(node.input[0]) for node in proto.graph.node if node.op_type == "QuantizeLinear"]
    assert "Conv" in into_bits or "Relu" in into_bits
    assert "MatMul" not in into_bits
    photos = [blocks(*size) for size in LARGE[1:3]]
    masks = masks_of(rough, photos)
    agreed = [same(mask, segmenter.segment(photo).mask) for photo, mask in zip(photos, masks, strict=True)]
    assert 0.8 < min(agreed) < 1
    assert rough.stat().st_size < exact.stat().st_size
    # In the place of a model folder: the network inside is the one in 8 bits.
    quick, plain = load(rough), load(exact)
    assert quick.inference == plain.inference
    difference = np.abs(quick.segment(photos[0]).scores - plain.segment(photos[0]).scores)
    # What is lost depends on the rounding of this processor too; another network would differ by all of it.
    assert 0 < difference.max() < 0.3 * np.abs(plain.segment(photos[0]).scores).max()


def test_eight_bits_need_photos_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    save_model(tmp_path / "model", network(), spec_of(PLAIN))
    (tmp_path / "photos").mkdir()
    words = ["export", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "a.onnx"), "--int8"]
    assert main([*words, str(tmp_path / "photos")]) == 2
    assert "photos: no photo in this folder" in capsys.readouterr().err
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no photo")
    assert main([*words, str(tmp_path / "photos")]) == 2
    assert "--int8: none of the photos can be read, such as " in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()


def test_only_onnx_is_written_in_eight_bits() -> None:
    with pytest.raises(UserError, match="only ONNX files"):
        ExportOptions(model=Path("m"), out=Path("a.xml"), int8="photos")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "stride"), [("squeezenet1_0", 16), ("mobilenet_v2", 16), ("resnet18", 16), ("vgg16", 32)]
)
def test_every_kind_of_network_at_any_size(tmp_path: Path, backbone: str, stride: int) -> None:
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(needed)
    spec = replace(spec_of(PLAIN, backbone, 96), output_stride=stride)
    file, segmenter = export(tmp_path, ".onnx", spec, stride=stride)
    sizes = ((1, 1), (1, 90), (37, 41), (96, 96), (130, 250))
    photos = [blocks(*size) for size in sizes]
    for size, photo, mask in zip(sizes, photos, masks_of(file, photos), strict=True):
        assert same(mask, segmenter.segment(photo).mask) >= 0.999, size


# mistakes


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"out": "a.tflite"}, "ends in none of the formats"),
        ({"out": "a.onnx", "to": "tflite"}, "--to tflite: unknown"),
        ({"out": "a.onnx", "to": "torch"}, "contradict"),
    ],
)
def test_a_format_that_is_not_there(given: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        ExportOptions(model=Path("m"), out=Path(given["out"]), to=given.get("to"))


def test_an_earlier_file_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.bin").write_text("mine")
    assert main(["export", "--model", str(tmp_path / "none"), "--out", str(tmp_path / "a.xml")]) == 2
    assert "a.bin: is there already" in capsys.readouterr().err
    assert (tmp_path / "a.bin").read_text() == "mine"


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"milseg\[export\]"):
        export_run(ExportOptions(model=tmp_path / "none", out=tmp_path / "a.onnx"))
    assert list(tmp_path.iterdir()) == []
