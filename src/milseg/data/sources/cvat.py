"""CVAT's own XML, "CVAT for images 1.1": each image with its tags and shapes, whose labels are the tags.

    <annotations><meta>...<labels><label><name>cat</name></label></labels></meta>
      <image id="0" name="pets/a.jpg" subset="train"><tag label="cat"/><box label="dog" .../></image>

Boxes, polygons, polylines, points, ellipses, cuboids, skeletons and masks count by their label alone. An image
without any shows the background only.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from defusedxml import ElementTree

from milseg.data.sources.labelled import Labelled, Labels
from milseg.data.sources.photo_files import PhotoFiles
from milseg.data.sources.tag_file import written_name
from milseg.errors import UserError

WAY_OUT = 'in CVAT, export the task as "CVAT for images 1.1" or "COCO 1.0"'


def looks_like_cvat(text: str) -> bool:
    """Whether a text is XML of CVAT's, of either kind."""
    start = text.lstrip()[:4096]
    return start.startswith("<") and "<annotations" in start


def read_cvat(root: Path | PhotoFiles, file: Path, known: Collection[str] = ()) -> Labels:
    """The images of a CVAT file below `root`, tagged with the labels of their tags and shapes.

    Args:
        root: the photos' folder, or the photos themselves.
        file: the XML file.
        known: as for every reader of a file; not used.

    Raises:
        UserError: no XML, with a document type or entities (never expanded), CVAT's XML of videos, an image without
            a name, a shape without a label.
    """
    try:
        tree = ElementTree.fromstring(file.read_bytes(), forbid_dtd=True)
    except (OSError, SyntaxError, ValueError, LookupError) as error:
        what = str(error) or type(error).__name__
        raise UserError(f"{file}: not XML of CVAT's ({what}); {WAY_OUT}") from None
    if tree.tag != "annotations":
        raise UserError(f"{file}: holds <{tree.tag}>; expected <annotations> with <image> in it; {WAY_OUT}")
    images = tree.findall("image")
    if not images and tree.find("track") is not None:
        raise UserError(f"{file}: CVAT's XML of a video, which names no photos; {WAY_OUT}")
    rows = [_row(image, f"{file}, image {i + 1}") for i, image in enumerate(images)]
    names = [label.findtext("name") or "" for label in tree.iter("label")]
    return Labels(
        file=file,
        photos=PhotoFiles.at(root),
        rows=rows,
        classes=tuple(dict.fromkeys(name.strip() for name in names if name.strip())),
        tags_from="CVAT annotations",
    )


def _row(image: Any, where: str) -> Labelled:
    labels = []
    for shape in image:
        label = (shape.get("label") or "").strip()
        if not label:
            raise UserError(f"{where}: <{shape.tag}> without a label; {WAY_OUT}")
        labels.append(label)
    return Labelled(
        image=written_name(image.get("name") or "", where),
        where=where,
        present=tuple(dict.fromkeys(labels)),
        split=_split(image.get("subset") or ""),
    )


def _split(subset: str) -> str:
    """CVAT calls it default where there is none."""
    return "" if subset.strip().casefold() == "default" else subset.strip()
