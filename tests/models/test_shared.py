"""Real weights on real photos, where they lie beside the checkout (or where MILSEG_SHARED says)."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import torch

from milseg.data.image import normalise, open_photo
from milseg.models.backbones import cast_classifier
from milseg.models.transfer import build_model, voc_synsets
from milseg.models.weights import load_classifier

SHARED = Path(os.environ.get("MILSEG_SHARED", Path(__file__).resolve().parents[2].parent / "shared"))
PHOTOS = SHARED / "data" / "voc-animals"
NETWORKS = ("squeezenet1_0", "mobilenet_v2")

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(
        not (SHARED / "weights").is_dir() or not PHOTOS.is_dir(), reason="no shared photos and weights"
    ),
]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On cores that others use too, two threads wait for each other longer than they save."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def weights(name: str) -> Path:
    return SHARED / "weights" / f"{name}-imagenet.safetensors"


def photos(tag: str, count: int) -> list[torch.Tensor]:
    """The first `count` val photos that carry only this tag, each [1, 3, H, W]."""
    with (PHOTOS / "tags.csv").open(newline="", encoding="utf-8") as file:
        names = [row["image"] for row in csv.DictReader(file) if row["tags"] == tag and row["split"] == "val"]
    return [normalise(open_photo(PHOTOS / "VOC2012" / "JPEGImages" / name))[None] for name in names[:count]]


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_dogs_and_cats_are_recognised(name):
    """One of the classifier's five best classes is a breed of the photo's own animal."""
    network, _ = load_classifier(name, weights(name))
    model = cast_classifier(name, network).eval()
    right = 0
    for tag in ("dog", "cat"):
        rows = {entry["index"] for entry in voc_synsets()[tag]}
        for image in photos(tag, 6):
            right += bool(rows & set(model.classify(image)[0].topk(5).indices.tolist()))
    assert right >= 8, f"{right} of 12"


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_transferred_rows_prefer_the_photos_own_class(name):
    """Mostly, the mean score of a photo's places is the highest for its own tag."""
    tags = ["cat", "cow", "dog", "horse", "sheep"]
    model, report = build_model(name, ["background", *tags], weights=weights(name), output_stride=16)
    assert report.without_rows == ()
    model.eval()
    right = sum(
        tags[int(model(image).mean((2, 3))[0, 1:].argmax())] == tag
        for tag in tags
        for image in photos(tag, 3)
    )
    assert right >= 8, f"{right} of 15; chance is 3"
