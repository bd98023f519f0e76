"""What is fuzzed: every reader of files that come from elsewhere. Only a UserError may escape.

Each target takes the bytes of a file, writes them where the reader expects the file, and reads it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from milseg import cli
from milseg.config.source import ShardReading
from milseg.data.image import open_mask, open_photo
from milseg.data.label_map import read_label_map
from milseg.data.shards.index import read_index, scan_shard
from milseg.data.sources.known_tags import read_known_tags
from milseg.data.sources.mask_names import read_labels
from milseg.data.sources.open import open_source
from milseg.data.sources.tag_file import read_ids
from milseg.data.sources.voc import read_annotation
from milseg.data.sources.voc_layout import read_objects
from milseg.errors import UserError
from milseg.inference.model_folder import ModelSpec, load_model, save_model
from milseg.models.transfer import read_mapping
from milseg.models.weights import read_state
from milseg.training.checkpoint import load_state

PHOTO_PIXELS = 1_000_000  # so that a bomb costs little time


@functools.cache
def place() -> Path:
    """A folder of this process with two photos and a model in it, in memory where there is such a folder."""
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(prefix="milseg-fuzz-", dir=memory if memory.is_dir() else None))
    for name in ("a", "in/b"):
        (root / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(root / "photos" / f"{name}.png")
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / "voc" / folder).mkdir(parents=True)
    Image.new("RGB", (4, 3)).save(root / "voc" / "JPEGImages" / "a.jpg")
    spec = ModelSpec(backbone="tiny", classes=("background", "cat"))
    save_model(root / "model", spec.build(), spec)
    shutil.copytree(root / "model", root / "whole")
    return root


def remove_place() -> None:
    shutil.rmtree(place(), ignore_errors=True)
    place.cache_clear()


@functools.cache
def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = ModelSpec(backbone="tiny", classes=("background", "cat")).build()
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def _file(name: str, data: bytes) -> Path:
    path = place() / name
    path.write_bytes(data)
    return path


def tags(suffix: str, kind: str | None, data: bytes) -> None:
    """Tags of photos, as a source, and as what is known of photos to predict."""
    file = _file(f"tags{suffix}", data)
    with contextlib.suppress(UserError):
        open_source(place() / "photos", tags=file, kind=kind)
    with contextlib.suppress(UserError):
        open_source(
            place() / "photos", tags=file, kind=kind, tags_are="partial", classes=["cat"], split="train"
        )
    with contextlib.suppress(UserError):
        read_known_tags(file, ["background", "cat"], ["a.png", "in/b.png"], root=place() / "photos")


def voc_xml(data: bytes) -> None:
    file = _file("voc/Annotations/a.xml", data)
    for read in (read_objects, read_annotation):
        with contextlib.suppress(UserError):
            read(file)
    with contextlib.suppress(UserError):
        open_source(place() / "voc", kind="voc")


def lists(data: bytes) -> None:
    """Lists of photos and of a class, and class names."""
    file = _file("voc/ImageSets/Main/cat_train.txt", data)
    with contextlib.suppress(UserError):
        read_ids(file)
    (place() / "voc/Annotations/a.xml").unlink(missing_ok=True)
    for split in (None, "train"):
        with contextlib.suppress(UserError):
            open_source(place() / "voc", kind="voc", split=split)
    with contextlib.suppress(UserError):
        read_labels(_file("labels.json", data))


def settings(data: bytes) -> None:
    """A YAML file of settings: the parser's own message and status 2 are its documented error."""
    file = _file("settings.yaml", data)
    for command in ("train", "predict"):
        with contextlib.suppress(UserError), contextlib.redirect_stderr(io.StringIO()):
            try:
                cli.parse([command, "photos", "--config", str(file)])
            except SystemExit as error:
                if error.code != 2:
                    raise
    with contextlib.suppress(UserError):
        read_mapping(file, ("tench", "goldfish, golden fish"))


def model_folder(name: str, data: bytes) -> None:
    """A model folder, of which one file holds the data."""
    whole = (place() / "whole" / name).read_bytes()
    file = _file(f"model/{name}", data)
    try:
        with contextlib.suppress(UserError):
            load_model(place() / "model")
    finally:
        file.write_bytes(whole)


def weights(data: bytes) -> None:
    """Weights as a file, and as the state of a training run."""
    for suffix in (".safetensors", ".pth"):
        with contextlib.suppress(UserError):
            read_state(_file(f"weights{suffix}", data))
    model, optimiser = trained()
    with contextlib.suppress(UserError):
        load_state(_file("checkpoint.safetensors", data), model, optimiser, config={})  # type: ignore[arg-type]


def tar(data: bytes) -> None:
    file = _file("shard.tar", data)
    with contextlib.suppress(UserError):
        scan_shard(file)
    reading = ShardReading(cache=place() / "cache")
    shutil.rmtree(place() / "cache", ignore_errors=True)
    with contextlib.suppress(UserError):
        open_source(file, shards=reading)


def shard_json(data: bytes) -> None:
    """A shard's index, and a manifest of shards."""
    with contextlib.suppress(UserError):
        read_index(_file("shard.json", data))
    folder = place() / "shards"
    folder.mkdir(exist_ok=True)
    (folder / "shards.json").write_bytes(data)
    with contextlib.suppress(UserError):
        open_source(folder, shards=ShardReading(cache=place() / "cache"))


def photo(data: bytes) -> None:
    file = _file("photo.png", data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for read in (open_photo, open_mask):
            with contextlib.suppress(UserError):
                read(file, max_pixels=PHOTO_PIXELS)
        with contextlib.suppress(UserError):
            open_mask(_file("mask.mat", data), max_pixels=PHOTO_PIXELS)


def label_map(data: bytes) -> None:
    """CVAT's label map of colour masks."""
    with contextlib.suppress(UserError):
        read_label_map(_file("labelmap.txt", data))


TARGETS: dict[str, Callable[[bytes], None]] = {
    "tags_csv": functools.partial(tags, ".csv", None),
    "tags_tsv": functools.partial(tags, ".tsv", None),
    "tags_json_lines": functools.partial(tags, ".jsonl", None),
    "coco": functools.partial(tags, ".json", "coco"),
    "label_studio": functools.partial(tags, ".json", "label_studio"),
    "label_map": label_map,
    "cvat": functools.partial(tags, ".xml", "cvat"),
    "datumaro": functools.partial(tags, ".json", "datumaro"),
    "voc_xml": voc_xml,
    "lists": lists,
    "settings": settings,
    "model_config": functools.partial(model_folder, "config.yaml"),
    "model_labels": functools.partial(model_folder, "labels.json"),
    "model_weights": functools.partial(model_folder, "model.safetensors"),
    "weights": weights,
    "tar": tar,
    "shard_json": shard_json,
    "photo": photo,
}
