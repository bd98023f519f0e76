"""Open whatever the user has: the kind of source is found by looking at what is given."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from milseg.config.source import PLAIN_READING, ShardReading, SourceOptions
from milseg.data.bags import BagSet
from milseg.data.shards.read import holds_tars, in_shard_order, names_shards, own_classes, read_shards
from milseg.data.source_table import SOURCES
from milseg.data.sources.build import make_bag_set
from milseg.data.sources.labelled import SPLIT_NAMES, Labels, split_name
from milseg.data.sources.names import PHOTO_SUFFIXES, PLAIN_FOLDERS
from milseg.data.sources.photo_files import PhotoFiles
from milseg.data.sources.table import TABLE_SUFFIXES
from milseg.data.sources.tags import file_kind, guessed_kind, read_tags
from milseg.data.sources.voc_tree import looks_like_voc
from milseg.errors import UserError, unknown_name
from milseg.utils.files import PathLike, as_path, did_you_mean

# What --background says, as `open_source` takes it.
BACKGROUND = {"auto": None, "yes": True, "no": False}


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a source is.

    Attributes:
        kind: a name in `SOURCES`.
        root: the photos' folder.
        file: the file with the tags, where it has one.
        split: the split that is still to be chosen; None where the choice of the file was that.
    """

    kind: str
    root: Path
    file: Path | None = None
    split: str | None = None


def open_source(
    source: PathLike,
    *,
    tags: PathLike | None = None,
    split: str | None = None,
    classes: Sequence[str] | None = None,
    tags_are: str = "complete",
    background: bool | None = None,
    ignore_unknown: bool = False,
    kind: str | None = None,
    untagged: str = "background",
    keep_all: bool = False,
    shards: ShardReading = PLAIN_READING,
    leave_out: Sequence[PathLike] = (),
) -> BagSet:
    """Read photos and their tags, whatever their form (see `SOURCES`); no photo is opened.

    Args:
        source: the photos' folder, a folder for each tag, a VOC tree, or the file with the tags itself, whose
            photos are then below its folder (below the folder above, where its own is called annotations).
        tags: the file with the tags, where it is not the source.
        split: only the photos of this split: what the split column says (training, valid and validation are
            train and val), VOC's list of that name, or, where nothing else is written, a folder's name.
        classes: tags to learn, in this order, without the background; None takes all, sorted by name.
        tags_are: "complete": a tag that is not there is absent; "partial": it is unknown, unless marked
            absent. Single tags can be marked either way in tables.
        background: whether there is a class for what no tag names. None: there is, unless each photo has a
            tag of its surroundings (see `names_everything`); photos without a tag imply one. Without it, photos
            without a tag are left out. A tag called "background" is the background.
        ignore_unknown: drop tags that are not in `classes`, and photos that have no others, in place of an
            error.
        kind: a name in `SOURCES`, where what is given could be several things.
        untagged: what a photo that was looked at and has no tag is: "background" alone, "unknown", or "leave
            out".
        keep_all: keep the photos whose tags are all ignored, and without a background class those without any: for
            scoring, where masks say what is in a photo.
        shards: how shards are read.
        leave_out: folders among the photos that are no input, such as the one that a command writes into; milseg's
            own outputs are known by their files.

    Returns:
        A BagSet; its notes count what was left out or is odd. Bags are called by their photo's path below the
        photos' folder, without the extension.

    Raises:
        UserError: nothing there that can be read, several things it could be, a file that is damaged, a path
            that leads out of the photos' folder, two photos of one name, an unknown tag, no photo left.
    """
    source, tags = as_path(source), None if tags is None else as_path(tags)
    place = find_source(source, tags=tags, split=split, kind=kind)
    if place.kind == "shards":
        labels = _of_shards(place, shards, classes or ())
        if classes is None and place.file is None:
            classes, own = own_classes(labels, place.root)
            background = own if background is None else background
    else:
        labels = _read(place, classes or (), [as_path(folder) for folder in leave_out])
    name = source.absolute().name
    bags = make_bag_set(
        labels,
        name=name if split is None else f"{name} {split}",
        split=place.split,
        classes=classes,
        tags_are=tags_are,
        background=background,
        ignore_unknown=ignore_unknown,
        untagged=untagged,
        keep_all=keep_all,
    )
    # What was odd when shards were made, and still is, is said once.
    return replace(bags, notes=tuple(dict.fromkeys(bags.notes)))


def open_source_of(options: SourceOptions) -> BagSet:
    """The bags that a command's options name; no photo is opened.

    Raises:
        UserError: as `open_source`, or a value of `background` that is none.
    """
    if options.background not in BACKGROUND:
        raise unknown_name("value of --background", options.background, BACKGROUND)
    return open_source(
        options.source,
        tags=options.tags,
        split=options.split,
        classes=options.classes,
        tags_are=options.tags_are,
        background=BACKGROUND[options.background],
        ignore_unknown=options.ignore_unknown_tags,
        kind=options.kind,
        shards=ShardReading.of(options),
        leave_out=tuple(filter(None, [getattr(options, "out", None)])),
    )


def _read(place: Place, known: Collection[str], leave_out: Sequence[Path]) -> Labels:
    """What the reader of a source finds."""
    source = SOURCES[place.kind]
    read = source.load()
    # A VOC tree's photos are in a folder of its own.
    where = place.root if place.kind == "voc" else PhotoFiles(place.root, leave_out=leave_out)
    labels: Labels = read(where, place.file, known) if source.needs_file else read(where, place.split)
    return labels


def _of_shards(place: Place, reading: ShardReading, known: Collection[str]) -> Labels:
    """Photos in shards with their own tags, or with those of a file."""
    labels = read_shards(place.root, reading, need_tags=place.file is None)
    return (
        labels if place.file is None else in_shard_order(labels, read_tags(place.file, labels.photos, known))
    )


def find_source(
    source: Path, *, tags: Path | None = None, split: str | None = None, kind: str | None = None
) -> Place:
    """What kind of source is given, and where its parts are; see `open_source` for arguments and errors."""
    if kind is not None and kind not in SOURCES:
        raise unknown_name("kind of source", kind, SOURCES)
    part = source / (split or "")
    if kind == "shards" or (
        kind is None and (names_shards(source) or (split is not None and names_shards(part)))
    ):
        if split is not None and part.is_dir():
            return Place(kind="shards", root=part, file=tags)
        return Place(kind="shards", root=source, file=tags, split=split)
    if not source.exists():
        raise UserError(
            f"{source}: no such file or folder; expected photos with tags, or a file of tags{did_you_mean(source)}"
        )
    if kind is not None and not SOURCES[kind].needs_file:
        if tags is not None or not source.is_dir():
            raise UserError(f"{tags or source}: the kind {kind!r} is a folder and takes no file of tags")
        return Place(kind=kind, root=source, split=split)
    if tags is not None:
        if kind is None and source.is_dir() and holds_tars(source) and not PhotoFiles(source).names:
            return Place(kind="shards", root=source, file=tags, split=split)
        if not source.is_dir():
            raise UserError(f"{source}: a file; with a tag file beside it, expected the folder of the photos")
        return _with_file(kind or file_kind(tags), source, tags, split)
    if not source.is_dir():
        root = source.parent
        root = root.parent if root.name.casefold() == "annotations" else root
        return _with_file(kind or file_kind(source), root, source, split)
    return _look_into(source, split, kind)


def _look_into(folder: Path, split: str | None, kind: str | None) -> Place:
    """A folder that nobody explained: a file of tags in it, else a VOC tree, else a folder for each tag."""
    files = _tag_files(folder, kind)
    if len(files) > 1 and split is not None:
        files = {path: of for path, of in files.items() if _is_of_split(path, split)} or files
    if len(files) > 1:
        raise UserError(
            f"{folder}: {len(files)} files with tags ({', '.join(sorted(path.name for path in files)[:5])}); "
            "say which"
        )
    if files:
        ((path, of),) = files.items()
        return _with_file(of, folder, path, split)
    part = None if split is None else _named_split(folder, split)
    if part is not None and _tag_files(part, kind):
        # Some exports have a folder for each split, each with its own file.
        return _look_into(part, None, kind)
    if kind is None and looks_like_voc(folder):
        return Place(kind="voc", root=folder, split=split)
    photos = PhotoFiles(folder)
    tops = {name.partition("/")[0] for name in photos.names if "/" in name}
    if kind is None and tops - set(PLAIN_FOLDERS):
        return Place(kind="folder", root=folder, split=split)
    if kind is None and not photos.names and holds_tars(folder):
        return Place(kind="shards", root=folder, split=split)
    raise UserError(
        f"{folder}: {len(photos.names):,} photos and no {f'file of the kind {kind!r}' if kind else 'tags'}; "
        "expected a folder for each tag, a tag file beside the photos (columns image, tags), COCO JSON, a "
        "Label Studio export or a VOC tree with XML; name a tag file elsewhere by --tags FILE"
    )


def _with_file(kind: str, root: Path, file: Path, split: str | None) -> Place:
    """A source with a file of tags; files without a split column may be called after their split."""
    is_split = split is not None and kind == "coco" and _is_of_split(file, split)
    return Place(kind=kind, root=root, file=file, split=None if is_split else split)


def _is_of_split(path: Path, split: str) -> bool:
    """Whether a file is called after a split, as instances_val2017.json is after val."""
    return split_name(split) in map(split_name, re.split(r"[\W\d_]+", path.stem))


def _named_split(folder: Path, split: str) -> Path | None:
    names = [split, *(name for name, plain in SPLIT_NAMES.items() if plain == split_name(split))]
    return next((folder / name for name in names if "/" not in name and (folder / name).is_dir()), None)


def _tag_files(folder: Path, kind: str | None) -> dict[Path, str]:
    """The files in a folder, or in `annotations` in it, that hold tags, and of which kind."""
    found = {}
    for place in (folder, folder / "annotations"):
        paths = sorted(place.iterdir()) if place.is_dir() else []
        # Some tools write a file beside each photo; none of these speaks of all.
        photos = {path.stem for path in paths if path.suffix.lower() in PHOTO_SUFFIXES}
        for path in paths:
            known = path.suffix.lower() in TABLE_SUFFIXES or path.name.casefold() == "annotations.xml"
            if not known or path.stem in photos or path.name[0] == ".":
                continue
            of = guessed_kind(path) if path.is_file() else None
            if of is not None and kind in (None, of):
                found[path] = of
    return found
