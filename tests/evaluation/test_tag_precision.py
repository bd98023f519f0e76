from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from milseg.data.bags import Bag, BagSet
from milseg.evaluation.tag_precision import (
    TagScores,
    average_precisions,
    collapse,
    photo_tag_scores,
    remedies,
    score_tags,
)

CLASSES = ("background", "cat", "dog")


def found(share: dict[str, float], never: tuple[str, ...] = ()) -> TagScores:
    return TagScores(mean_average_precision=50.0, per_class={}, predicted_share=share, never_predicted=never)


def test_average_precision_of_a_ranking_worked_by_hand() -> None:
    # By falling score the bags are: cat, not, cat, not. Precision at the two cats: 1/1 and 2/3.
    scores = np.array([[0.0, 0.1], [0.0, 0.9], [0.0, 0.5], [0.0, 0.7]])
    tags = np.array([[1, 0], [1, 1], [1, 1], [1, 0]])
    assert average_precisions(scores, tags, ["background", "cat"]) == {
        "cat": pytest.approx(100 * (1 + 2 / 3) / 2)
    }


def test_unknown_tags_are_left_out_of_the_ranking() -> None:
    scores = np.array([[0.1], [0.9], [0.5], [0.7], [0.95]])
    known = np.array([[0], [1], [1], [0], [0]])
    # Ranking: not, cat, not, cat: precision 1/2 and 2/4.
    assert average_precisions(scores, known, ["cat"])["cat"] == pytest.approx(50.0)
    known[[3, 4]] = -1
    assert average_precisions(scores, known, ["cat"])["cat"] == pytest.approx(100.0)


@pytest.mark.parametrize("column", [[1, 1, 1], [0, 0, 0], [-1, -1, -1], [1, 1, -1], [0, -1, 0]])
def test_a_class_that_tells_no_bags_apart_is_undefined(column: list[int]) -> None:
    values = average_precisions(np.zeros((3, 1)), np.array(column)[:, None], ["cat"])
    assert math.isnan(values["cat"])


def test_a_photos_score_is_the_best_log_probability_of_any_place() -> None:
    scores = torch.tensor([[[0.0, 2.0]], [[1.0, 0.0]]])  # two classes at two places
    expected = [2 - math.log(1 + math.exp(2)), 1 - math.log(1 + math.exp(1))]
    assert photo_tag_scores(scores) == pytest.approx(expected, abs=1e-6)


class Colours(torch.nn.Module):
    """Scores that are the photo's own channels: blue for the background, red for cat, green for dog."""

    stride, offset, field = 1, 0.0, 1

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, [2, 0, 1]]


def painted(name: str, left: tuple[int, int, int], right: tuple[int, int, int], tags: tuple[int, ...]) -> Bag:
    photo = np.zeros((2, 4, 3), dtype=np.uint8)
    photo[:, :3], photo[:, 3:] = left, right
    return Bag(name=name, photo=photo, tags=tags, mask=Path("missing.png"))


RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def bag_set(*bags: Bag) -> BagSet:
    return BagSet(name="painted", classes=CLASSES, bags=bags, tags_from="tag file")


def test_score_tags_of_painted_photos() -> None:
    bags = bag_set(painted("a", RED, BLUE, (1, 1, 0)), painted("b", BLUE, BLUE, (1, 0, 1)))
    model = Colours().train()
    scores = score_tags(model, bags)
    assert scores.per_class == {
        "cat": 100.0,
        "dog": 50.0,
    }  # both photos have blue places, as green as each other
    assert scores.mean_average_precision == 75.0
    assert scores.predicted_share == {"background": 62.5, "cat": 37.5, "dog": 0.0}
    assert scores.never_predicted == ("dog",)
    assert not model.training


def test_score_tags_where_nothing_can_be_told_apart() -> None:
    scores = score_tags(Colours(), bag_set(painted("a", RED, GREEN, (1, 1, 1))))
    assert math.isnan(scores.mean_average_precision)
    assert scores.never_predicted == ()


@pytest.mark.parametrize(
    ("share", "never", "start"),
    [
        ({"background": 99.5, "cat": 0.3, "dog": 0.2}, (), "all background: 99.5 %"),
        ({"background": 3.0, "cat": 96.0, "dog": 1.0}, (), "one class everywhere: cat tops 96.0 %"),
        ({"background": 0.5, "cat": 99.5}, (), "one class everywhere: cat"),
        ({"sky": 99.9, "sea": 0.1}, (), "one class everywhere: sky"),
        ({"background": 60.0, "cat": 40.0, "dog": 0.0}, ("dog",), "never predicted though tagged: dog."),
        ({"background": 98.0, "cat": 1.0, "dog": 1.0}, (), None),
        ({"background": 4.0, "cat": 96.0}, (), None),
        ({"background": 60.0, "cat": 30.0, "dog": 10.0}, (), None),
    ],
)
def test_collapse_says_what_and_what_to_try(
    share: dict[str, float], never: tuple[str, ...], start: str | None
) -> None:
    advice = remedies(learning_rate=0.001, pretrained=False, mapped=False, without_rows=())
    sentence = collapse(found(share, never), advice)
    if start is None:
        assert sentence is None
    else:
        assert sentence is not None
        assert sentence.startswith(start)
        assert "--learning-rate" in sentence


def test_the_advice_leaves_out_what_was_given() -> None:
    given = remedies(learning_rate=0.001, pretrained=True, mapped=True, without_rows=())
    assert given == "Try a --learning-rate below 0.001"
    assert "--weights imagenet" in remedies(
        learning_rate=1, pretrained=False, mapped=False, without_rows=["a"]
    )
    missing = remedies(learning_rate=1, pretrained=True, mapped=False, without_rows=["quokka"])
    assert "ILSVRC's names for them by --mapping" in missing
    assert missing.endswith("no rows to start from for quokka")
    assert "other rows in the file" in remedies(
        learning_rate=1, pretrained=True, mapped=True, without_rows=["a"]
    )
