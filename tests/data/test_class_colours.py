"""Colours that every eye can tell apart."""

from __future__ import annotations

import numpy as np

from milseg.data.class_colours import class_colours, colour_distances
from milseg.data.masks import palette


def nearest(colours: np.ndarray) -> float:
    distances = colour_distances(colours)
    return float(distances[~np.eye(len(colours), dtype=bool)].min())


def test_fewer_are_the_first_of_more() -> None:
    many = class_colours(255)
    assert many.shape == (255, 3)
    assert len(np.unique(many, axis=0)) == 255
    np.testing.assert_array_equal(class_colours(20), many[:20])
    assert class_colours(0).shape == (0, 3)


def test_no_eye_confuses_two_of_twenty() -> None:
    assert nearest(class_colours(7)) > 0.07
    assert nearest(class_colours(20)) > 0.05
    # VOC's dark red and dark green are one colour to a person in a hundred.
    assert nearest(palette()[1:8]) < 0.05
    assert nearest(class_colours(20)) > 3 * nearest(palette()[1:21])


def test_distances_are_those_of_oklab() -> None:
    """Black and white are 1 apart for every eye, a colour and itself 0."""
    distances = colour_distances(np.array([[0, 0, 0], [255, 255, 255]], dtype=np.uint8))
    np.testing.assert_allclose(distances, [[0, 1], [1, 0]], atol=1e-3)
