from __future__ import annotations

from pathlib import Path

import pytest

from milseg.data.bags import BagSet
from milseg.data.sources.open import open_source
from milseg.errors import UserError

from .conftest import Tree


def tags(bags: BagSet) -> dict[str, tuple[str, ...]]:
    """The names of each bag's tags, the background left out."""
    return {
        bag.name: tuple(
            c for c, t in zip(bags.classes, bag.tags, strict=True) if t == 1 and c != "background"
        )
        for bag in bags.bags
    }


def test_the_folder_at_the_top_is_the_tag(tree: Tree) -> None:
    for place in (
        "dog/a.jpg",
        "cat/deep/er/b.PNG",
        "potted plant/c.webp",
        "dog/notes.txt",
        "dog/.hidden.jpg",
    ):
        tree.write(place)
    bags = open_source(tree.root, kind="folder")
    assert bags.classes == ("background", "cat", "dog", "potted plant")
    assert tags(bags) == {"cat/deep/er/b": ("cat",), "dog/a": ("dog",), "potted plant/c": ("potted plant",)}
    assert bags.tags_from == "folders"
    assert bags.notes == ()
    assert bags.bags[0].photo == tree.root / "cat/deep/er/b.PNG"


def test_the_same_file_in_two_tag_folders_is_one_bag(tree: Tree) -> None:
    tree.write("dog/x/a.jpg", b"same")
    tree.write("cat/x/a.jpg", b"same")
    tree.write("cow/x/a.jpg", b"else")  # as long, and not the same
    tree.write("cat/a.jpg", b"same")  # another path below its folder
    bags = open_source(tree.root)
    assert tags(bags) == {"cat/a": ("cat",), "cat/x/a": ("cat", "dog"), "cow/x/a": ("cow",)}
    assert bags.notes == (
        "1 photos that lie in several tag folders are one bag each, such as cat/x/a.jpg (cat, dog)",
    )


def test_an_empty_folder_keeps_its_place(tree: Tree) -> None:
    """Reliability case 12."""
    tree.write("cow/a.jpg")
    tree.write("ant/b.jpg")
    (tree.root / "bee").mkdir()
    bags = open_source(tree.root)
    assert bags.classes == ("background", "ant", "bee", "cow")
    assert bags.notes == ("1 classes without a photo, which keep their place: bee",)


def test_split_folders(tree: Tree) -> None:
    for place in ("train/dog/a.jpg", "train/cat/b.jpg", "Validation/dog/a.jpg", "test/dog/q/z.jpg"):
        tree.write(place)
    bags = open_source(tree.root, split="train")
    assert tags(bags) == {"train/cat/b": ("cat",), "train/dog/a": ("dog",)}
    assert bags.name.endswith(" train")
    val = open_source(tree.root, split="val")
    assert val.classes == bags.classes
    assert tags(val) == {"Validation/dog/a": ("dog",)}
    assert "all splits taken together: test (1), train (2), val (1)" in open_source(tree.root).notes[0]
    with pytest.raises(UserError, match=r"no photo is in the split 'dev'; there is test \(1\), train \(2\)"):
        open_source(tree.root, split="dev")


def test_photos_beside_the_folders_are_counted(tree: Tree) -> None:
    for place in ("dog/a.jpg", "cat/b.jpg", "c.jpg", "d.jpg"):
        tree.write(place)
    assert open_source(tree.root).notes == ("2 photos beside the tag folders left out, such as c.jpg",)


def test_a_folder_called_background_is_the_background(tree: Tree) -> None:
    tree.write("dog/a.jpg")
    tree.write("background/b.jpg")
    bags = open_source(tree.root)
    assert bags.classes == ("background", "dog")
    assert tags(bags) == {"background/b": (), "dog/a": ("dog",)}
    assert bags.notes == (
        "the tag 'background' of 1 photos skipped: the background needs none",
        "1 photos without any tag kept as background-only bags, such as background/b.jpg",
    )


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([], "0 photos and no tags; expected a folder for each tag"),
        (["a.jpg"], "1 photos and no tags"),
        (["images/a.jpg"], "1 photos and no tags"),
        (["dog/readme.md"], "0 photos and no tags"),
    ],
)
def test_no_tags_at_all(tree: Tree, places: list[str], words: str) -> None:
    for place in places:
        tree.write(place)
    with pytest.raises(UserError, match=words):
        open_source(tree.root)


def test_two_extensions_of_one_name(tree: Tree) -> None:
    """Reliability case 19: equal stems in two folders are fine, in one they are an error that names both."""
    tree.write("dog/a.jpg", b"1")
    tree.write("cat/a.jpg", b"2")
    assert len(open_source(tree.root)) == 2
    tree.write("dog/a.png")
    with pytest.raises(UserError, match=r"dog/a\.jpg and dog/a\.png differ in their extension only"):
        open_source(tree.root)


def test_links_in_a_circle(tree: Tree) -> None:
    tree.write("dog/a.jpg")
    tree.write("cat/b.jpg")
    (tree.root / "dog" / "round").symlink_to(tree.root, target_is_directory=True)
    assert tags(open_source(tree.root, kind="folder")) == {"cat/b": ("cat",), "dog/a": ("dog",)}


def test_names_that_are_no_text(tree: Tree) -> None:
    tree.write("dog/a.jpg")
    tree.write("cat/b.jpg")
    tree.write("cat/c\n.jpg")
    (Path(f"{tree.root}/cat/\udcff.jpg")).touch()
    bags = open_source(tree.root)
    assert len(bags) == 2
    assert "2 photos whose names are no plain text left out" in bags.notes[0]


def test_outputs_and_leftovers_are_no_tags_and_no_photos(tree: Tree) -> None:
    """Reliability case 55."""
    for place in (
        "cat/a.jpg",
        "dog/b.jpg",
        "cat/._a.jpg",
        "dog/@eaDir/b.jpg",
        "cat/__MACOSX/a.jpg",
        "dog/Thumbs.db",
    ):
        tree.write(place)
    for name in ("config.yaml", "labels.json", "model.safetensors", "samples/step.png"):
        tree.write(f"runs/train/{name}")
    for name in ("predictions.csv", "masks/cat/a.png", "overlays/cat/a.png"):
        tree.write(f"masks/{name}")
    (tree.root / "@eaDir").mkdir()
    bags = open_source(tree.root)
    assert bags.classes == ("background", "cat", "dog")
    assert tags(bags) == {"cat/a": ("cat",), "dog/b": ("dog",)}
    assert bags.notes == ("milseg's own outputs are no photos and were left out: masks, runs/train",)
    # The folder that a command writes into, before anything is in it.
    tree.write("out/samples/x.png")
    assert "out" in open_source(tree.root).classes
    assert open_source(tree.root, leave_out=[tree.root / "out"]).classes == bags.classes
    assert len(open_source(tree.root, leave_out=[tree.root])) == 3


def test_splits_beside_other_folders(tree: Tree) -> None:
    for place in ("train/dog/a.jpg", "train/cat/b.jpg", "val/dog/c.jpg", "notes/readme.txt"):
        tree.write(place)
    bags = open_source(tree.root)
    assert bags.classes == ("background", "cat", "dog")
    assert "folders beside the splits hold no photo and are no tag: notes" in bags.notes
    tree.write("more/d.jpg")
    with pytest.raises(UserError, match=r"folders train, val are named as splits, beside more, notes; give"):
        open_source(tree.root)


def test_a_tag_that_is_called_train(tree: Tree) -> None:
    for place in ("train/a.jpg", "bus/b.jpg"):
        tree.write(place)
    bags = open_source(tree.root)
    assert bags.classes == ("background", "bus", "train")
    assert "the folder train is taken for a tag, as it lies beside others: bus" in bags.notes
