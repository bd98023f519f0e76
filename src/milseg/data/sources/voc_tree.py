"""A PASCAL VOC tree of any classes: XML annotations, or the lists of each class in ImageSets/Main.

    JPEGImages/ID.jpg, Annotations/ID.xml       an XML file for each photo; its objects' names are the tags
    ImageSets/Segmentation/SPLIT.txt            or ImageSets/Main/SPLIT.txt: which photos a split has
    ImageSets/Main/CLASS_SPLIT.txt              without XML: "ID 1" present, "ID -1" absent, "ID 0" unknown

Annotation tools write the same XML beside the photos, without the folders; that is read as well. Sets of
PASCAL VOC itself by the paper's names, with SBD, are read by `voc.read_voc`; the bags' names are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from milseg.data.sources.labelled import Labelled, Labels
from milseg.data.sources.names import without_suffix
from milseg.data.sources.photo_files import PhotoFiles
from milseg.data.sources.tag_file import read_text
from milseg.data.sources.voc import VOC_CLASSES
from milseg.data.sources.voc_layout import (
    LISTS,
    annotation_files,
    home_folder,
    list_ids,
    mask_files,
    read_objects,
)
from milseg.errors import UserError

FLAGS = ("1", "-1", "0")


def read_voc_tree(root: Path, split: str | None = None) -> Labels:
    """The photos of a VOC tree with the tags of their XML files or of the lists of each class.

    Args:
        root: a year's folder, one that holds it (the latest year is taken), or a folder of photos and XML.
        split: the list in ImageSets that says what is in the set; None takes every photo that has tags.

    Raises:
        UserError: no such tree, no tags in it, a list or an annotation that is missing or damaged.
    """
    home = home_folder(root)
    photos = PhotoFiles(home / "JPEGImages" if (home / "JPEGImages").is_dir() else home)
    annotations = annotation_files(home)
    notes: list[str] = []
    ids = None
    if split is not None:
        ids, list_name = list_ids(home, split, LISTS)
        notes.append(f"photos of {list_name}")
    if annotations:
        rows = _xml_rows(home, photos, annotations, ids)
        source = "XML annotations"
    else:
        rows = _list_rows(home, split, ids)
        source = "class lists"
    if split is not None:
        rows = [replace(row, split=split) for row in rows]
    if not rows:
        raise UserError(f"{home}: none of its XML annotations belongs to a photo in {photos.root}")
    without = len(photos.names) - len(rows)
    if without and ids is None:
        notes.append(f"{without:,} photos without tags left out")
    names = {tag for row in rows for tag in (*row.present, *row.absent, *row.unknown)}
    # Mask values have a meaning only where the classes are VOC's own.
    is_voc = names <= set(VOC_CLASSES)
    return Labels(
        file=home,
        photos=photos,
        rows=rows,
        tags_from=source,
        count_rest=False,
        masks=_masks(home, rows) if is_voc else {},
        stored=dict(enumerate(VOC_CLASSES)) if is_voc else {},
        notes=tuple(notes),
    )


def looks_like_voc(root: Path) -> bool:
    """Whether a folder that nobody explained is a VOC tree with tags; opens no file."""
    try:
        home = home_folder(root)
    except UserError:
        return False
    if (home / "ImageSets" / "Main").is_dir():
        return True
    stems = annotation_files(home)
    if (home / "Annotations").is_dir():
        return bool(stems)
    return any(without_suffix(photo) in stems for photo in PhotoFiles(home).names)


def _xml_rows(
    home: Path, photos: PhotoFiles, annotations: dict[str, Path], ids: tuple[str, ...] | None
) -> list[Labelled]:
    by_stem = {without_suffix(name): name for name in reversed(photos.names)}
    if ids is None:
        stems: Iterable[str] = [stem for stem in annotations if stem in by_stem]
    else:
        stems = ids
        missing = [i for i in ids if i not in annotations]
        if missing:
            raise UserError(
                f"{home}: {len(missing):,} of the {len(ids):,} photos of the list have no annotation, such "
                f"as {missing[0]}.xml"
            )
    return [
        Labelled(
            image=by_stem.get(stem, stem),
            where=str(annotations[stem]),
            present=read_objects(annotations[stem]),
        )
        for stem in stems
    ]


def _list_rows(home: Path, split: str | None, ids: tuple[str, ...] | None) -> list[Labelled]:
    """Tags from ImageSets/Main/CLASS_SPLIT.txt."""
    folder = home / "ImageSets" / "Main"
    lists = {path.stem: path for path in sorted(folder.glob("*_*.txt"))}
    endings = [split] if split is not None else ["trainval"]
    if split is None and not any(name.endswith("_trainval") for name in lists):
        endings = ["train", "val", "test"]
    flags: dict[str, dict[str, str]] = {}
    for stem, path in lists.items():
        name, _, ending = stem.rpartition("_")
        if ending not in endings or not name:
            continue
        for number, line in enumerate(read_text(path, "list of a class").splitlines(), start=1):
            words = line.split()
            if words and (len(words) != 2 or words[1] not in FLAGS):
                raise UserError(
                    f"{path}, line {number}: {line[:60]!r}; expected a photo's id and 1 (present), -1 "
                    "(absent) or 0 (unknown)"
                )
            if words:
                flags.setdefault(words[0], {})[name] = words[1]
    if not flags:
        raise UserError(
            f"{home}: no XML annotations and no lists of a class (ImageSets/Main/dog_train.txt), so no tags; "
            "give a tag file (columns image, tags)"
        )
    chosen = flags if ids is None else {i: flags.get(i, {}) for i in ids}
    return [
        Labelled(
            image=_plain_id(i, folder),
            where=f"{folder}, {i}",
            present=tuple(name for name, flag in said.items() if flag == "1"),
            absent=tuple(name for name, flag in said.items() if flag == "-1"),
            unknown=tuple(name for name, flag in said.items() if flag == "0"),
            seen=bool(said),
        )
        for i, said in chosen.items()
    ]


def _plain_id(text: str, folder: Path) -> str:
    if "/" in text or "\\" in text or text in (".", ".."):
        raise UserError(f"{folder}: {text[:80]!r} is no photo id; expected a file name without folder")
    return text


def _masks(home: Path, rows: Iterable[Labelled]) -> dict[str, Path]:
    """Mask files by the rows' images; none is opened."""
    masks = mask_files(home)
    return {row.image: masks[i] for row in rows if (i := without_suffix(row.image)) in masks}
