"""YOLO segmentation labels: polygons in text files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from milseg.annotations.polygons import polygons
from milseg.annotations.writer import Prediction, Writer
from milseg.utils.files import atomic_path, write_text

# Pixels; see `polygons`. At seven decimals still distinct in photos of 100,000 pixels a side.
INSET = 1 / 64


class YoloWriter(Writer):
    """`yolo/labels/NAME.txt`, one line a connected region, and `yolo/data.yaml`.

    A line is the class, counted from 0 without the background, then x and y of each point, 0 to 1 of the
    photo's width and height. Holes are joined to the outside by a cut, as the format has none. A photo
    without objects has an empty file. The photos themselves are not copied: put or link them below
    `yolo/images`.

    Source: Ultralytics' "Instance segmentation datasets".
    """

    format = "yolo"
    run_files = ("yolo/data.yaml",)

    @classmethod
    def files_of(cls, name: str, header: Mapping[str, Any], data: Any = None) -> list[str]:
        return [f"yolo/labels/{name}.txt"]

    def _write(self, prediction: Prediction) -> None:
        height, width = prediction.mask.shape
        lines = []
        for number in self.present(prediction.mask):
            for points in polygons(prediction.mask == number, inset=INSET):
                numbers = (points / (width, height)).ravel().tolist()
                lines.append(" ".join([str(number - self.first_label), *(f"{n:.7f}" for n in numbers)]))
        path = self.place(self.out / "yolo" / "labels", prediction.name, ".txt")
        with atomic_path(path, sync=False) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="ascii", newline="\n")

    def _finish(self) -> list[Path]:
        (self.out / "yolo").mkdir(exist_ok=True)
        names = [f"  {i}: {json.dumps(name, ensure_ascii=False)}" for i, name in enumerate(self.labels)]
        head = ["# Put or link the photos below images/, as they lie below labels/.", "path: ."]
        text = "\n".join([*head, "train: images", "val: images", "names:" if names else "names: {}", *names])
        write_text(self.out / "yolo" / "data.yaml", text + "\n")
        return [self.out / "yolo"]
