"""`milseg shard`: what goes in comes out, whole shards or none, and a stopped run ends as an undisturbed one."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import milseg.data.shards.write
from milseg.config import ShardOptions, ShardReading, TrainConfig
from milseg.data.bags import BagSet, load_photo
from milseg.data.shards.write import shard_run
from milseg.data.sources.open import open_source
from milseg.data.sources.photo_inputs import fetched, find_photos
from milseg.errors import UserError
from milseg.models.backbones import build_fcn
from milseg.training.check import check_source
from milseg.training.trainer import fit

TAGS = ["cat", "dog", "cat dog", "", "dog ?cat", "?", "cat", "dog"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight photos in folders, one of them with dots in its name, and their tags."""
    root = tmp_path / "photos"
    (root / "in").mkdir(parents=True)
    with open(root / "tags.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "tags"])
        for number, tags in enumerate(TAGS):
            name = f"in/p{number}.v1.5.jpg" if number % 2 else f"p{number}.png"
            pixels = np.random.default_rng(number).integers(0, 256, (20, 24 + number, 3), np.uint8)
            Image.fromarray(pixels).save(root / name)
            table.writerow([name, tags])
    return root


def made(photos: Path, out: Path, **more: Any) -> dict[str, Any]:
    return shard_run(ShardOptions(source=photos, out=out, **{"photos_per_shard": 3, **more}), progress=False)


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def same_bags(one: BagSet, other: BagSet) -> bool:
    pairs = zip(one.bags, other.bags, strict=True)
    return one.classes == other.classes and all((a.name, a.tags) == (b.name, b.tags) for a, b in pairs)


def test_what_goes_in_comes_out(photos: Path, tmp_path: Path) -> None:
    manifest = made(photos, tmp_path / "out")
    assert [row["photos"] for row in manifest["shards"]] == [3, 3, 2]
    assert manifest["tag_counts"] == {"cat": 3, "dog": 4}
    assert manifest == json.loads((tmp_path / "out" / "shards.json").read_text())
    before, after = open_source(photos), open_source(tmp_path / "out")
    assert same_bags(before, after)
    assert after.groups == (3, 3, 2)
    assert after.tags_from == before.tags_from
    for a, b in zip(before.bags, after.bags, strict=True):
        assert a.photo.read_bytes() == b.photo.read()
    # Without the manifest and the indexes the tars alone say the same.
    for path in (tmp_path / "out").glob("*.json"):
        path.unlink()
    assert same_bags(before, open_source(tmp_path / "out", shards=ShardReading(cache=tmp_path / "cache")))
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        assert tar.getnames()[:4] == ["p0.png", "p0.json", "in/p1%2Ev1%2E5.jpg", "in/p1%2Ev1%2E5.json"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}
        about = json.load(tar.extractfile("in/p1%2Ev1%2E5.json"))
    assert about["name"] == "in/p1.v1.5"
    assert (about["tags"], about["unknown"], about["width"], about["height"]) == (["dog"], [], 25, 20)


def test_classes_keep_their_order_and_shards_can_be_packed_again(photos: Path, tmp_path: Path) -> None:
    made(photos, tmp_path / "a", classes=("dog", "cat"))
    first = open_source(tmp_path / "a")
    assert first.classes == ("background", "dog", "cat")
    made(tmp_path / "a", tmp_path / "b", photos_per_shard=5)
    assert same_bags(first, open_source(tmp_path / "b"))
    with pytest.raises(UserError, match="holds the shards that are the source"):
        made(tmp_path / "a", tmp_path / "a", overwrite=True)
    assert len(open_source(tmp_path / "a")) == 8


class Killed(BaseException):
    """As a signal would be."""


@pytest.mark.parametrize("dies_at", [0, 1, 3, 5, 7])
def test_a_killed_run_goes_on_and_ends_the_same(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    (photos / "in" / "p3.v1.5.jpg").write_bytes(b"no photo")
    whole = made(photos, tmp_path / "whole")
    assert list(whole["left_out"]) == ["in/p3.v1.5"]
    pack = milseg.data.shards.write.pack_photo

    def dying(bag: Any, **more: Any) -> Any:
        if bag.name.endswith(f"p{dies_at}") or f"p{dies_at}." in bag.name:
            raise Killed
        return pack(bag, **more)

    with monkeypatch.context() as patch:
        patch.setattr(milseg.data.shards.write, "pack_photo", dying)
        with pytest.raises(Killed):
            made(photos, tmp_path / "out")
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.tar")}
    assert len(done) == (0, 0, 0, 0, 1, 1, 1, 1)[dies_at]
    assert not (tmp_path / "out" / "shards.json").exists()
    (tmp_path / "out" / ".shard-000001.12-00000000.tmp.tar").write_bytes(b"half")
    if done:  # what is half-written alone is no run
        with pytest.raises(UserError, match="--resume goes on with that run"):
            made(photos, tmp_path / "out")
    assert made(photos, tmp_path / "out", resume=True) == whole
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert {p: p.stat().st_mtime_ns for p in done} == done


def test_a_run_is_resumed_with_the_same_settings_only(photos: Path, tmp_path: Path) -> None:
    made(photos, tmp_path / "out")
    with pytest.raises(UserError, match="had other photos, tags or settings"):
        made(photos, tmp_path / "out", photos_per_shard=2, resume=True)
    (tmp_path / "out" / "mine.txt").write_text("stays")
    assert len(made(photos, tmp_path / "out", photos_per_shard=6, overwrite=True)["shards"]) == 2
    found = [name for name in files(tmp_path / "out") if name.endswith((".tar", ".txt"))]
    assert found == ["mine.txt", "shard-000000.tar", "shard-000001.tar"]


def test_shards_stay_below_their_size(photos: Path, tmp_path: Path) -> None:
    # p0.png has 1,5 kB; with its JSON and two headers about 4 kB, and a tar grows by 10,240 bytes.
    manifest = made(photos, tmp_path / "out", photos_per_shard=None, shard_size="20480")
    assert sum(row["photos"] for row in manifest["shards"]) == 8
    assert {row["bytes"] for row in manifest["shards"]} <= {10240, 20480}
    assert 1 < len(manifest["shards"]) < 8
    with pytest.raises(UserError, match="size 'big': expected such as 256MB"):
        made(photos, tmp_path / "no", photos_per_shard=None, shard_size="big")
    with pytest.raises(UserError, match="give one of the two"):
        made(photos, tmp_path / "no", shard_size="1MB")


def test_larger_photos_are_made_smaller(photos: Path, tmp_path: Path) -> None:
    made(photos, tmp_path / "out", longest_side=26)
    before, after = open_source(photos), open_source(tmp_path / "out")
    assert same_bags(before, after)
    for number, (a, b) in enumerate(zip(before.bags, after.bags, strict=True)):
        if number <= 2:
            assert a.photo.read_bytes() == b.photo.read()
        else:
            image = Image.open(io.BytesIO(b.photo.read()))
            assert image.format == "JPEG"
            assert max(image.size) == 26


def test_no_photo_at_all(photos: Path, tmp_path: Path) -> None:
    for path in photos.rglob("p*.*"):
        path.write_bytes(b"no photo")
    with pytest.raises(UserError, match="none of 8 photos could be read"):
        made(photos, tmp_path / "out")
    assert not (tmp_path / "out" / "shards.json").exists()


def test_a_changed_shard_is_named(photos: Path, tmp_path: Path) -> None:
    made(photos, tmp_path / "out")
    path = tmp_path / "out" / "shard-000001.tar"
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(UserError, match=r"shard-000001.tar: [\d,]+ bytes; expected [\d,]+ by shards.json"):
        open_source(tmp_path / "out")
    path.unlink()
    with pytest.raises(UserError, match=r"shard-000001.tar: no such shard, which shards.json lists"):
        open_source(tmp_path / "out")


def test_from_a_manifest_that_is_elsewhere(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    made(photos, tmp_path / "out")
    reading = ShardReading(cache=tmp_path / "cache")
    bags = open_source(Path((tmp_path / "out" / "shards.json").resolve().as_uri()), shards=reading)
    assert same_bags(bags, open_source(photos))
    assert not list((tmp_path / "cache").glob("*.tar"))  # the indexes were enough
    load_photo(bags.bags[4])
    assert [p.name.partition("-")[2] for p in (tmp_path / "cache").glob("*.tar")] == ["shard-000001.tar"]


def test_training_learns_the_same_from_shards(photos: Path, tmp_path: Path) -> None:
    made(photos, tmp_path / "out")
    config = TrainConfig(max_steps=4, batch_size=3, learning_rate=1e-2, augment="flip")
    found = []
    for source in (photos, tmp_path / "out"):
        bags = open_source(source)
        torch.manual_seed(0)
        model = build_fcn("tiny", len(bags.classes), seed=0)
        losses = [record["loss"] for record in fit(model, bags, config, progress=False)]
        found.append((losses, model.state_dict()))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in found[0][1])


def test_check_and_predict_see_the_photos(photos: Path, tmp_path: Path) -> None:
    made(photos, tmp_path / "out")
    reports = [check_source(open_source(s), progress=False) for s in (photos, tmp_path / "out")]
    one, other = (replace(r, name="", seconds=0.0, photos_per_second=0.0) for r in reports)
    assert replace(one, odd=other.odd) == other
    assert find_photos([str(tmp_path / "out")])[1].below == "in/p1.v1.5.jpg"
    assert [photo.name for photo in find_photos([str(tmp_path / "out" / "shard-000002.tar")])] == [
        "p6",
        "in/p7.v1.5",
    ]


def test_predict_fetches_the_next_shard_while_it_works_on_one(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(photos, tmp_path / "out")  # three photos in each of two shards, two in the third
    found = find_photos([str(tmp_path / "out")])
    asked: list[str] = []
    monkeypatch.setattr(type(found[0].place), "soon", lambda place: asked.append(str(place)))
    walk = fetched(found)
    assert next(walk) == found[0]
    assert asked == [str(found[3].place)]
    assert list(walk) == found[1:]
    assert asked == [str(found[3].place), str(found[6].place)]


def test_webdataset_reads_them(photos: Path, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    made(photos, tmp_path / "out")
    paths = sorted(map(str, (tmp_path / "out").glob("*.tar")))
    found = list(wds.WebDataset(paths, shardshuffle=False).decode("rgb8"))
    bags = open_source(photos)
    assert [sample["json"]["name"] for sample in found] == [bag.name for bag in bags.bags]
    for sample, bag in zip(found, bags.bags, strict=True):
        pixels = sample["png"] if "png" in sample else sample["jpg"]
        assert np.array_equal(pixels, load_photo(bag))
