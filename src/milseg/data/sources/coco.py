"""COCO JSON: images, categories with any numbers, and annotations, whose categories are the tags.

Boxes and outlines are not looked at: an annotation says that its category is in its image. Numbers of
categories are keys only; they may begin at 0, have gaps (COCO's own are 1 to 90, 80 of them) and come in any
order.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from milseg.data.sources.json_file import read_json, typed
from milseg.data.sources.labelled import Labelled, Labels
from milseg.data.sources.photo_files import PhotoFiles
from milseg.data.sources.tag_file import written_name
from milseg.errors import UserError

Number = int | str


def read_coco(root: Path | PhotoFiles, file: Path, known: Collection[str] = ()) -> Labels:
    """The images of a COCO file below `root`, tagged with the categories of their annotations.

    An image without annotations shows the background only; in a file that has no "annotations" at all,
    nothing is known of any image.

    Args:
        root: the photos' folder, or the photos themselves.
        file: the JSON file.
        known: as for every reader of a file; not used.

    Raises:
        UserError: naming the file and the entry: something missing or of another type, a number that is used
            twice or not defined.
    """
    data = typed(read_json(file, "COCO file"), dict, str(file))
    names: dict[Number, str] = {}
    for where, item in _items(data, "categories", file):
        name = typed(item.get("name"), str, f"{where}: name").strip()
        _add(names, _number(item.get("id"), f"{where}: id"), name, where)
    images: dict[Number, tuple[str, str]] = {}
    for where, item in _items(data, "images", file):
        image = written_name(typed(item.get("file_name"), str, f"{where}: file_name"), where)
        _add(images, _number(item.get("id"), f"{where}: id"), (image, where), where)
    tags: dict[Number, dict[str, None]] = {number: {} for number in images}
    seen = "annotations" in data
    for where, item in _items(data, "annotations", file) if seen else ():
        image_id = _number(item.get("image_id"), f"{where}: image_id")
        category = _number(item.get("category_id"), f"{where}: category_id")
        if image_id not in tags:
            raise UserError(f"{where}: image_id {image_id!r} is not among the images; was the file cut down?")
        if category not in names:
            raise UserError(f"{where}: category_id {category!r} is not among the categories")
        tags[image_id][names[category]] = None
    rows = [
        Labelled(image=image, where=where, present=tuple(tags[number]), seen=seen)
        for number, (image, where) in images.items()
    ]
    return Labels(
        file=file,
        photos=PhotoFiles.at(root),
        rows=rows,
        classes=tuple(dict.fromkeys(names.values())),
        tags_from="COCO annotations",
    )


def _items(data: dict[str, Any], key: str, file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of one of the file's lists, each with its place."""
    if key not in data:
        raise UserError(f"{file}: no {key!r}; expected a COCO file, with images, categories and annotations")
    for i, item in enumerate(typed(data[key], list, f"{file}: {key}")):
        where = f"{file}, {key}[{i}]"
        yield where, typed(item, dict, where)


def _number(value: object, where: str) -> Number:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise UserError(f"{where}: is {repr(value)[:60]}; expected a whole number")
    return value


def _add(table: dict[Number, Any], number: Number, value: object, where: str) -> None:
    if number in table:
        raise UserError(f"{where}: the id {number!r} is taken already; each needs its own")
    table[number] = value
