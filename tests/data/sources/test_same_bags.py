"""A source of each kind, made from the same photos, gives the same bags."""

from __future__ import annotations

import csv
import json
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest

import milseg.data.image
from milseg.data.bags import BagSet
from milseg.data.source_table import SOURCES
from milseg.data.sources.open import find_source, open_source

SHARED = Path(os.environ.get("MILSEG_SHARED", Path(__file__).resolve().parents[3].parent / "shared"))
PHOTOS = SHARED / "data" / "voc-animals"

Tagged = Mapping[str, tuple[bytes, tuple[str, ...]]]  # file name -> content, tags


def put(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def put_photos(folder: Path, photos: Tagged) -> None:
    for name, (data, _) in photos.items():
        put(folder / name, data)


def write_folder(root: Path, photos: Tagged) -> Path:
    for name, (data, tags) in photos.items():
        for tag in tags or ("background",):
            put(root / tag / name, data)
    return root


def write_rows(root: Path, photos: Tagged, *, delimiter: str, between: str, name: str) -> Path:
    put_photos(root, photos)
    rows = "".join(
        f"{image}{delimiter}{between.join(tags)}{delimiter}train\n" for image, (_, tags) in photos.items()
    )
    put(root / name, f"\ufeffimage{delimiter}tags{delimiter}split\n{rows}")
    return root


def write_commas(root: Path, photos: Tagged) -> Path:
    return write_rows(root, photos, delimiter=",", between=" ", name="tags.csv")


def write_tabs(root: Path, photos: Tagged) -> Path:
    return write_rows(root / "images", photos, delimiter="\t", between=";", name="../labels.tsv").parent


def write_bars(root: Path, photos: Tagged) -> Path:
    return write_rows(root, photos, delimiter="|", between=",", name="any.txt")


def write_columns(root: Path, photos: Tagged) -> Path:
    put_photos(root / "JPEGImages" / "deep", photos)
    names = sorted({tag for _, tags in photos.values() for tag in tags}, reverse=True)
    rows = (",".join([image, *(str(int(n in tags)) for n in names)]) for image, (_, tags) in photos.items())
    put(root / "table.csv", "\n".join([",".join(["image", *names]), *rows]))
    return root / "table.csv"


def write_json_lines(root: Path, photos: Tagged) -> Path:
    put_photos(root / "images", photos)
    lines = (
        json.dumps({"image": name.rpartition(".")[0], "tags": list(tags)})
        for name, (_, tags) in photos.items()
    )
    put(root / "tags.jsonl", "\n".join(lines))
    return root


def write_coco(root: Path, photos: Tagged) -> Path:
    put_photos(root / "train2017", photos)
    names = sorted({tag for _, tags in photos.values() for tag in tags}, key=lambda name: name[::-1])
    # The first id is 0, and there are gaps, up to 90 as in COCO's own files.
    ids = {name: 90 * i // max(1, len(names) - 1) for i, name in enumerate(names)}
    images = [{"id": 10 * i, "file_name": name} for i, name in enumerate(photos)]
    pairs = [(10 * i, ids[tag]) for i, (_, tags) in enumerate(photos.values()) for tag in (*tags, *tags[:1])]
    data = {
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": [0, 0, 1, 1]}
            for n, (image, category) in enumerate(pairs)
        ],
        "images": images,
        "categories": [{"id": i, "name": name} for name, i in ids.items()],
    }
    put(root / "annotations" / "instances_train2017.json", json.dumps(data))
    return root


def write_voc(root: Path, photos: Tagged) -> Path:
    home = root / "VOCdevkit" / "VOC2012"
    put_photos(home / "JPEGImages", photos)
    for name, (_, tags) in photos.items():
        things = "".join(f"<object><name>{tag}</name></object>" for tag in tags)
        put(home / "Annotations" / f"{name.rpartition('.')[0]}.xml", f"<annotation>{things}</annotation>")
    return root


def write_voc_lists(root: Path, photos: Tagged) -> Path:
    put_photos(root / "JPEGImages", photos)
    for tag in {tag for _, tags in photos.values() for tag in tags}:
        lines = (
            f"{name.rpartition('.')[0]} {1 if tag in tags else -1:2d}\n" for name, (_, tags) in photos.items()
        )
        put(root / "ImageSets" / "Main" / f"{tag}_train.txt", "".join(lines))
    return root


def write_cvat(root: Path, photos: Tagged) -> Path:
    put_photos(root, photos)
    images = "".join(
        f"<image name={quoteattr(name)}>{''.join(f'<tag label={quoteattr(tag)}/>' for tag in tags)}</image>"
        for name, (_, tags) in photos.items()
    )
    put(root / "annotations.xml", f"<annotations>{images}</annotations>")
    return root


def write_datumaro(root: Path, photos: Tagged) -> Path:
    put_photos(root / "images" / "default", photos)
    names = sorted({tag for _, tags in photos.values() for tag in tags})
    items = [
        {"id": name.rpartition(".")[0], "annotations": [{"label_id": names.index(tag)} for tag in tags]}
        for name, (_, tags) in photos.items()
    ]
    labels = {"label": {"labels": [{"name": name} for name in names]}}
    put(root / "annotations" / "default.json", json.dumps({"categories": labels, "items": items}))
    return root


def write_label_studio(root: Path, photos: Tagged) -> Path:
    put_photos(root, photos)
    addresses = (
        "/data/local-files/?d=somewhere/{}",
        "/data/upload/7/0a1b2c3d-{}",
        "{}",
        "https://example.org/x/{}?v=2",
    )
    tasks = []
    for i, (name, (_, tags)) in enumerate(photos.items()):
        kind = ("choices", "rectanglelabels", "brushlabels", "taxonomy")[i % 4]
        values = [["thing", tag] for tag in tags] if kind == "taxonomy" else list(tags)
        results = [{"type": kind, "value": {kind: [value]}} for value in values]
        tasks.append(
            {
                "id": 100 + i,
                "annotations": [{"result": [*results, {"type": "textarea", "value": {"text": ["hi"]}}]}],
                "data": {"image": addresses[i % len(addresses)].format(name)},
            }
        )
    put(root / "project-1.json", json.dumps(tasks, indent=1))
    return root / "project-1.json"


WRITERS: dict[str, tuple[str, Callable[[Path, Tagged], Path]]] = {
    "folder": ("folder", write_folder),
    "commas": ("table", write_commas),
    "tabs": ("table", write_tabs),
    "bars": ("table", write_bars),
    "columns": ("table", write_columns),
    "json lines": ("table", write_json_lines),
    "coco": ("coco", write_coco),
    "voc": ("voc", write_voc),
    "voc lists": ("voc", write_voc_lists),
    "label studio": ("label_studio", write_label_studio),
    "cvat": ("cvat", write_cvat),
    "datumaro": ("datumaro", write_datumaro),
}


def content(bags: BagSet) -> dict[str, tuple[int, ...]]:
    """Tags by the photo's own name, whatever folder it is in."""
    found = {bag.name.rpartition("/")[2]: bag.tags for bag in bags.bags}
    assert len(found) == len(bags)
    return found


def expected(photos: Tagged) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    classes = ("background", *sorted({tag for _, tags in photos.values() for tag in tags}))
    return classes, {
        name.rpartition(".")[0]: tuple(int(c == "background" or c in tags) for c in classes)
        for name, (_, tags) in photos.items()
    }


def check(tmp_path: Path, photos: Tagged) -> None:
    classes, tags = expected(photos)
    for name, (kind, write) in WRITERS.items():
        source = write(tmp_path / name, photos)
        assert find_source(source).kind == kind, name
        bags = open_source(source)
        assert bags.classes == classes, name
        assert content(bags) == tags, name
        for bag in bags.bags:
            assert isinstance(bag.photo, Path)
            assert bag.photo.is_file(), name


def test_every_kind_is_written() -> None:
    # tests/data/shards/test_write.py holds shards against the sources they were made of.
    assert {kind for kind, _ in WRITERS.values()} == set(SOURCES) - {"shards"}


def test_made_up_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos are no photos here, as reading a source must not open them."""
    monkeypatch.setattr(milseg.data.image, "guarded", lambda *_: pytest.fail("a photo was opened"))
    words = ("cat", "Dog", "person", "potplant", "zebra")
    draw = random.Random(0)
    photos = {}
    for i in range(12):
        tags = tuple(sorted(draw.sample(words, draw.randint(1, 3)))) if i else ()
        photos[f"p-{i}{('.jpg', '.PNG', '.webp')[i % 3]}"] = (f"photo {i}".encode(), tags)
    check(tmp_path, photos)


@pytest.mark.shared
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no shared photos")
def test_sixty_photos_of_animals(tmp_path: Path) -> None:
    with (PHOTOS / "tags.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    chosen = random.Random(60).sample(rows, 60)
    folder = PHOTOS / "VOC2012" / "JPEGImages"
    photos = {
        row["image"]: ((folder / row["image"]).read_bytes(), tuple(row["tags"].split())) for row in chosen
    }
    check(tmp_path, photos)
