from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import milseg.data.photo_statistics
import milseg.training.time_estimate
from milseg.config import TrainConfig
from milseg.data.bags import Bag, BagSet
from milseg.data.image import read_photo
from milseg.data.photo_statistics import photo_facts, read_photos, same_bytes
from milseg.data.sources.open import open_source
from milseg.data.tag_statistics import inseparable_tags, near_universal_tags, untrainable_reasons
from milseg.errors import UserError
from milseg.training.check import check_source
from milseg.training.recipes import Recipe
from milseg.training.time_estimate import Estimate, busy_words, estimate_training, pseudo_label_steps

CONFIG = TrainConfig(max_steps=30, batch_size=4, longest_side=16)
RECIPE = Recipe(stages=(CONFIG,), output_stride=4, score_scale=1.0, note="")


def tags(rows: Sequence[Sequence[int]]) -> np.ndarray:
    return np.array(rows, dtype=np.int8)


def noise(
    path: Path, width: int, height: int, *, seed: int = 0, mode: str = "RGB", **options: object
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eight photos with every fault there is."""
    names = {"a": (80, 70), "b": (90, 80), "c": (100, 90), "d": (400, 80), "e": (10, 90)}
    for i, (name, size) in enumerate(names.items()):
        noise(tmp_path / f"{name}.jpg", *size, seed=i)
    (tmp_path / "f.jpg").write_bytes((tmp_path / "a.jpg").read_bytes())
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "c.jpg").read_bytes()[:-400])
    (tmp_path / "no.png").write_bytes(b"no photo")
    rows = "a,dog saddle\nb,dog saddle cat\nc,cat ?dog\nd,\ne,cow\nf,cow\ncut,dog saddle\nno,?\n"
    (tmp_path / "tags.csv").write_text("image,tags\n" + rows)
    return tmp_path


def test_the_whole_report(source: Path) -> None:
    before = {path: path.read_bytes() for path in source.iterdir()}
    bags = open_source(source)
    report = check_source(bags, progress=False, recipe=RECIPE, backbone="tiny", workers=2)
    assert (report.bags, report.photos) == (8, 6)
    assert report.tag_counts == {"cat": 2, "cow": 2, "dog": 3, "saddle": 3}
    assert report.inseparable_tags == (("dog", "saddle"),)
    assert report.near_universal_tags == {}
    assert (report.untagged, report.all_unknown, report.unknown_tags) == (1, 1, 5)
    assert list(report.unreadable) == ["cut", "no"]
    assert report.unreadable["cut"].startswith("damaged or cut short")
    assert report.unreadable["no"].startswith("a text file, not a photo")
    assert report.odd == {"d": "long and narrow (400 x 80)", "e": "tiny (10 x 90), long and narrow (10 x 90)"}
    assert report.duplicates == (("a", "f"),)
    assert report.differing == (("a", "f"),)
    assert report.sizes["width"] == (10, 85, 400)
    assert report.sizes["height"] == (70, 80, 90)
    assert report.transfer["cow"] == ("ox", "water buffalo")
    assert report.transfer["saddle"] == ()
    assert report.untrainable_reasons == ()
    assert report.training is not None
    assert (report.training.steps, report.training.rounds) == (30, 0)
    low, high = report.training.seconds
    assert 0 < low < 30 * report.training.seconds_per_step < high
    assert report.notes == bags.notes
    # Looking at photos never changes them.
    assert {path: path.read_bytes() for path in source.iterdir()} == before

    assert json.loads(json.dumps(report.to_json()))["duplicates"] == [["a", "f"]]
    text = report.text()
    for words in (
        "8 bags, 6 readable photos",
        "dog = saddle",
        "a = f",
        "no: a text file",
        "ox, water buffalo",
        "nothing: starts small",
        "photos/s",
        "Training tiny on cpu",
    ):
        assert words in text, text


def test_each_photo_is_decoded_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(
        milseg.data.photo_statistics,
        "read_photo",
        lambda path, **more: opened.append(path) or read_photo(path, **more),
    )
    bags = open_source(source)
    for workers in (1, 3):
        opened.clear()
        facts = read_photos(bags.bags, workers=workers, progress=False)
        assert sorted(opened) == sorted(bag.photo for bag in bags.bags)
        assert [fact.size for fact in facts][:3] == [(70, 80), (80, 90), (90, 100)]
    # Only the two files of equal length were read for comparison.
    assert [bag.name for bag, fact in zip(bags.bags, facts, strict=True) if fact.digest] == ["a", "f"]
    assert same_bytes(facts) == [[0, 5]]


@pytest.mark.parametrize(
    ("name", "mode", "words"),
    [
        ("a.jpg", "RGB", ""),
        ("a.png", "RGBA", "transparency, put on white"),
        ("a.jpg", "CMYK", "CMYK colours"),
        ("a.png", "L", ""),
        ("a.tif", "I;16", ""),
    ],
)
def test_odd_files(tmp_path: Path, name: str, mode: str, words: str) -> None:
    path = tmp_path / name
    if mode == "I;16":
        Image.fromarray(np.arange(6400, dtype=np.uint16).reshape(80, 80)).save(path)
    else:
        noise(path, 80, 80, mode=mode)
    assert ", ".join(photo_facts(Bag(name="a", photo=path, tags=())).odd) == words


def test_odd_content(tmp_path: Path) -> None:
    noise(tmp_path / "a.png", 80, 80).rename(tmp_path / "a.jpg")
    assert photo_facts(Bag(name="a", photo=tmp_path / "a.jpg", tags=())).odd == ("holds PNG, called .jpg",)
    frames = [Image.new("RGB", (80, 80), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    assert photo_facts(Bag(name="b", photo=tmp_path / "b.gif", tags=())).odd == (
        "several frames, of which the first is taken",
        "one colour only",
    )
    pixels = np.zeros((70, 80, 3), dtype=np.uint8)
    facts = photo_facts(Bag(name="c", photo=pixels, tags=()))
    assert facts.size == (70, 80)
    assert facts.odd == ("one colour only",)
    assert facts.digest
    large = photo_facts(Bag(name="a", photo=tmp_path / "a.jpg", tags=()), max_pixels=6399)
    assert large.size is None
    assert "6,400 pixels" in large.reason


def test_never_apart() -> None:
    names = ["a", "b", "c", "d"]
    assert inseparable_tags(tags([[1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 1, 1]]), names) == (("a", "b", "d"),)
    # Absent everywhere is not together; unknown is neither together nor apart.
    assert inseparable_tags(tags([[0, 0, 1, 0], [0, 0, 1, 0]]), names) == ()
    assert inseparable_tags(tags([[1, 1, -1, 0], [-1, 1, 1, 0], [0, 0, 0, 1]]), names) == (("a", "b"),)
    assert inseparable_tags(tags([]).reshape(0, 4), names) == ()


def test_never_apart_as_a_loop_would_find_it() -> None:
    matrix = np.random.default_rng(3).integers(-1, 2, (5, 6)).astype(np.int8)
    names = [str(i) for i in range(6)]
    for group in inseparable_tags(matrix, names):
        for a in map(int, group):
            for b in map(int, group):
                pairs = list(zip(matrix[:, a], matrix[:, b], strict=True))
                assert (1, 0) not in pairs
                assert (1, 1) in pairs


def test_nearly_everywhere() -> None:
    rows = [[1, 1, -1]] * 19 + [[0, 1, 1]]
    assert near_universal_tags(tags(rows), ["a", "b", "c"]) == {"a": 0.95, "b": 1.0, "c": 1.0}
    assert near_universal_tags(tags([[1, 1, -1]] * 18 + [[0, 1, -1]]), ["a", "b", "c"]) == {"b": 1.0}


@pytest.mark.parametrize(
    ("rows", "readable", "words"),
    [
        ([], [], "there are no photos"),
        ([[1, 0], [0, 1]], [], "none of the 2 photos can be read"),
        ([[1, 0], [0, 1]], [1], "1 of the 2 photos can be read"),
        ([[0, 0], [0, 0]], [0, 1], "no photo has a tag"),
        ([[-1, -1], [-1, -1]], [0, 1], "all tags are unknown"),
        ([[1, 0], [1, 0], [-1, -1]], [0, 1, 2], "every photo has the same tags (dog)"),
        ([[1, 0], [1, 0], [0, 1]], [0, 1], "every photo has the same tags (dog)"),
        ([[1, 0], [0, 0]], [0, 1], None),
        ([[1, -1], [-1, 1]], [0, 1], None),
    ],
)
def test_meaningless(rows: list[list[int]], readable: list[int], words: str | None) -> None:
    found = untrainable_reasons(tags(rows).reshape(len(rows), 2), ["dog", "cat"], readable)
    assert found == () if words is None else words in found[0]


def test_a_set_without_classes_or_photos(source: Path) -> None:
    empty = BagSet(name="none", classes=("background",), bags=(), tags_from="none")
    report = check_source(empty, progress=False)
    assert report.untrainable_reasons == ("there are no photos",)
    assert report.training is None
    assert "Training would teach nothing: there are no photos" in report.text()
    bare = BagSet(
        name="bare",
        classes=("background",),
        bags=tuple(Bag(name=n, photo=source / f"{n}.jpg", tags=(1,)) for n in "abc"),
        tags_from="none",
    )
    assert check_source(bare, progress=False).untrainable_reasons == ("no photo has a tag",)


def test_photos_that_are_gone(tmp_path: Path) -> None:
    bags = tuple(Bag(name=f"p{i}", photo=tmp_path / f"{i}.jpg", tags=(1, i % 2)) for i in range(200))
    report = check_source(
        BagSet(name="x", classes=("background", "k"), bags=bags, tags_from="tag file"), progress=False
    )
    assert len(report.unreadable) == 200
    assert report.untrainable_reasons == ("none of the 200 photos can be read; at least 2 are needed",)
    assert "and 190 more" in report.text()


def test_names_that_several_categories_have(source: Path) -> None:
    """ImageNet has two cardigans, a dog and a garment, which differ in case only."""
    bags = open_source(source)
    renamed = BagSet(
        name="x",
        classes=("background", "CARDIGAN", "cow", "dog", "saddle"),
        bags=bags.bags,
        tags_from="tag file",
    )
    own = source / "own.yaml"
    own.write_text("saddle: [pug]\n")
    report = check_source(renamed, progress=False, mapping=own)
    assert report.transfer["CARDIGAN"][0].startswith("unclear: CARDIGAN: several categories")
    assert report.transfer["saddle"] == ("pug",)
    own.write_text("saddle: [nothing]\n")
    with pytest.raises(UserError, match="no category 'nothing'"):
        check_source(renamed, progress=False, mapping=own)


def test_the_estimate_is_of_trainings_own_steps(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe's own loop on the set's own batches, full size; the first step is not counted."""
    bags = open_source(source).take([0, 1, 2, 4])
    seen: list[tuple[int, int]] = []

    def slow_start(model: Any, bags: Any, config: TrainConfig, *, on_step: Any, **_: Any) -> None:
        seen.append((len(bags), config.batch_size))
        for step in range(config.max_steps):
            time.sleep(0.3 if step == 0 else 0.02)
            on_step(step, 0.0)

    monkeypatch.setattr(milseg.training.time_estimate, "fit", slow_start)
    found = estimate_training(bags, recipe=RECIPE, backbone="tiny")
    assert set(seen) == {(4, 4)}
    assert 0.02 <= found.seconds_per_step < 0.25
    low, high = found.seconds
    assert low < 30 * found.seconds_per_step < high
    with pytest.raises(UserError, match="unknown backbone"):
        estimate_training(bags, recipe=RECIPE, backbone="none")


def test_rounds_count_with_their_pseudo_labels() -> None:
    rounds = replace(RECIPE, stages=(CONFIG, CONFIG, CONFIG))
    assert pseudo_label_steps(RECIPE, 1000) == 0
    assert pseudo_label_steps(rounds, 1000) == 3 * 2 * 1000 / 4


def test_a_busy_machine_is_told() -> None:
    told = busy_words(0.4, threads=2, load=12.0)
    assert told is not None
    assert "busy" in told
    assert "40 %" in told
    assert busy_words(0.95, threads=2, load=12.0) is None  # the others leave enough
    assert busy_words(0.4, threads=2, load=1.0) is None  # nobody else: it waits for its photos
    text = Estimate(
        backbone="tiny",
        batch_size=4,
        steps=30,
        rounds=0,
        device="cpu",
        seconds_per_step=2.0,
        seconds=(40.0, 400.0),
        busy=told,
        trial_seconds=1.0,
    ).text()
    assert "40 s to 7 min for 30 steps of 4 photos" in text
    assert "busy" in text
