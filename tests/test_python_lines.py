"""The Python lines of the README and the pages run as they stand, and public functions take a text for a path."""

from __future__ import annotations

import inspect
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torchvision

import milseg
from milseg.inference.segmenter import Segmenter
from milseg.utils.files import as_path

if TYPE_CHECKING:
    from conftest import SmallVoc

ROOT = Path(__file__).parent.parent


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.fixture
def newcomer(in_tmp: Path, small_voc: SmallVoc, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the lines name: VOCdevkit, tags.csv, photo.jpg, and ImageNet weights fetched before."""
    shutil.copytree(small_voc.root / "VOCdevkit", "VOCdevkit")
    shutil.copy(small_voc.photo("v0"), "photo.jpg")
    Path("tags.csv").write_text("image,tags\nt0,cat\nt1,dog\nt2,cat\nt3,dog\n")
    kind = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1
    monkeypatch.setenv("TORCH_HOME", str(in_tmp / "torch"))
    Path("torch/hub/checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    state = torchvision.models.mobilenet_v2().state_dict()
    torch.save(state, Path("torch/hub/checkpoints", os.path.basename(kind.url)))
    return in_tmp


def test_the_readmes_lines_run(
    newcomer: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they stand; but the training ends after two steps."""
    fit = milseg.fit

    def short(model: Any, bags: Any, config: milseg.TrainConfig, **more: Any) -> Any:
        return fit(model, bags, replace(config, max_steps=2, batch_size=2), **more)

    monkeypatch.setattr(milseg, "fit", short)
    names: dict[str, Any] = {}
    blocks = python_blocks("README.md")
    assert len(blocks) >= 2
    for block in blocks:
        exec(block, names)  # verbatim
    assert names["mask"].shape == (2, 1, 20, 20)
    assert names["loss"].isfinite().all()
    assert names["found"].mask.shape == (41, 50)
    assert "cat" in capsys.readouterr().out


def test_the_pages_lines_on_a_model_run(newcomer: Path) -> None:
    spec = milseg.ModelSpec(backbone="tiny", classes=("background", "cat", "dog"))
    milseg.save_model("runs/mine", spec.build(), spec)
    exec(python_blocks("docs/own-data.md")[0], {})
    exec(python_blocks("docs/rules.md")[0], {})
    train = milseg.read_voc("VOCdevkit", "train", classes=["cat", "dog"])
    names = {"milseg": milseg, "model": spec.build(), "bags": train, "folder": "fit"}
    names["config"] = milseg.TrainConfig(max_steps=1, batch_size=2)
    exec(python_blocks("docs/clusters.md")[0], names)
    assert Path("fit/metrics.jsonl").is_file()


# Every public function with a parameter for a path, called with texts.
def test_every_public_function_takes_a_text_for_a_path(newcomer: Path) -> None:
    train = milseg.read_voc("VOCdevkit", "train", tags_file="tags.csv", classes=["cat", "dog"], sbd=None)
    assert milseg.open_photo("photo.jpg").shape == (41, 50, 3)
    assert len(milseg.open_source("VOCdevkit/VOC2012/JPEGImages", tags="tags.csv")) == 4
    assert len(milseg.open_source("VOCdevkit/VOC2012/JPEGImages", tags="tags.csv", leave_out=["none"])) == 4
    Path("rows.yaml").write_text("cat: [tabby]\ndog: [beagle]\n")
    kind = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1
    weights = f"torch/hub/checkpoints/{os.path.basename(kind.url)}"
    _, report = milseg.build_model("mobilenet_v2", train.classes, weights=weights, mapping="rows.yaml")
    assert "beagle" in str(report)
    model, _ = milseg.build_model("tiny", train.classes)
    milseg.fit(model, train, milseg.TrainConfig(max_steps=1, batch_size=2), out="fit", device="cpu")
    assert Path("fit/metrics.jsonl").is_file()
    spec = milseg.ModelSpec(backbone="tiny", classes=train.classes)
    milseg.save_model("model", model, spec)
    loaded, _ = milseg.load_model("model")
    assert milseg.segment(loaded, "photo.jpg").shape == (41, 50)
    assert milseg.load("model").segment("photo.jpg").mask.shape == (41, 50)
    from_text = milseg.evaluate_model("model", "VOCdevkit", progress=False)["scores"]
    val = milseg.read_voc(Path("VOCdevkit"), "val", classes=["cat", "dog"])
    assert from_text == milseg.evaluate_model(loaded, val, progress=False)["scores"]
    bag = milseg.Bag(
        name="v0", photo="photo.jpg", tags=(1, 1, 0), mask="VOCdevkit/VOC2012/SegmentationClass/v0.png"
    )
    assert isinstance(bag.photo, Path)
    assert isinstance(bag.mask, Path)


def test_no_public_function_takes_a_path_alone() -> None:
    """What the test above must call: a new parameter for a path is typed as one that may be a text."""
    functions = [
        getattr(milseg, name) for name in milseg.__all__ if inspect.isfunction(getattr(milseg, name))
    ]
    wrong = [
        f"{function.__name__}({name})"
        for function in [*functions, Segmenter.segment]
        for name, parameter in inspect.signature(function).parameters.items()
        if re.search(r"\bPath\b", str(parameter.annotation)) and "str" not in str(parameter.annotation)
    ]
    assert wrong == []


@pytest.mark.parametrize("value", [None, 3, b"runs", ["runs"]])
def test_what_is_no_path_is_said(value: Any) -> None:
    with pytest.raises(milseg.UserError, match="expected a path, as a text"):
        as_path(value)
    with pytest.raises(milseg.UserError, match="expected a path, as a text"):
        milseg.load_model(value)


def test_a_network_without_names_needs_a_set(newcomer: Path) -> None:
    network = milseg.ModelSpec(backbone="tiny", classes=("background", "cat")).build()
    with pytest.raises(milseg.UserError, match="VOCdevkit: expected a BagSet"):
        milseg.evaluate_model(network, "VOCdevkit")
