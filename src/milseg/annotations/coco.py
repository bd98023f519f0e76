"""COCO's object annotations, with compressed run lengths for masks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from skimage.measure import label

from milseg._version import __version__
from milseg.annotations.rle import Bools, coco_rle
from milseg.annotations.writer import Prediction, Writer
from milseg.utils.files import atomic_path


def box(mask: Bools) -> list[int]:
    """[x, y, width, height] of the pixels that are True; there must be one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


class CocoWriter(Writer):
    """`coco.json`: one annotation for each class a photo shows, or for each of its connected regions.

    Category ids are 1, 2, ... in the order of the classes; the background is none. Besides COCO's own fields
    each annotation has a `score`, as COCO's results have.

    Source: COCO's "Data format", object detection.
    """

    format = "coco"
    run_files = ("coco.json",)

    def __init__(
        self, out: Path, classes: Sequence[str], *, resume: bool = False, regions: bool = False
    ) -> None:
        """
        Args:
            regions: one annotation a connected region (pixels that share a side or a corner), not a class.
        """
        self.regions = regions
        super().__init__(out, classes, resume=resume, regions=regions)

    def _write(self, prediction: Prediction) -> dict[str, Any]:
        height, width = prediction.mask.shape
        objects = []
        for number in self.present(prediction.mask):
            for part in self._parts(prediction.mask == number):
                objects.append(
                    {
                        "category_id": number + 1 - self.first_label,
                        "segmentation": coco_rle(part),
                        "area": int(part.sum()),
                        "bbox": box(part),
                        "iscrowd": 0,
                        "score": prediction.score(self.classes[number]),
                    }
                )
        return {"width": width, "height": height, "objects": objects}

    def _parts(self, mask: Bools) -> Iterator[Bools]:
        if not self.regions:
            yield mask
            return
        regions, count = label(mask, connectivity=2, return_num=True)  # type: ignore[no-untyped-call]
        for region in range(1, count + 1):
            yield regions == region

    def _images(self) -> Iterator[dict[str, Any]]:
        for image_id, entry in enumerate(self._ledger, start=1):
            data = entry["data"]
            yield {
                "id": image_id,
                "file_name": entry["photo_file"],
                "width": data["width"],
                "height": data["height"],
            }

    def _annotations(self) -> Iterator[dict[str, Any]]:
        annotation_id = 0
        for image_id, entry in enumerate(self._ledger, start=1):
            for item in entry["data"]["objects"]:
                annotation_id += 1
                yield {"id": annotation_id, "image_id": image_id, **item}

    def _finish(self) -> list[Path]:
        path = self.out / "coco.json"
        categories = [
            {"id": i, "name": name, "supercategory": ""} for i, name in enumerate(self.labels, start=1)
        ]
        info = {"description": f"Masks predicted by milseg {__version__}"}
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(f'{{"info": {json.dumps(info)},\n"licenses": [],\n"images": ')
            write_list(file, self._images())
            file.write(',\n"annotations": ')
            write_list(file, self._annotations())
            file.write(f',\n"categories": {json.dumps(categories, ensure_ascii=False)}}}\n')
        return [path]


def write_list(file: IO[str], items: Iterable[Any]) -> None:
    """Write a JSON list, one item a line, holding one item at a time."""
    file.write("[")
    for i, item in enumerate(items):
        file.write(",\n" if i else "\n")
        file.write(json.dumps(item, ensure_ascii=False, allow_nan=False))
    file.write("\n]")
