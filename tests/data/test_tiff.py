"""TIFF of every layout against the numbers that were written, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from milseg.data.image import read_photo

RNG = np.random.default_rng(0)
DTYPES = ("u1", "u2", "u4", "i1", "i2", "i4", "f2", "f4", "f8")


def numbers(shape: tuple[int, ...], dtype: str) -> np.ndarray[Any, Any]:
    if dtype[0] == "f":
        return RNG.normal(0, 100, shape).astype(dtype)
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def pack(values: np.ndarray[Any, Any], **tags: Any) -> bytes:
    """A strip written by libtiff for Pillow, to be put into a TIFF of another layout."""
    import io

    file = io.BytesIO()
    Image.fromarray(values).save(file, "TIFF", **tags)
    return file.getvalue()


def write(path: Path, values: np.ndarray[Any, Any], **options: Any) -> Path:
    options = {"photometric": "minisblack", **options}
    tifffile.imwrite(path, values, **options)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "layout",
    [{}, {"tile": (32, 16)}, {"rowsperstrip": 7}, {"bigtiff": True}, {"compression": "zlib"}],
    ids=str,
)
def test_grey_of_every_type(tmp_path: Path, dtype: str, order: str, layout: dict[str, Any]) -> None:
    values = numbers((45, 70), dtype)
    path = write(tmp_path / "x.tif", values, byteorder=order, **layout)
    raster = read_photo(path)
    assert raster.values.shape == ((45, 70, 3) if dtype == "u1" and "bigtiff" not in layout else (45, 70, 1))
    np.testing.assert_array_equal(raster.values[..., 0], values)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("layout", [{}, {"tile": (16, 32)}, {"rowsperstrip": 9}], ids=str)
def test_colours_of_every_layout(tmp_path: Path, dtype: str, planar: str, layout: dict[str, Any]) -> None:
    values = numbers((45, 70, 3), dtype)
    stored = values if planar == "contig" else values.transpose(2, 0, 1)
    path = write(tmp_path / "x.tif", stored, photometric="rgb", planarconfig=planar, **layout)
    np.testing.assert_array_equal(read_photo(path).values, values)


@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i2", "f4", "f8"])
@pytest.mark.parametrize("tile", [None, (16, 32)])
def test_predictors(tmp_path: Path, dtype: str, predictor: bool, tile: tuple[int, int] | None) -> None:
    pytest.importorskip("imagecodecs" if predictor and dtype[0] == "f" else "zlib")
    values = numbers((45, 70, 3), dtype)
    path = write(
        tmp_path / "x.tif", values, photometric="rgb", compression="zlib", predictor=predictor, tile=tile
    )
    np.testing.assert_array_equal(read_photo(path).values, values)
