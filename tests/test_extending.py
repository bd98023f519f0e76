"""One of each that CONTRIBUTING.md says how to add: a function and a row, then used by its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from milseg.annotations import FORMATS, Format
from milseg.annotations.writer import Prediction, Writer
from milseg.cli import main
from milseg.commands.catalog import listing
from milseg.config import TrainConfig
from milseg.data.bags import Bag, BagSet
from milseg.data.image import UInt8
from milseg.data.source_table import SOURCES
from milseg.data.sources.open import open_source
from milseg.data.transform_table import TRANSFORMS, TransformRow
from milseg.data.transforms import Sample
from milseg.models.backbone_table import BACKBONES
from milseg.models.backbones import build_fcn
from milseg.models.tiny import Tiny
from milseg.refine import REFINERS, RefinerRow
from milseg.rules import RULES
from milseg.rules.row import RuleRow
from milseg.training.optimizer import OPTIMIZERS, SCHEDULES, Row
from milseg.training.trainer import fit

HERE = __name__
CLASSES = ("background", "red")


def toy_bags(count: int = 4) -> BagSet:
    """Grey photos; every other one has a red square and the tag."""
    bags = []
    for number in range(count):
        photo = np.full((16, 20, 3), 120, dtype=np.uint8)
        if number % 2:
            photo[4:12, 5:15] = (220, 20, 20)
        bags.append(Bag(name=str(number), photo=photo, tags=(1, number % 2)))
    return BagSet(name="toy", classes=CLASSES, bags=tuple(bags), tags_from="made here")


def trained(**settings: Any) -> list[dict[str, float]]:
    config = TrainConfig(max_steps=2, batch_size=2, learning_rate=1e-2, **settings)
    return fit(build_fcn("tiny", 2, seed=0), toy_bags(), config, progress=False)


def half_the_mean(
    scores: torch.Tensor, tags: torch.Tensor, valid: torch.Tensor, *, factor: float = 0.5, **_: Any
) -> torch.Tensor:
    return factor * scores.softmax(dim=1).flatten(1).mean(dim=1)


def test_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    row = RuleRow(where=f"{HERE}:half_the_mean", about="for this test", limits={"factor": (0, 1)})
    monkeypatch.setitem(RULES, "half-the-mean", row)
    losses = [record["loss"] for record in trained(rule="half-the-mean(factor=1)")]
    assert losses == pytest.approx([0.5, 0.5])  # the mean of two probabilities that sum to 1
    assert "for this test" in listing()


darkened: list[str] = []


def darker(sample: Sample, random: torch.Generator, *, factor: float = 0.5) -> Sample:
    darkened.append("one")
    return replace(sample, photo=(sample.photo * factor).astype(np.uint8))


def test_a_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        TRANSFORMS, "darker", TransformRow(f"{HERE}:darker", "for this test", 99, {"factor": (0, 1)})
    )
    before = len(darkened)
    plain, dark = trained(), trained(augment="darker(factor=0.25)")
    assert len(darkened) - before == 4  # two steps of two photos
    assert dark[0]["loss"] != plain[0]["loss"]


def still(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=0.0)


def test_an_optimizer_and_a_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS, "still", Row(still, "for this test"))
    monkeypatch.setitem(SCHEDULES, "nothing", Row(lambda progress: 0.0, "for this test"))
    records = trained(optimizer="still", schedule="nothing")
    assert [record["learning_rate"] for record in records] == [0.0, 0.0]


class Smaller(Tiny):
    pass


def test_a_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(BACKBONES["tiny"], where=f"{HERE}:Smaller", note="for this test")
    monkeypatch.setitem(BACKBONES, "smaller", row)  # type: ignore[arg-type]
    model = build_fcn("smaller", 3)
    assert model(torch.zeros(1, 3, 20, 24)).shape[1] == 3
    assert "smaller" in listing()


def read_by_name(root: Any, split: str | None = None) -> Any:
    """Photos whose tag is the first word of their name."""
    from milseg.data.sources.folder import read_folder

    return read_folder(root, split)


def test_a_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for tag, colour in (("red", (220, 0, 0)), ("blue", (0, 0, 220))):
        (tmp_path / tag).mkdir()
        Image.new("RGB", (20, 16), colour).save(tmp_path / tag / "a.png")
    row = replace(SOURCES["folder"], where=f"{HERE}:read_by_name", about="for this test")
    monkeypatch.setitem(SOURCES, "named", row)
    assert open_source(tmp_path, kind="named").classes[-2:] == ("blue", "red")
    assert "for this test" in listing()


class AreaWriter(Writer):
    """areas.csv: a photo and the share of it that is no background."""

    format = "areas"

    @classmethod
    def files_of(cls, name: str, header: Any) -> list[str]:
        return [f"areas/{name}.txt"]

    def _write(self, prediction: Prediction) -> None:
        path = self.place(self.out / "areas", prediction.name, ".txt")
        path.write_text(f"{(prediction.mask > 0).mean():.3f}", encoding="utf-8")

    def _finish(self) -> list[Path]:
        return [self.out / "areas"]


def inverted(photo: UInt8, probs: torch.Tensor) -> torch.Tensor:
    return probs.flip(0)


def test_a_format_and_a_refiner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from milseg.inference.model_folder import ModelSpec, save_model

    monkeypatch.setitem(FORMATS, "areas", Format("for this test", f"{HERE}:AreaWriter"))
    monkeypatch.setitem(REFINERS, "inverted", RefinerRow(where=f"{HERE}:inverted", about="for this test"))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (20, 16), (200, 30, 30)).save(tmp_path / "photos" / "a.png")
    model = build_fcn("tiny", 2, seed=0)
    save_model(tmp_path / "model", model, ModelSpec(backbone="tiny", classes=CLASSES))
    areas = []
    for refiner in ("none", "inverted"):
        out = tmp_path / refiner
        words = ["predict", str(tmp_path / "photos"), "--model", str(tmp_path / "model"), "--out", str(out)]
        assert main([*words, "--format", "areas", "--refine", refiner]) == 0
        areas.append(float((out / "areas" / "a.txt").read_text()))
    assert areas[0] + areas[1] == pytest.approx(1.0, abs=0.01)  # what was background is the class, and back


def test_the_rows_of_this_file_are_gone() -> None:
    with pytest.raises(KeyError):
        RULES["half-the-mean"]
