"""True masks from a folder: which belongs to which photo, and what their values mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import milseg.data.image
from milseg.data.bags import Bag, BagSet, load_mask
from milseg.data.masks import write_mask
from milseg.data.sources.ground_truth import attach_masks, match_masks
from milseg.errors import UserError

CLASSES = ("background", "cat", "dog")


def put(folder: Path, name: str, values: Sequence[Sequence[int]] = ((0, 1),)) -> Path:
    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mask(path, np.array(values, dtype=np.uint8))
    return path


def bags_of(*names: str, classes: Sequence[str] = CLASSES) -> BagSet:
    tags = (1, *[0] * (len(classes) - 1))
    bags = tuple(Bag(name=name, photo=Path(f"{name}.jpg"), tags=tags) for name in names)
    return BagSet(name="set", classes=tuple(classes), bags=bags, tags_from="tag file", notes=("before",))


def matched(photos: Sequence[str], masks: Sequence[str]) -> dict[str, str]:
    found = match_masks(photos, {name: Path(f"{name}.png") for name in masks}, Path("truth"))
    return {photo: path.as_posix() for photo, path in found.items()}


@pytest.mark.parametrize(
    ("photos", "masks", "expected"),
    [
        (["a", "x/a"], ["a", "x/a", "y/b"], {"a": "a.png", "x/a": "x/a.png"}),
        # One path that agrees, and file names are not looked at any more: x/b has no mask.
        (["a", "x/b"], ["a", "b"], {"a": "a.png"}),
        (["cat/a", "dog/b", "dog/c"], ["a", "deep/b"], {"cat/a": "a.png", "dog/b": "deep/b.png"}),
        (["images/x/a", "images/y/a"], ["x/a", "y/a"], {"images/x/a": "x/a.png", "images/y/a": "y/a.png"}),
        (["a"], ["val/a", "b"], {"a": "val/a.png"}),
        (["a.b"], ["x/a.b", "x/a"], {"a.b": "x/a.b.png"}),
    ],
)
def test_which_mask_is_a_photos(photos: list[str], masks: list[str], expected: dict[str, str]) -> None:
    assert matched(photos, masks) == expected


@pytest.mark.parametrize(
    ("photos", "masks", "words"),
    [
        (["x/a"], ["y/a", "z/a"], r"y/a.png and z/a.png may both be the mask of photo 'x/a'; lay the masks"),
        (["x/a", "y/a"], ["a"], r"a.png: may be the mask of photo 'x/a' or 'y/a'"),
        (
            ["a", "b"],
            ["c", "d"],
            r"none of its 2 masks is one of the 2 photos'; masks such as 'c', photos such as",
        ),
        ([], ["c"], "there are no photos"),
    ],
)
def test_where_it_is_not_clear(photos: list[str], masks: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        matched(photos, masks)


def test_photos_without_a_mask_are_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [put(tmp_path, name) for name in ("x/a", "c")]
    monkeypatch.setattr(milseg.data.image, "guarded", lambda *_: pytest.fail("an image was opened"))
    bags = bags_of("x/a", "b", "c", "d")
    found = attach_masks(bags, tmp_path)
    assert [(bag.name, bag.mask) for bag in found.bags] == [("x/a", paths[0]), ("c", paths[1])]
    assert [bag.tags for bag in found.bags] == [(1, 0, 0), (1, 0, 0)]
    assert found.notes == ("before", "2 photos without a true mask left out, such as b")
    assert (found.classes, found.tags_from, found.name) == (CLASSES, "tag file", "set")
    assert bags.bags[0].mask is None


def test_values_mean_the_sets_own_classes_where_nothing_else_is_said(tmp_path: Path) -> None:
    put(tmp_path, "a", [[0, 1, 2, 255]])
    found = attach_masks(bags_of("a"), tmp_path)
    assert load_mask(found.bags[0], found).tolist() == [[0, 1, 2, 255]]
    assert found.notes == ("before",)


@pytest.mark.parametrize("how", ["beside", "file", "text", "names"])
def test_classes_are_matched_by_name(tmp_path: Path, how: str) -> None:
    """dog is 1 in the truth and 2 here; zebra is void; cat is nowhere in the truth."""
    put(tmp_path / "truth", "a", [[0, 1, 2, 255]])
    stored = ("background", "dog", "zebra")
    path = tmp_path / ("truth/labels.json" if how == "beside" else "mine.json")
    if how != "names":
        path.write_text(json.dumps({"classes": stored}))
    given = {"beside": None, "file": path, "text": str(path), "names": stored}[how]
    found = attach_masks(bags_of("a"), tmp_path / "truth", names=given)
    assert load_mask(found.bags[0], found).tolist() == [[0, 2, 255, 255]]
    assert found.notes[1:] == (
        "Scored as void, as the predictions do not know them: zebra.",
        "Never scored, as the truth does not know them: cat.",
    )


def test_vocs_numbers(tmp_path: Path) -> None:
    put(tmp_path, "a", [[0, 8, 12, 15, 255]])
    found = attach_masks(bags_of("a"), tmp_path, names="voc")
    assert load_mask(found.bags[0], found).tolist() == [[0, 1, 2, 255, 255]]


@pytest.mark.parametrize(("truth", "value"), [(None, 3), ("voc", 21), (("background", "cat"), 2)])
def test_a_value_without_a_name_is_an_error_not_void(
    tmp_path: Path, truth: str | tuple[str, ...] | None, value: int
) -> None:
    put(tmp_path, "a", [[0, value]])
    found = attach_masks(bags_of("a"), tmp_path, names=truth)
    with pytest.raises(
        UserError, match=rf"a\.png: holds the value {value}; expected class numbers 0 to {value - 1}"
    ):
        load_mask(found.bags[0], found)


def test_a_model_without_background(tmp_path: Path) -> None:
    put(tmp_path, "a", [[0, 1, 2]])
    found = attach_masks(bags_of("a", classes=("dog", "cat")), tmp_path, names=CLASSES)
    assert load_mask(found.bags[0], found).tolist() == [[255, 1, 0]]


def test_mistakes(tmp_path: Path) -> None:
    bags = bags_of("a")
    with pytest.raises(UserError, match="none: no such folder; expected one with PNG masks"):
        attach_masks(bags, tmp_path / "none")
    with pytest.raises(UserError, match="holds no PNG masks"):
        attach_masks(bags, tmp_path)
    put(tmp_path, "a")
    with pytest.raises(
        UserError, match=r"classes of the set \(background, cat, dog\) and the truth's .*share no name"
    ):
        attach_masks(bags, tmp_path, names=("background", "zebra"))
    with pytest.raises(UserError, match=r"none\.json: no such file"):
        attach_masks(bags, tmp_path, names=tmp_path / "none.json")
    (tmp_path / "labels.json").write_text("[")
    with pytest.raises(UserError, match=r"labels\.json: not a JSON file"):
        attach_masks(bags, tmp_path)
