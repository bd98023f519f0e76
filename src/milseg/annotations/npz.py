"""The coarse scores of each photo, for whoever wants to decide differently."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from milseg.annotations.writer import Prediction, Writer
from milseg.utils.files import atomic_path


class NpzWriter(Writer):
    """`scores/NAME.npz`: what the network gave, as plain arrays that `numpy.load` reads without pickle.

    Keys: `scores` float16 [C, h, w]; `classes` [C]; `stride` and `offset` (place i is centred on pixel
    offset + i * stride of the network's input); `input_size` and `size`, (height, width) of the network's
    input and of the photo.
    """

    format = "npz"
    needs_scores = True

    @classmethod
    def files_of(cls, name: str, header: Mapping[str, Any], data: Any = None) -> list[str]:
        return [f"scores/{name}.npz"]

    def _write(self, prediction: Prediction) -> None:
        scores, stride, offset = prediction.scores, prediction.stride, prediction.offset
        if scores is None or stride is None or offset is None:
            raise ValueError(f"{prediction.name}: this format needs scores, stride and offset")
        if scores.ndim != 3 or scores.shape[0] != len(self.classes):
            raise ValueError(
                f"{prediction.name}: expected scores [{len(self.classes)}, h, w], got {list(scores.shape)}"
            )
        # Beyond float16's range a score stays the largest there is, rather than becoming infinite.
        largest = float(np.finfo(np.float16).max)
        path = self.place(self.out / "scores", prediction.name, ".npz")
        with atomic_path(path, sync=False) as temporary:
            np.savez_compressed(
                temporary,
                scores=np.clip(scores, -largest, largest).astype(np.float16),
                classes=np.array(self.classes),
                stride=np.float64(stride),
                offset=np.float64(offset),
                input_size=np.array(prediction.input_size or prediction.size, dtype=np.int64),
                size=np.array(prediction.size, dtype=np.int64),
            )

    def _finish(self) -> list[Path]:
        return [self.out / "scores"]
