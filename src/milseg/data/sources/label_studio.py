"""A Label Studio export, "JSON": a list of tasks with their photo and annotations; or "JSON-MIN", a flat one.

Choices, boxes, outlines, brush strokes and taxonomies all give tags: the labels they carry. Of a taxonomy's
path the last name counts. Several annotators of one photo add up. A task that nobody has annotated, or that
was skipped, has all its tags unknown; one annotated with nothing shows the background only.

Photos are files here: `/data/local-files/?d=PATH`, `/data/upload/PROJECT/PREFIX-NAME`, a web or bucket
address, and plain paths are looked up below the photos' folder, by path and else by file name; nothing is
downloaded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from milseg.data.sources.json_file import read_json, typed
from milseg.data.sources.label_studio_flat import flat_rows, is_flat
from milseg.data.sources.labelled import Labelled, Labels
from milseg.data.sources.names import PHOTO_SUFFIXES
from milseg.data.sources.photo_files import PhotoFiles
from milseg.data.sources.tag_file import written_name
from milseg.errors import UserError


def read_label_studio(root: Path | PhotoFiles, file: Path, known: Collection[str] = ()) -> Labels:
    """The tasks of an export whose photos are below `root`.

    Args:
        root: the photos' folder, or the photos themselves.
        file: the JSON file.
        known: as for every reader of a file; not used. A task may carry its own in `data.split`.

    Raises:
        UserError: naming the file and the task.
    """
    photos = PhotoFiles.at(root)
    tasks = typed(read_json(file, "Label Studio export"), list, str(file))
    if tasks and all(isinstance(task, dict) and "data" not in task and is_flat(task) for task in tasks):
        items = [(f"{file}, entry {i + 1}", task) for i, task in enumerate(tasks)]
        return _of_rows(file, photos, *flat_rows(str(file), items))
    rows, unseen, several = [], 0, 0
    for i, item in enumerate(tasks):
        task = typed(item, dict, f"{file}, task {i + 1}")
        where = f"{file}, task {i + 1}" + (f" (id {task['id']})" if isinstance(task.get("id"), int) else "")
        data = typed(task.get("data"), dict, f"{where}: data (export as JSON, not JSON-MIN)")
        done = _annotations(task, where)
        tags = dict.fromkeys(tag for results in done for tag in _tags(results, where))
        unseen += not done
        several += len({frozenset(_tags(results, where)) for results in done}) > 1
        rows.append(
            Labelled(
                image=written_name(_written(data, where), where),
                where=where,
                present=tuple(tags),
                split=typed(data.get("split") or "", str, f"{where}: split"),
                seen=bool(done),
            )
        )
    notes = []
    if unseen:
        notes.append(f"{unseen:,} tasks that nobody has annotated")
    if several:
        notes.append(f"{several:,} tasks whose annotators differ; all that any of them saw is taken")
    return _of_rows(file, photos, rows, notes)


def _of_rows(file: Path, photos: PhotoFiles, rows: Sequence[Labelled], notes: Iterable[str] = ()) -> Labels:
    return Labels(
        file=file, photos=photos, rows=rows, tags_from="Label Studio annotations", notes=tuple(notes)
    )


def _annotations(task: dict[str, Any], where: str) -> list[list[Any]]:
    """The results of each annotation that counts; "completions" is what old versions wrote."""
    items = typed(task.get("annotations", task.get("completions", [])), list, f"{where}: annotations")
    found = []
    for item in items:
        annotation = typed(item, dict, f"{where}: annotation")
        if not annotation.get("was_cancelled"):
            found.append(typed(annotation.get("result", []), list, f"{where}: result"))
    return found


def _tags(results: list[Any], where: str) -> list[str]:
    """The labels in the results of one annotation."""
    tags = []
    for item in results:
        result = typed(item, dict, f"{where}: result")
        kind = result.get("type")
        if not isinstance(kind, str) or not (kind in ("choices", "taxonomy") or kind.endswith("labels")):
            continue  # texts, ratings, relations
        value = typed(result.get("value"), dict, f"{where}: value")
        for label in typed(value.get(kind, value.get("labels", [])), list, f"{where}: {kind}"):
            name = label[-1] if isinstance(label, list) and label else label
            tags.append(typed(name, str, f"{where}: {kind}").strip())
    return [tag for tag in tags if tag]


def _written(data: dict[str, Any], where: str) -> str:
    """The photo's address: `data.image`, else the first value that ends as a photo does."""
    image = data.get("image")
    if isinstance(image, str):
        return image
    for value in data.values():
        if isinstance(value, str) and value.lower().endswith(PHOTO_SUFFIXES):
            return value
    raise UserError(f"{where}: no photo in its data; expected 'image' with the photo's path or address")
