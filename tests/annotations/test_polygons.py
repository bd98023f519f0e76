"""Polygons along pixel edges: by hand, and re-drawn by three programs' rules."""

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.draw import polygon2mask
from skimage.measure import label

from milseg.annotations.polygons import Bools, Points, polygons
from milseg.annotations.yolo import INSET
from milseg.data.image import UInt8

from .helpers import blobs, mask_of, masks


def at_centres(outlines: list[Points], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The exact rule: a pixel is inside where its centre is (scikit-image puts centres at whole numbers)."""
    out = np.zeros(shape, dtype=bool)
    for outline in outlines:
        out |= polygon2mask(shape, outline[:, ::-1] - 0.5)
    return out


def by_pillow(outlines: list[Points], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pillow cuts to whole numbers and draws the border too."""
    out = np.zeros(shape, dtype=bool)
    for outline in outlines:
        one = Image.new("1", shape[::-1])
        ImageDraw.Draw(one).polygon([(x, y) for x, y in outline.tolist()], fill=1, outline=1)
        out |= np.asarray(one)
    return out


def test_one_pixel() -> None:
    assert [p.tolist() for p in polygons(mask_of([1]) == 1)] == [[[0, 0], [1, 0], [1, 1], [0, 1]]]


def test_an_l_by_hand() -> None:
    (outline,) = polygons(mask_of([1, 0], [1, 1]) == 1)
    assert outline.tolist() == [[0, 0], [1, 0], [1, 1], [2, 1], [2, 2], [0, 2]]


def test_nothing_gives_nothing() -> None:
    assert polygons(np.zeros((3, 4), dtype=bool)) == []


def test_a_full_photo_is_four_points() -> None:
    (outline,) = polygons(np.ones((3, 4), dtype=bool))
    assert outline.tolist() == [[0, 0], [4, 0], [4, 3], [0, 3]]


def test_the_inset_moves_every_side_inside() -> None:
    (outline,) = polygons(np.ones((3, 4), dtype=bool), inset=0.25)
    assert outline.tolist() == [[0.25, 0.25], [3.75, 0.25], [3.75, 2.75], [0.25, 2.75]]


def test_a_ring_is_cut_from_its_hole_to_the_left() -> None:
    ring = np.ones((3, 3), dtype=bool)
    ring[1, 1] = False
    (outline,) = polygons(ring)
    # In at (0, 1), along the cut, round the hole, and out the same way.
    assert outline.tolist() == [
        [0, 0], [3, 0], [3, 3], [0, 3], [0, 1],
        [1, 1], [1, 2], [2, 2], [2, 1], [0, 1],
    ]  # fmt: skip


def test_touching_at_a_corner_is_not_connected() -> None:
    assert len(polygons(mask_of([1, 0], [0, 1]) == 1)) == 2


def test_a_region_inside_a_hole_is_its_own_polygon() -> None:
    mask = np.ones((5, 5), dtype=bool)
    mask[1:4, 1:4] = False
    mask[2, 2] = True
    assert [len(p) for p in polygons(mask)] == [10, 4]


def area(outline: Points) -> float:
    x, y = outline[:, 0], outline[:, 1]
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


@given(masks((0, 1)))
def test_every_region_has_its_polygon_and_its_area(values: UInt8) -> None:
    mask = values == 1
    regions, count = label(mask, connectivity=1, return_num=True)
    outlines = polygons(mask)
    assert len(outlines) == count
    assert [area(p) for p in outlines] == [int((regions == i).sum()) for i in range(1, count + 1)]
    for outline in outlines:
        # Sides are level or upright by turns: nothing to leave out.
        steps = np.diff(outline, axis=0, append=outline[:1])
        assert ((steps == 0).sum(axis=1) == 1).all()
        assert (np.diff(steps[:, 0] == 0) != 0).all()


@settings(deadline=None, max_examples=60)
@given(masks((0, 1), side=16))
def test_drawing_gives_back_any_mask(values: UInt8) -> None:
    mask = values == 1
    np.testing.assert_array_equal(at_centres(polygons(mask), mask.shape), mask)
    for draw in (at_centres, by_pillow):
        np.testing.assert_array_equal(draw(polygons(mask, inset=INSET), mask.shape), mask)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("draw", [at_centres, by_pillow])
def test_drawing_gives_back_masks_with_many_holes(seed: int, draw: object) -> None:
    mask: Bools = blobs(96, 128, 2, seed=seed, sigma=2) == 1
    assert callable(draw)
    np.testing.assert_array_equal(draw(polygons(mask, inset=INSET), mask.shape), mask)


def test_pycocotools_fills_them_alike() -> None:
    tool = pytest.importorskip("pycocotools.mask")
    mask = blobs(96, 128, 2, sigma=2) == 1
    flat = [p.ravel().tolist() for p in polygons(mask, inset=INSET)]
    np.testing.assert_array_equal(tool.decode(tool.merge(tool.frPyObjects(flat, *mask.shape))) == 1, mask)


def test_a_long_chain_of_holes_needs_no_recursion() -> None:
    mask = np.ones((3, 8001), dtype=bool)
    mask[1, 1::2] = False
    (outline,) = polygons(mask)
    assert area(outline) == mask.sum()
