"""One range of values for a set: how it is decided, and what becomes of values outside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from milseg.data.bags import Bag, BagSet, load_photo
from milseg.data.image import open_photo, read_photo
from milseg.data.photo_statistics import read_photos, readable_bags, sample_ranges
from milseg.data.value_range import check_ranges, decide_ranges, span_of, to_eight_bits
from milseg.errors import UserError

RNG = np.random.default_rng(0)


def spread(low: float, high: float, dtype: str) -> np.ndarray[Any, Any]:
    return np.linspace(low, high, 64 * 64).reshape(64, 64, 1).astype(dtype)


@pytest.mark.parametrize(
    ("low", "high", "dtype", "expected"),
    [
        (0, 65535, "uint16", (0, 65535)),
        (10, 4000, "uint16", (0, 4095)),
        (3, 900, "uint16", (0, 1023)),
        (0, 255, "int32", (0, 255)),
        (0, 1, "float32", (0, 1)),
        (0.1, 250, "float64", (0, 255)),
    ],
)
def test_values_that_fill_a_depth_get_the_whole(
    low: float, high: float, dtype: str, expected: tuple[float, float]
) -> None:
    (found,) = decide_ranges([span_of(spread(low, high, dtype))]).values()
    assert found == expected


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (200, 1200, "uint16"),
        (-3000, 2000, "int16"),
        (280, 310, "float32"),
        (-1, 1, "float64"),
        (10**6, 10**6 + 500, "int32"),
    ],
)
def test_others_get_the_span_that_they_take(low: float, high: float, dtype: str) -> None:
    (found,) = decide_ranges([span_of(spread(low, high, dtype))]).values()
    assert found == pytest.approx((low, high), abs=0.002 * (high - low) + 1e-6)


def test_nan_infinity_and_no_data_decide_nothing_and_become_black() -> None:
    values = spread(280, 310, "float32")
    values[0, :20] = np.nan
    values[1, :20] = np.inf
    values[2, :20] = -3.4e38
    values[3, :20] = -9999
    (found,) = decide_ranges([span_of(values, nodata=-9999.0)]).values()
    assert found == pytest.approx((280, 310), abs=2)
    scaled = to_eight_bits(values, found, nodata=-9999.0)
    assert not scaled[:4, :20].any()
    assert scaled[40].min() > 100
    assert span_of(np.full((4, 4, 1), np.nan)) is None


def test_a_few_hot_pixels_and_one_odd_photo_among_many_decide_nothing() -> None:
    values = spread(0, 4000, "uint16")
    values[5, :3] = 65535
    spans = [span_of(values) for _ in range(40)] + [span_of(np.full((8, 8, 1), 65535, np.uint16))]
    assert decide_ranges(spans) == {"uint16": (0, 4095)}


def test_each_kind_has_its_own_range() -> None:
    spans = [span_of(spread(0, 4000, "uint16")), None, span_of(spread(0, 1, "float32"))]
    assert decide_ranges(spans) == {"float": (0, 1), "uint16": (0, 4095)}


def test_a_set_is_read_by_one_range(tmp_path: Path) -> None:
    """A dark photo stays dark beside a bright one; 8 bits stay as they are; a broken photo is left out."""
    dark, bright = spread(0, 1000, "uint16"), spread(0, 4000, "uint16")
    for name, values in (("dark", dark), ("bright", bright)):
        tifffile.imwrite(tmp_path / f"{name}.tif", values[..., 0], photometric="minisblack")
    grey = RNG.integers(0, 60, (64, 64), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "plain.png")
    (tmp_path / "broken.tif").write_bytes(b"II*\0\xff\xff\xff\xff")
    names = ("bright.tif", "broken.tif", "dark.tif", "plain.png")
    bags = BagSet(
        name="x",
        classes=("background", "cat"),
        bags=tuple(Bag(name=name, photo=tmp_path / name, tags=(1, 1)) for name in names),
        tags_from="test",
    )
    kept, facts, bad = readable_bags(bags, read_photos(bags.bags, progress=False))
    assert [bag.name for bag in kept.bags] == ["bright.tif", "dark.tif", "plain.png"]
    assert len(facts) == 3
    assert bad[0].startswith("broken.tif: ")
    assert kept.value_ranges == {"uint16": (0, 4095)}
    assert any(
        "2 photos of more than 8 bits" in note and "uint16 from 0 to 4,095" in note for note in kept.notes
    )
    photos = [load_photo(bag) for bag in kept.bags]
    assert [photo.max() for photo in photos] == [249, 62, grey.max()]  # 4000 and 1000 of 4095
    np.testing.assert_array_equal(photos[2][..., 0], grey)
    # By itself the dark one would be as bright.
    assert open_photo(tmp_path / "dark.tif").max() == 249
    paths = [tmp_path / name for name in names]
    assert sample_ranges(paths) == {"uint16": (0, 4095)}


def test_the_first_page_and_the_first_bands_are_said(tmp_path: Path) -> None:
    values = RNG.integers(0, 4096, (3, 20, 30), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", values, photometric="minisblack")
    raster = read_photo(tmp_path / "stack.tif")
    np.testing.assert_array_equal(raster.values[..., 0], values[0])
    assert raster.notes == ("several pages, of which the first is taken",)
    bands = RNG.integers(0, 256, (20, 30, 7), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "bands.tif", bands, photometric="minisblack", planarconfig="contig")
    raster = read_photo(tmp_path / "bands.tif")
    np.testing.assert_array_equal(raster.values, bands[..., :3])
    assert raster.notes == ("7 bands, of which the first 3 are taken",)


@pytest.mark.parametrize(
    "ranges",
    [{"uint12": (0.0, 1.0)}, {"float": (1.0, 1.0)}, {"float": (2.0, 1.0)}, {"float": (float("nan"), 1.0)}],
)
def test_ranges_that_are_none(ranges: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(UserError, match=r"kind of values|expected a low and a higher number"):
        check_ranges(ranges)
