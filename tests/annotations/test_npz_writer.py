"""scores/: what is kept of the coarse map."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from milseg.annotations.npz import NpzWriter

from .helpers import CLASSES, mask_of, prediction


def test_every_array_comes_back_without_pickle(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    with NpzWriter(tmp_path, CLASSES) as writer:
        writer.add(prediction("x/a", mask_of([0, 1]), scores=scores, offset=1.5, input_size=(64, 128)))
    with np.load(tmp_path / "scores" / "x" / "a.npz", allow_pickle=False) as data:
        assert data["scores"].dtype == np.float16
        np.testing.assert_array_equal(data["scores"], scores.astype(np.float16))
        assert data["classes"].tolist() == list(CLASSES)
        assert (float(data["stride"]), float(data["offset"])) == (32.0, 1.5)
        assert (data["input_size"].tolist(), data["size"].tolist()) == ([64, 128], [1, 2])


def test_scores_beyond_float16_stay_finite(tmp_path: Path) -> None:
    scores = np.array([1e6, -1e6, 1.0]).reshape(3, 1, 1)
    with NpzWriter(tmp_path, CLASSES) as writer:
        writer.add(prediction("a", mask_of([0]), scores=scores))
    with np.load(tmp_path / "scores" / "a.npz") as data:
        assert data["scores"].ravel().tolist() == [65504.0, -65504.0, 1.0]


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": None},
        {"stride": None},
        {"offset": None},
        {"scores": np.zeros((2, 1, 1))},
        {"scores": np.zeros(3)},
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, changes: dict[str, Any]) -> None:
    with NpzWriter(tmp_path, CLASSES) as writer, pytest.raises(ValueError, match=r"^a: .*scores"):
        writer.add(prediction("a", mask_of([0]), **changes))
    assert not (tmp_path / "scores").exists()
