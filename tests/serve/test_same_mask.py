"""One way from a photo to its mask: every command gives the same mask for the same settings."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import milseg
from milseg.commands.voc_results import voc_results
from milseg.config import InferenceConfig, PredictOptions, TrainConfig, VocResultsOptions
from milseg.data.bags import Bag, BagSet
from milseg.data.image import UInt8, open_mask, open_photo
from milseg.data.masks import write_mask
from milseg.evaluation.evaluate import evaluate_segmenter
from milseg.experiments.compare import _scores
from milseg.experiments.compare_tasks import Task
from milseg.inference.model_folder import ModelSpec, save_model
from milseg.inference.prediction_run import predict_run
from milseg.inference.segmenter import Segmenter, load
from milseg.models.backbones import build_fcn
from milseg.training.pseudo_labels import pseudo_label
from tests.conftest import SmallVoc

from .conftest import Start, form

CLASSES = ("background", "cat", "dog")
SETTINGS = {
    "plain": InferenceConfig(),
    "tta": InferenceConfig(scales=(0.75, 1.5), flip=True),
    "random walk": InferenceConfig(scales=(1.0, 1.5), random_walk=2),
    "crf": InferenceConfig(refine="crf(iterations=2)", refine_side=32),
    "all": InferenceConfig(scales=(0.75, 1.0), flip=True, random_walk=1, refine="pamr(iterations=2)"),
}


def by_predict(folder: Path, file: Path, segmenter: Segmenter, start: Start) -> UInt8:
    out = folder.parent / "predicted"
    predict_run(PredictOptions(inputs=(str(file),), model=str(folder), out=out, device="cpu"), progress=False)
    return open_mask(out / "masks" / f"{file.stem}.png")


def by_milseg_segment(folder: Path, file: Path, segmenter: Segmenter, start: Start) -> UInt8:
    model, spec = milseg.load_model(folder)
    return milseg.segment(model, file, longest_side=spec.longest_side, inference=spec.inference)


def by_pseudo_labels(folder: Path, file: Path, segmenter: Segmenter, start: Start) -> UInt8:
    return pseudo_label(segmenter, open_photo(file), (1, 1, 1), min_confidence=0.0)


def by_serve(folder: Path, file: Path, segmenter: Segmenter, start: Start) -> UInt8:
    body, headers = form(file.read_bytes())
    answer = start(model=segmenter).ask("/v1/segment", body, {**headers, "Accept": "image/png"})
    return np.asarray(Image.open(io.BytesIO(answer.data)))


def by_several_settings(folder: Path, file: Path, segmenter: Segmenter, start: Start) -> UInt8:
    """As `milseg compare` asks, after other settings whose stages are shared."""
    settings = {**SETTINGS, "last": segmenter.inference}
    return segmenter.masks(open_photo(file), settings)["last"]


@pytest.fixture(params=SETTINGS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model folder with these settings, whose network shows every class somewhere."""
    model = build_fcn("tiny", len(CLASSES), seed=4).eval()
    model.replace_score_layer(len(CLASSES), std=0.4, generator=torch.Generator().manual_seed(0))
    spec = ModelSpec(
        backbone="tiny", classes=CLASSES, longest_side=48, inference=SETTINGS[str(request.param)]
    )
    save_model(tmp_path / "model", model, spec)
    return tmp_path / "model"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A photo larger than the network and the refiner see it."""
    blocks = np.random.default_rng(0).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    Image.fromarray(np.kron(blocks, np.ones((8, 8, 1), dtype=np.uint8))).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize(
    "mask_by", [by_predict, by_milseg_segment, by_pseudo_labels, by_serve, by_several_settings]
)
def test_every_way_gives_the_segmenters_mask(
    folder: Path, file: Path, start: Start, mask_by: Callable[[Path, Path, Segmenter, Start], UInt8]
) -> None:
    segmenter = load(folder, device="cpu")
    expected = segmenter.segment(file).mask
    assert len(np.unique(expected)) > 1
    assert np.array_equal(mask_by(folder, file, segmenter, start), expected)


def test_evaluate_and_compare_score_the_segmenters_mask(folder: Path, file: Path, tmp_path: Path) -> None:
    """With that mask as the truth, every class is at 100 %."""
    segmenter = load(folder, device="cpu")
    write_mask(tmp_path / "true.png", segmenter.segment(file).mask)
    bag = Bag(name="photo", photo=open_photo(file), tags=(1, 1, 1), mask=tmp_path / "true.png")
    bags = BagSet(name="toy", classes=CLASSES, bags=(bag,), tags_from="here")
    scores = evaluate_segmenter(segmenter, bags, progress=False)
    assert scores.mean_iu == 100.0
    model, spec = milseg.load_model(folder)
    task = Task(
        name="toy",
        train=bags,
        held=replace(bags, bags=()),
        val=bags,
        start=lambda _: model,
        spec=spec,
        config=TrainConfig(),
        rounds=(),
        refine=spec.inference,
        min_confidence=0.5,
    )
    found = _scores(task, model, False)["mean_iu"]
    assert found["refined"] == 100.0
    assert found["prior"] is None  # no photo is held out to calibrate it


def test_voc_results_are_the_segmenters_masks(folder: Path, small_voc: SmallVoc, tmp_path: Path) -> None:
    voc_results(VocResultsOptions(model=str(folder), root=small_voc.root, out=tmp_path / "out", device="cpu"))
    (written,) = (tmp_path / "out").rglob("x0.png")
    expected = load(folder, device="cpu").segment(small_voc.photo("x0")).mask
    numbers = np.array([0, 8, 12], dtype=np.uint8)  # VOC's, of background, cat and dog
    assert np.array_equal(open_mask(written), numbers[expected])
