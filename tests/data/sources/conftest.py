"""Tiny PASCAL VOC and SBD trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray
from PIL import Image

Mask = NDArray[np.uint8]


class Tree:
    """Makes VOC years and SBD below one folder; photos are empty files, as reading must not open them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, place: str, data: bytes = b"") -> Path:
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def voc(self, year: int, lists: Mapping[str, Sequence[str]], *, home: str = "VOCdevkit") -> Path:
        folder = self.root / home / f"VOC{year}"
        for name, ids in lists.items():
            text = "".join(f"{i}\n" for i in ids)
            self.write(f"{home}/VOC{year}/ImageSets/Segmentation/{name}.txt", text.encode())
            for i in ids:
                self.write(f"{home}/VOC{year}/JPEGImages/{i}.jpg")
        return folder

    def mask(self, folder: Path, name: str, values: Mask) -> Path:
        image = Image.frombytes("P", (values.shape[1], values.shape[0]), values.tobytes())
        image.putpalette([(37 * i) % 256 for i in range(768)])
        path = folder / "SegmentationClass" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        return path

    def xml(self, folder: Path, name: str, objects: Sequence[str]) -> Path:
        things = "".join(
            f"<object><name>{o}</name><difficult>{n % 2}</difficult><part><name>head</name></part></object>"
            for n, o in enumerate(objects)
        )
        path = folder / "Annotations" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<annotation><filename>{name}.jpg</filename>{things}</annotation>")
        return path

    def sbd(self, lists: Mapping[str, Sequence[str]], *, home: str = "benchmark_RELEASE/dataset") -> Path:
        folder = self.root / home
        for name, ids in lists.items():
            self.write(f"{home}/{name}.txt", "".join(f"{i}\n" for i in ids).encode())
            for i in ids:
                self.write(f"{home}/img/{i}.jpg")
                self.mat(folder, i, np.array([[0, 15]], dtype=np.uint8))
        return folder

    def mat(self, folder: Path, name: str, values: Mask, *, compress: bool = True) -> Path:
        path = folder / "cls" / f"{name}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        boundaries = np.empty((20, 1), dtype=object)
        boundaries.fill(np.eye(2))
        content = {"Boundaries": boundaries, "Segmentation": values, "CategoriesPresent": np.array([[15.0]])}
        scipy.io.savemat(path, {"GTcls": content}, do_compression=compress)
        return path


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)
