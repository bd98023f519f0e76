"""Files with tags of any form: which form it is, and its reader."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from milseg.data.source_table import SOURCES
from milseg.data.sources.cvat import looks_like_cvat
from milseg.data.sources.labelled import Labels
from milseg.data.sources.photo_files import PhotoFiles
from milseg.data.sources.table import TABLE_SUFFIXES, looks_like_tags
from milseg.data.sources.tag_file import read_text
from milseg.errors import UserError

# Tools whose JSON is not read, by keys that it has.
OTHER_JSON = {
    ("shapes", "imagePath"): "LabelMe's JSON, one file a photo",
    ("regions", "filename"): "VGG Image Annotator's JSON",
    ("_via_img_metadata",): "VGG Image Annotator's project",
    ("objects", "classTitle"): "Supervisely's JSON, one file a photo",
    ("coordinates", "annotations"): "CreateML's JSON",
}


def read_tags(file: Path, photos: Path | PhotoFiles, known: Collection[str] = ()) -> Labels:
    """What a file with tags of any form says of photos; no photo is opened.

    Args:
        file: the file.
        photos: their folder, or the photos that were found already.
        known: names of the classes, where they are known.

    Raises:
        UserError: no file of a known form, or a damaged one, with the place in it.
    """
    labels: Labels = SOURCES[file_kind(file)].load()(photos, file, known)
    return labels


def file_kind(path: Path) -> str:
    """The kind of a file of tags that was named.

    Raises:
        UserError: missing, not readable as text, or JSON of no known kind.
    """
    text = read_text(path, "tag file")
    if looks_like_cvat(text):
        return "cvat"
    if text.lstrip().startswith("<"):
        raise UserError(
            f"{path}: XML or HTML, but no kind that is known; expected CVAT's <annotations>. A folder with VOC's XML "
            "is a source by itself"
        )
    if text.lstrip()[:1] not in ("{", "[") or path.suffix.lower() in set(TABLE_SUFFIXES) - {".json"}:
        return "table"  # whose reader says what is wrong with it
    of = json_kind(text)
    if of is None:
        for words, tool in OTHER_JSON.items():
            if all(f'"{word}"' in text[:65536] for word in words):
                raise UserError(
                    f"{path}: {tool}; convert it to COCO JSON, or to a table with the columns image, tags"
                )
        raise UserError(
            f"{path}: JSON, but no kind that is known; expected COCO (images, categories, annotations), a "
            'Label Studio export, or lines such as {"image": "a.jpg", "tags": ["cat"]}'
        )
    return of


def json_kind(text: str) -> str | None:
    """What a JSON text seems to be; its reader checks it."""
    line = text.lstrip().partition("\n")[0]
    if re.search(r'^\s*\[?\s*\{[^{}]*"image"\s*:', text[:4096]) and re.search(r'"tags"\s*:', text[:65536]):
        return "table"
    if line.startswith("["):
        keys = r'"(data|annotations|completions|annotation_id|annotator)"\s*:'
        return "label_studio" if re.search(keys, text[:65536]) or line.strip() == "[]" else None
    if line.startswith("{") and all(re.search(rf'"{key}"\s*:', text) for key in ("items", "categories")):
        return "datumaro"
    if line.startswith("{") and re.search(r'"images"\s*:', text) and re.search(r'"categories"\s*:', text):
        return "coco"
    return None


def guessed_kind(path: Path) -> str | None:
    """The kind of a file that nobody named; None where it holds no tags."""
    try:
        text = read_text(path, "tag file")
    except UserError:
        return None
    if looks_like_cvat(text):
        return "cvat"
    if text.lstrip()[:1] in ("{", "["):
        return json_kind(text)
    return "table" if looks_like_tags(path, text) else None
