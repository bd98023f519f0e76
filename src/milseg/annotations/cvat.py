"""CVAT: an archive for its import of "Segmentation mask 1.1"."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from milseg.annotations.writer import Prediction, Writer
from milseg.data.image import UInt8
from milseg.data.masks import palette
from milseg.errors import UserError
from milseg.utils.files import atomic_path

CLASS_FOLDER, OBJECT_FOLDER = "SegmentationClass", "SegmentationObject"
LIST_FILE = "ImageSets/Segmentation/default.txt"


class CvatWriter(Writer):
    """`cvat.zip`: colour masks of the classes and of the objects, a label map and a list of the photos.

    Each class a photo shows is one object. The task's labels must be those of `labelmap.txt`, but for the
    background, and its photos must lie in the same folders.

    CVAT takes every pixel's class from its colour: black is the background, and void becomes background too.
    Where the classes have no background, their colours start at the palette's second, and the label map has
    one all the same. Objects are numbered 1, 2, ... and take the palette's colours; black belongs to none.

    Source: CVAT's "Segmentation mask" format, which is PASCAL VOC's with a label map.
    """

    format = "cvat"
    run_files = ("cvat.zip",)

    def _check_classes(self) -> None:
        super()._check_classes()
        for name in self.classes:
            if ":" in name or name.startswith("#") or name != name.strip():
                raise UserError(
                    f"class {name!r}: CVAT's label map has no way to write ':', a leading '#' or spaces "
                    "around a name; rename the class, or leave the format cvat out"
                )
        if "background" in self.classes[1:]:
            raise UserError("class 'background' must come first, as number 0")

    @classmethod
    def check_photo_name(cls, name: str) -> None:
        super().check_photo_name(name)
        if name.startswith("#") or name != name.strip():
            raise UserError(
                f"photo {name!r}: CVAT's list of photos has no way to write a leading '#' or spaces around a "
                "name; rename the photo, or leave the format cvat out"
            )

    @classmethod
    def files_of(cls, name: str, header: Mapping[str, Any], data: Any = None) -> list[str]:
        return [f".parts/cvat/{folder}/{name}.png" for folder in (CLASS_FOLDER, OBJECT_FOLDER)]

    def _colours(self) -> UInt8:
        """The colour of each number in a mask, uint8 [256, 3]; black where it is no label."""
        colours = np.zeros((256, 3), dtype=np.uint8)
        count = len(self.labels)
        colours[self.first_label : self.first_label + count] = palette()[1 : count + 1]
        return colours

    def _write(self, prediction: Prediction) -> None:
        mask = prediction.mask
        objects = np.zeros(256, dtype=np.uint8)
        present = self.present(mask)
        objects[present] = np.arange(1, len(present) + 1)
        for folder, colours in ((CLASS_FOLDER, self._colours()), (OBJECT_FOLDER, palette()[objects])):
            path = self.place(self.parts / "cvat" / folder, prediction.name, ".png")
            with atomic_path(path, sync=False) as temporary:
                Image.fromarray(colours[mask]).save(temporary, format="PNG")

    def label_map(self) -> str:
        """The text of `labelmap.txt`: name, colour, and two fields (parts, actions) that stay empty."""
        rows = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
        for name, colour in zip(self.labels, palette()[1:].tolist(), strict=False):
            rows.append(f"{name}:{','.join(map(str, colour))}::")
        return "\n".join(rows) + "\n"

    def _names(self) -> Iterator[str]:
        for entry in self._ledger:
            yield entry["name"]

    def _finish(self) -> list[Path]:
        path = self.out / "cvat.zip"
        with (
            atomic_path(path) as temporary,
            # PNG files are packed already.
            zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
        ):
            archive.writestr(_entry("labelmap.txt"), self.label_map())
            archive.writestr(_entry(LIST_FILE), "".join(f"{name}\n" for name in self._names()))
            for name in self._names():
                for folder in (CLASS_FOLDER, OBJECT_FOLDER):
                    inside = f"{folder}/{name}.png"
                    archive.writestr(_entry(inside), (self.parts / "cvat" / inside).read_bytes())
        return [path]


def _entry(name: str) -> zipfile.ZipInfo:
    # No time of writing: equal masks give equal archives.
    info = zipfile.ZipInfo(name)
    info.external_attr = 0o644 << 16
    return info
