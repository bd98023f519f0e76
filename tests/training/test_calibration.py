"""What tags decide of a trained network: whether it bears its refiner and its walk."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from torch import nn

import milseg.inference.segmenter
from milseg.config import InferenceConfig
from milseg.data.bags import Bag, BagSet
from milseg.data.image import UInt8
from milseg.inference.model_folder import ModelSpec
from milseg.models.fcn import FCN
from milseg.training.calibration import drop_harmful_refinement, tag_recall

CLASSES = ("background", "cat", "dog")
ALL = InferenceConfig(random_walk=2, refine="crf", prior=1.0)


def bags(count: int = 4, *, tags: tuple[int, ...] = (1, 1, 0)) -> BagSet:
    photos = [np.full((6, 8, 3), 60 * i, dtype=np.uint8) for i in range(count)]
    made = tuple(Bag(name=f"b{i}", photo=photo, tags=tags) for i, photo in enumerate(photos))
    return BagSet(name="toy", classes=CLASSES, bags=made, tags_from="here")


def full(number: int) -> UInt8:
    return np.full((2, 3), number, dtype=np.uint8)


def test_the_share_of_the_tags_that_masks_show() -> None:
    one = np.array([[0, 0, 2]], dtype=np.uint8)
    assert tag_recall([one], bags(1, tags=(1, 1, 1))) == 0.5
    assert tag_recall([one], bags(1, tags=(1, 0, 1))) == 1.0
    assert tag_recall([one], bags(1, tags=(1, 1, -1))) == 0.0  # an unknown tag is not missed
    assert tag_recall([full(1), full(255), full(0), full(2)], bags(4)) == 0.25
    assert math.isnan(tag_recall([one], bags(1, tags=(1, 0, 0))))  # the background is no tag
    own = BagSet(
        name="", classes=("cat", "dog"), bags=(Bag(name="a", photo=full(0), tags=(1, 1)),), tags_from=""
    )
    assert tag_recall([full(0)], own) == 0.5


@pytest.mark.parametrize(
    ("walked", "refined", "kept", "told"),
    [
        (4, 4, ALL, []),
        (4, 3, ALL, []),  # three quarters of the tags are left
        (4, 2, InferenceConfig(random_walk=2, prior=1.0), ["refine crf"]),
        (2, 2, ALL, []),  # neither takes anything from what the other leaves
        (1, 4, replace(ALL, random_walk=0), ["random_walk 2"]),
        (2, 1, InferenceConfig(prior=1.0), ["refine crf", "random_walk 2"]),
        (0, 0, ALL, []),
    ],
)
def test_what_takes_the_tags_away_is_left_out(
    monkeypatch: pytest.MonkeyPatch, walked: int, refined: int, kept: InferenceConfig, told: list[str]
) -> None:
    """All four photos are cat by themselves; walk and refiner make all but so many of them background."""

    def number(photo: UInt8) -> int:
        return int(photo.mean()) // 60

    def masks(self: Any, photo: UInt8, settings: dict[Any, InferenceConfig]) -> dict[Any, UInt8]:
        lost = {
            key: (config.random_walk and number(photo) >= walked)
            or (config.refine != "none" and number(photo) >= refined)
            for key, config in settings.items()
        }
        assert not any(config.prior for config in settings.values())
        return {key: full(0 if background else 1) for key, background in lost.items()}

    monkeypatch.setattr(milseg.inference.segmenter.Segmenter, "masks", masks)
    model = FCN(nn.Sequential(), nn.Sequential(), nn.Conv2d(3, 3, 1))
    spec = ModelSpec(backbone="tiny", classes=CLASSES)
    found, words = drop_harmful_refinement(model.eval(), spec, ALL, bags())
    assert found == kept
    assert [line.partition(" is left out: of the tags of 4 photos")[0] for line in words] == told


def test_what_there_is_nothing_to_leave_out_of_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("milseg.training.calibration.Segmenter", None)
    plain = InferenceConfig(scales=(0.5, 1.0), flip=True)
    model = FCN(nn.Sequential(), nn.Sequential(), nn.Conv2d(3, 3, 1))
    assert drop_harmful_refinement(model, ModelSpec(backbone="tiny", classes=CLASSES), plain, bags()) == (
        plain,
        [],
    )
