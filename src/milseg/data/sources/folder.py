"""A folder for each tag.

    pets/cat/tom.jpg            tag cat
    pets/dog/garden/rex.jpg     tag dog: the folder at the top counts
    pets/cat/both.jpg           and pets/dog/both.jpg, the same file: one photo with both tags
    pets/bird/                  no photo yet: the class keeps its place

Where the folders at the top are called train, val or test, they are splits, and tags come one level below.
The same file in several tag folders means the same path below them and the same bytes; other photos of equal
name stay two.
"""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from pathlib import Path

from milseg.data.sources.labelled import SPLIT_NAMES, Labelled, Labels, split_name
from milseg.data.sources.names import PLAIN_FOLDERS
from milseg.data.sources.outputs import folders_in
from milseg.data.sources.photo_files import PhotoFiles
from milseg.errors import UserError

SPLITS = frozenset(SPLIT_NAMES.values())


def read_folder(root: Path | PhotoFiles, split: str | None = None) -> Labels:
    """Photos with the name of the folder they are in as their tag.

    Args:
        root: the folder that holds the tag folders, or the photos below it.
        split: as for every reader of a folder; not used.

    Raises:
        UserError: no folder, or no photo in the folders below it.
    """
    photos = PhotoFiles.at(root)
    root = photos.root
    tops = _folders(photos, "")
    notes: list[str] = []
    prefixes = _splits(photos, tops, notes)
    tags = sorted({tag for prefix in prefixes for tag in _folders(photos, prefix)})
    if not tags or set(tags) <= set(PLAIN_FOLDERS):
        raise UserError(
            f"{root}: has {'no folder' if not tags else 'the folder ' + tags[0]} in it, which names no tag; "
            "expected a folder for each tag, or a tag file beside the photos (columns image, tags)"
        )
    groups, beside = _groups(photos.names, prefixes)
    if not groups:
        raise UserError(f"{root}: no photo in its {len(tags):,} folders ({', '.join(tags[:5])})")
    rows, shared = [], []
    for names in groups.values():
        for same in _same_files(photos, names):
            here = [_tag(name, prefixes) for name in same]
            if len(here) > 1:
                shared.append(f"{same[0]} ({', '.join(here)})")
            rows.append(
                Labelled(image=same[0], where=same[0], present=tuple(here), split=_split(same[0], prefixes))
            )
    if beside:
        notes.append(f"{len(beside):,} photos beside the tag folders left out, such as {beside[0]}")
    if shared:
        notes.append(
            f"{len(shared):,} photos that lie in several tag folders are one bag each, such as {shared[0]}"
        )
    return Labels(
        file=root,
        photos=photos,
        rows=sorted(rows, key=lambda row: row.image),
        classes=tuple(tags),
        tags_from="folders",
        count_rest=False,
        notes=tuple(notes),
    )


def _folders(photos: PhotoFiles, prefix: str) -> list[str]:
    """The folders below a folder that can be tags; those that hold outputs alone cannot."""
    folder = photos.root / prefix
    try:
        names = list(folders_in(folder))
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be read ({error.strerror}); make it readable") from None
    return [
        name
        for name in names
        if not any(f"{out}/".startswith(f"{prefix}{name}/") for out in photos.outputs)
        or _holds_photos(photos, f"{prefix}{name}/")
    ]


def _holds_photos(photos: PhotoFiles, prefix: str) -> bool:
    return any(photo.startswith(prefix) for photo in photos.names)


def _splits(photos: PhotoFiles, tops: Sequence[str], notes: list[str]) -> list[str]:
    """The folders of the splits, where the folders at the top are splits, each with a slash; else the root alone.

    Raises:
        UserError: folders of splits beside folders of tags.
    """
    splits = [top for top in tops if split_name(top) in SPLITS]
    others = [top for top in tops if top not in splits]
    if not splits:
        return [""]
    # In a split, photos lie one folder further down.
    deep = [
        top
        for top in splits
        if any(f"{top}/" == p[: len(top) + 1] and p.count("/") > 1 for p in photos.names)
    ]
    filled = [top for top in others if _holds_photos(photos, f"{top}/")]
    if not others or (deep and not filled):
        if others:
            notes.append(f"folders beside the splits hold no photo and are no tag: {', '.join(others[:5])}")
        return [f"{top}/" for top in splits]
    if deep or len(splits) > 1:
        raise UserError(
            f"{photos.root}: the folders {', '.join(splits)} are named as splits, beside {', '.join(others[:3])}; give "
            f"one split's folder as the source ({photos.root / splits[0]}), or move the others away"
        )
    notes.append(
        f"the folder {splits[0]} is taken for a tag, as it lies beside others: {', '.join(others[:5])}"
    )
    return [""]


def _split(name: str, prefixes: Sequence[str]) -> str:
    return "" if prefixes == [""] else name.partition("/")[0]


def _tag(name: str, prefixes: Sequence[str]) -> str:
    return name.split("/")[0 if prefixes == [""] else 1]


def _groups(
    names: Sequence[str], prefixes: Sequence[str]
) -> tuple[dict[tuple[str, str], list[str]], list[str]]:
    """Photos by split and path below the tag folder, and those in no tag folder."""
    depth = 1 if prefixes == [""] else 2
    groups: dict[tuple[str, str], list[str]] = {}
    beside = []
    for name in names:
        parts = name.split("/", depth)
        if len(parts) <= depth:
            beside.append(name)
        else:
            groups.setdefault((_split(name, prefixes), parts[-1]), []).append(name)
    return groups, beside


def _same_files(photos: PhotoFiles, names: Sequence[str]) -> list[list[str]]:
    """Photos of equal name, sorted by content; only these are ever compared byte by byte."""
    kinds: list[list[str]] = []
    for name in names:
        for same in kinds:
            try:
                equal = filecmp.cmp(photos.path(same[0]), photos.path(name), shallow=False)
            except OSError as error:
                raise UserError(f"{photos.path(name)}: cannot be read ({error.strerror})") from None
            if equal:
                same.append(name)
                break
        else:
            kinds.append([name])
    return kinds
