"""Datumaro's JSON, as CVAT exports it: items with annotations, whose label numbers are the tags' places.

{"categories": {"label": {"labels": [{"name": "cat"}, ...]}},
 "items": [{"id": "pets/a", "annotations": [{"type": "label", "label_id": 0}], "image": {"path": "a.jpg"}}]}
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from milseg.data.sources.json_file import read_json, typed
from milseg.data.sources.labelled import Labelled, Labels
from milseg.data.sources.photo_files import PhotoFiles
from milseg.data.sources.tag_file import written_name
from milseg.errors import UserError


def read_datumaro(root: Path | PhotoFiles, file: Path, known: Collection[str] = ()) -> Labels:
    """The items of a Datumaro file whose photos are below `root`.

    Args:
        root: the photos' folder, or the photos themselves.
        file: the JSON file.
        known: as for every reader of a file; not used.

    Raises:
        UserError: naming the file and the item: something missing or of another type, a label that is not defined.
    """
    data = typed(read_json(file, "Datumaro file"), dict, str(file))
    category = typed(
        typed(data.get("categories"), dict, f"{file}: categories").get("label", {}), dict, f"{file}: label"
    )
    labels = typed(category.get("labels", []), list, f"{file}: labels")
    names = []
    for i, label in enumerate(labels):
        where = f"{file}, label {i + 1}"
        names.append(typed(typed(label, dict, where).get("name"), str, f"{where}: name").strip())
    rows = []
    for i, item in enumerate(typed(data.get("items"), list, f"{file}: items")):
        where = f"{file}, item {i + 1}"
        entry = typed(item, dict, where)
        rows.append(
            Labelled(
                image=written_name(_photo(entry, where), where),
                where=where,
                present=_tags(entry, names, where),
            )
        )
    return Labels(
        file=file,
        photos=PhotoFiles.at(root),
        rows=rows,
        classes=tuple(name for name in dict.fromkeys(names) if name),
        tags_from="Datumaro annotations",
    )


def _photo(item: dict[str, Any], where: str) -> str:
    """The photo's path, else the item's id, which is the path without extension."""
    for key in ("image", "media"):
        place = item.get(key)
        if isinstance(place, dict) and isinstance(place.get("path"), str) and place["path"]:
            return str(place["path"])
    return typed(item.get("id"), str, f"{where}: id")


def _tags(item: dict[str, Any], names: list[str], where: str) -> tuple[str, ...]:
    tags = []
    for annotation in typed(item.get("annotations", []), list, f"{where}: annotations"):
        number = typed(annotation, dict, f"{where}: annotation").get("label_id")
        if number is None:
            continue  # captions and the like
        if not isinstance(number, int) or not 0 <= number < len(names):
            raise UserError(f"{where}: label_id {number!r:.40} is not among the {len(names)} labels")
        tags.append(names[number])
    return tuple(tag for tag in dict.fromkeys(tags) if tag)
