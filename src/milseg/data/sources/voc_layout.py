"""What lies where in a PASCAL VOC tree, and how its files are read: one way, whoever asks.

    JPEGImages/ID.jpg                            photos
    SegmentationClass/ID.png                     masks
    Annotations/ID.xml                           objects with their class names
    ImageSets/Segmentation/SPLIT.txt             which photos a split has; ImageSets/Main/SPLIT.txt likewise

`voc.read_voc` reads PASCAL VOC's own sets by it, `voc_tree.read_voc_tree` trees of any classes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from defusedxml import ElementTree

from milseg.data.sources.photo_files import walk
from milseg.data.sources.tag_file import read_ids
from milseg.errors import UserError

PARTS = ("JPEGImages", "Annotations", "ImageSets")
LISTS = ("Segmentation", "Main")


def year_folders(root: Path) -> dict[str, Path]:
    """The VOC years at `root` by folder name ("VOC2012"), oldest first.

    `root` may be a year's own folder, VOCdevkit, or the folder that holds either.

    Raises:
        UserError: no such folder, or none of these in it.
    """
    expected = (
        "expected a folder that holds VOCdevkit, VOC2011 or VOC2012, or a year's own folder with "
        "ImageSets in it"
    )
    if not root.is_dir():
        raise UserError(f"{root}: {'a file' if root.exists() else 'no such folder'}; {expected}")
    if (root / "ImageSets").is_dir():
        return {root.absolute().name: root}
    found: dict[str, Path] = {}
    for base in (root, root / "VOCdevkit", root / "TrainVal" / "VOCdevkit"):
        for folder in base.glob("VOC20[0-9][0-9]"):
            if folder.is_dir():
                found.setdefault(folder.name, folder)
    if not found:
        raise UserError(f"{root}: no PASCAL VOC in it; {expected}")
    return dict(sorted(found.items()))


def home_folder(root: Path) -> Path:
    """The folder of a tree: `root` with a VOC folder in it, a year's folder below it, or `root` with XML.

    Raises:
        UserError: none of these.
    """
    if any((root / part).is_dir() for part in PARTS):
        return root
    try:
        return list(year_folders(root).values())[-1]
    except UserError:
        if root.is_dir() and next(walk(root, (".xml",)), None) is not None:
            return root
        raise


def files_by_id(folder: Path, *suffixes: str) -> dict[str, Path]:
    """The files below a folder by their path without extension; empty where there is no folder. None is opened."""
    names = walk(folder, suffixes) if folder.is_dir() else ()
    return {os.path.splitext(name)[0]: folder / name for name in names}


def mask_files(home: Path, sbd: Path | None = None) -> dict[str, Path]:
    """Masks by photo id: the tree's own, else SBD's."""
    masks = files_by_id(home / "SegmentationClass", ".png")
    return masks if sbd is None else files_by_id(sbd / "cls", ".mat") | masks


def annotation_files(home: Path) -> dict[str, Path]:
    """XML files by photo id, in their folder or, as annotation tools write them, beside the photos."""
    folder = home / "Annotations"
    return files_by_id(folder if folder.is_dir() else home, ".xml")


def list_ids(home: Path, split: str, kinds: Sequence[str] = ("Segmentation",)) -> tuple[tuple[str, ...], str]:
    """The photo ids of a split, and the list they are from, the first of `kinds` that there is.

    Raises:
        UserError: no such list, or one that cannot be read.
    """
    there: list[str] = []
    for kind in kinds:
        folder = home / "ImageSets" / kind
        path = folder / f"{split}.txt"
        # A split is a name, not a path.
        if path.parent == folder and path.is_file():
            return read_ids(path), f"ImageSets/{kind}/{split}.txt"
        there += sorted(item.stem for item in folder.glob("*.txt") if "_" not in item.stem)
    found = ", ".join(dict.fromkeys(there)) or "none"
    raise UserError(
        f"{home}: no list {split}.txt in ImageSets/{' or '.join(kinds)}; there are: {found}. A list has one photo id a "
        "line"
    )


def read_objects(path: Path) -> tuple[str, ...]:
    """The names of the objects in an XML annotation, each once, whatever they are; difficult ones too.

    Raises:
        UserError: missing, no XML, with a document type or entities (never expanded), or another root.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes(), forbid_dtd=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation") from None
    except (OSError, SyntaxError, ValueError, LookupError) as error:
        # Parse errors are SyntaxErrors with a line; what defusedxml forbids, and odd encodings, are ValueErrors.
        what = str(error) or type(error).__name__
        raise UserError(
            f"{path}: not a PASCAL VOC annotation ({what}); expected plain XML without a document type"
        ) from None
    if root.tag != "annotation":
        raise UserError(f"{path}: holds <{root.tag}>; expected <annotation> with <object><name> in it")
    names = [(thing.findtext("name") or "").strip() for thing in root.findall("object")]
    if "" in names:
        raise UserError(f"{path}: object {names.index('') + 1} has no name")
    return tuple(dict.fromkeys(names))
