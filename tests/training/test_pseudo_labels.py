from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import milseg.data.bags
from milseg.config import InferenceConfig
from milseg.data.bags import UNKNOWN, VOID, Bag, BagSet, load_mask
from milseg.inference.model_folder import ModelSpec
from milseg.inference.segmenter import Segmenter
from milseg.models.backbones import build_fcn
from milseg.training.pseudo_labels import pseudo_label, write_pseudo_labels

CLASSES = ("background", "cat", "dog")


def segmenter(inference: InferenceConfig | None = None) -> Segmenter:
    model = build_fcn("tiny", 3, seed=4).eval()
    model.replace_score_layer(3, std=0.4, generator=torch.Generator().manual_seed(0))
    return Segmenter(model, ModelSpec(backbone="tiny", classes=CLASSES), inference=inference)


def photo_of(seed: int = 0) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return np.kron(blocks, np.ones((8, 8, 1), dtype=np.uint8))


def test_only_present_classes_and_sure_pixels() -> None:
    """Against the probabilities of `Segmenter`, pixel by pixel."""
    model, photo = segmenter(), photo_of()
    mask = pseudo_label(model, photo, (1, 0, 1), min_confidence=0.8)
    p = model.segment(photo, tags=["dog"]).probabilities()
    expected = np.where(p.max(axis=0) >= 0.8, p.argmax(axis=0), VOID)
    assert np.array_equal(mask, expected)
    assert set(np.unique(mask)) == {0, 2, VOID}
    assert np.array_equal(pseudo_label(model, photo, (1, UNKNOWN, 1), min_confidence=0.8), mask)
    assert VOID not in pseudo_label(model, photo, (1, 0, 1), min_confidence=0.0)


def test_a_photo_larger_than_the_refiner_sees_keeps_its_size() -> None:
    photo = photo_of()
    large = segmenter(InferenceConfig(refine="crf(iterations=2)", refine_side=24))
    mask = pseudo_label(large, photo, (1, 1, 1), min_confidence=0.5)
    assert mask.shape == (40, 48)
    assert not np.array_equal(mask, pseudo_label(segmenter(), photo, (1, 1, 1), min_confidence=0.5))


def test_nothing_present_is_void_throughout() -> None:
    assert (pseudo_label(segmenter(), photo_of(), (0, 0, 0), min_confidence=0.1) == VOID).all()


def test_files_are_written_once_and_true_masks_stay_shut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(milseg.data.bags, "open_mask", lambda *a, **k: pytest.fail("a true mask was opened"))
    bags = tuple(
        Bag(name=f"day/{i}", photo=photo_of(i), tags=(1, 1, 0), mask=tmp_path / "true.png") for i in range(3)
    )
    source = BagSet(name="toy", classes=CLASSES, bags=bags, tags_from="tag file")
    folder = tmp_path / "own"
    found = write_pseudo_labels(segmenter(), source, folder, min_confidence=0.6, progress=False)
    monkeypatch.undo()
    assert found.tags_from == "tag file"
    for bag in found.bags:
        expected = pseudo_label(segmenter(), bag.photo, bag.tags, min_confidence=0.6)
        assert np.array_equal(load_mask(bag, found, size=(40, 48)), expected)
    # A run that was stopped: what is there is kept, what is missing is made.
    first, second = (folder / "day" / f"{i}.png" for i in (0, 1))
    first.write_bytes(second.read_bytes())
    second.unlink()
    write_pseudo_labels(segmenter(), source, folder, min_confidence=0.6, progress=False)
    assert first.read_bytes() == second.read_bytes()


def test_where_the_refiner_disagrees_with_the_map_the_pixel_is_void(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refiner that gives every pixel to the dog: sure only where the map itself said dog."""
    model, photo = segmenter(), photo_of()
    all_dog = torch.tensor([0.0, 0.0, 1.0])[:, None, None]
    monkeypatch.setattr(
        model, "refined", lambda _, found: found.map(lambda scores: all_dog.expand_as(scores))
    )
    mask = pseudo_label(model, photo, (1, 0, 1), min_confidence=0.6)
    monkeypatch.undo()
    p = model.segment(photo, tags=["dog"]).probabilities()
    assert np.array_equal(mask, np.where(p[2] >= 0.6, 2, VOID))
    assert set(np.unique(mask)) == {2, VOID}
