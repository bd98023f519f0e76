"""A tiny PASCAL VOC tree with real photos, and weights to go with it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from safetensors.torch import save_file

from milseg.models.backbones import make_classifier

# Tests run side by side, a process for each core: more threads would wait for one another. And sums round the same.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

# A slow machine is no failure, and CI must not fail for a case that nobody can find again.
settings.register_profile("milseg", deadline=None, derandomize=True)
settings.load_profile("milseg")

CAT, DOG = 8, 12
SIZE = (41, 50)


class SmallVoc:
    """VOC 2012 with 4 training, 2 validation and 1 test photo of 41 x 50: a red cat or a blue dog on grey."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "VOCdevkit" / "VOC2012"
        for folder in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
            (self.home / folder).mkdir(parents=True)
        lists = {"train": ["t0", "t1", "t2", "t3"], "val": ["v0", "v1"], "test": ["x0"]}
        for split, ids in lists.items():
            (self.home / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(
                "".join(f"{i}\n" for i in ids)
            )
            for number, name in enumerate(ids):
                self._write(name, (CAT, DOG)[number % 2], labelled=split != "test")

    def _write(self, name: str, value: int, *, labelled: bool) -> None:
        random = np.random.default_rng(sum(name.encode()))
        photo = random.integers(110, 140, (*SIZE, 3)).astype(np.uint8)
        mask = np.zeros(SIZE, dtype=np.uint8)
        photo[8:30, 10:36] = (220, 30, 30) if value == CAT else (30, 30, 220)
        mask[7:31, 9:37] = 255
        mask[8:30, 10:36] = value
        Image.fromarray(photo).save(self.photo(name), quality=95)
        if labelled:
            self.write_mask(name, mask)
            kind = "cat" if value == CAT else "dog"
            text = f"<annotation><object><name>{kind}</name></object></annotation>"
            (self.home / "Annotations" / f"{name}.xml").write_text(text)

    def photo(self, name: str) -> Path:
        return self.home / "JPEGImages" / f"{name}.jpg"

    def mask(self, name: str) -> Path:
        return self.home / "SegmentationClass" / f"{name}.png"

    def write_mask(self, name: str, mask: np.ndarray) -> None:
        image = Image.fromarray(mask)
        image.putpalette([(37 * i) % 256 for i in range(768)])
        image.save(self.mask(name))


@pytest.fixture
def small_voc(tmp_path: Path) -> SmallVoc:
    return SmallVoc(tmp_path / "data")


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `tiny` classifier of 1000 categories in torchvision's layout; random, so its rows mean nothing."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(make_classifier("tiny", 1000, seed=0).state_dict(), path)
    return path


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; what the command line does to the import path is undone."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "path", sys.path[:])
    return tmp_path / "here"
