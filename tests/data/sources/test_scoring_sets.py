"""Whole sets scored: a model's masks, and those of calling everything background."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from milseg.data.bags import Bag, BagSet, make_tags, mask_values_for
from milseg.errors import UserError
from milseg.evaluation.confusion import Evaluation
from milseg.evaluation.evaluate import evaluate_all_background, evaluate_model, evaluate_segmenter
from milseg.inference.model_folder import ModelSpec
from milseg.inference.segmenter import Segmenter
from milseg.models.backbones import build_fcn

CLASSES = ("background", "cat", "dog")


def scored(classes: tuple[str, ...] = CLASSES, stored: dict[int, str] | None = None) -> BagSet:
    """Three photos of blocks with masks that have nothing to do with them, one of another size."""
    generator = np.random.default_rng(0)
    bags = []
    for number, (height, width) in enumerate(((24, 40), (40, 24), (24, 40))):
        blocks = generator.integers(0, 256, (height // 8, width // 8, 3)).astype(np.uint8)
        photo = np.kron(blocks, np.ones((8, 8, 1), dtype=np.uint8))
        mask = generator.choice(np.array([0, 1, 255], dtype=np.uint8), (height, width))
        bags.append(Bag(name=str(number), photo=photo, tags=make_tags(["cat"], classes), mask=mask))
    values = None if stored is None else mask_values_for(classes, stored)
    return BagSet(name="blocks", classes=classes, bags=tuple(bags), tags_from="tag file", mask_values=values)


@pytest.fixture
def segmenter() -> Segmenter:
    torch.manual_seed(5)
    model = build_fcn("tiny", len(CLASSES)).eval()
    with torch.no_grad():
        model.score_layer.weight.normal_(std=0.3)
    return Segmenter(model, ModelSpec(backbone="tiny", classes=CLASSES))


def test_a_segmenters_scores_are_those_of_the_masks_it_gives(segmenter: Segmenter) -> None:
    bags = scored()
    wanted = Evaluation(CLASSES)
    for bag in bags.bags:
        wanted.update(segmenter.segment(bag.photo).mask, bag.mask)
    found = evaluate_segmenter(segmenter, bags, progress=False)
    assert found == wanted.compute()
    assert found.photos == 3
    assert min(found.predicted_share.values()) > 0, "a network that tells nothing apart shows little here"
    plain = evaluate_model(segmenter.model, bags, progress=False)
    assert plain["scores"] == found


def test_a_set_of_other_classes_is_refused(segmenter: Segmenter) -> None:
    other = scored(("background", "cat", "cow"))
    with pytest.raises(
        UserError, match="blocks: its classes are background, cat, cow, the model's background"
    ):
        evaluate_segmenter(segmenter, other, progress=False)


def test_a_set_without_photos_is_refused(segmenter: Segmenter) -> None:
    with pytest.raises(UserError, match="blocks: no photos to score"):
        evaluate_segmenter(segmenter, scored().take([]), progress=False)


def test_a_class_that_the_masks_cannot_show_is_not_scored(segmenter: Segmenter) -> None:
    """No value of the masks stands for a dog, so a predicted dog is wrong without counting as a class of score 0."""
    bags = scored(stored={0: "background", 1: "cat"})
    found = evaluate_segmenter(segmenter, bags, progress=False)
    assert math.isnan(found.per_class_iu["dog"])
    assert not math.isnan(found.per_class_iu["cat"])
    assert found.mean_iu == np.mean([found.per_class_iu["background"], found.per_class_iu["cat"]])
    # Where a value does, none of the pixels has it: a false positive scores 0.
    assert evaluate_segmenter(segmenter, scored(), progress=False).per_class_iu["dog"] == 0


def test_calling_everything_background() -> None:
    bags = scored()
    found = evaluate_all_background(bags)
    masks = [np.asarray(bag.mask) for bag in bags.bags]
    share = sum(int((m == 0).sum()) for m in masks) / sum(int((m != 255).sum()) for m in masks)
    assert found.per_class_iu["background"] == pytest.approx(100 * share)
    assert found.per_class_iu["cat"] == 0
    assert math.isnan(found.per_class_iu["dog"])
    assert found.photos == 3
