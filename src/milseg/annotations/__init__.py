"""Files that annotation tools open, written from predicted masks; one photo after the other, in any number.

Nothing heavy is imported before a writer is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from milseg.errors import unknown_name
from milseg.utils.registry import load_object

if TYPE_CHECKING:
    from milseg.annotations.writer import Writer


class Format(NamedTuple):
    """One row of the table: what it writes, and "module:Class" of its writer."""

    about: str
    writer: str


FORMATS: dict[str, Format] = {
    "png": Format(
        "masks/ as palette PNG and overlays/ as JPEG, one of each a photo", "milseg.annotations.png:PngWriter"
    ),
    "coco": Format("coco.json with run-length encoded masks", "milseg.annotations.coco:CocoWriter"),
    "labelstudio": Format(
        "labelstudio.json, tasks with brush predictions, and labelstudio_config.xml",
        "milseg.annotations.label_studio:LabelStudioWriter",
    ),
    "cvat": Format(
        'cvat.zip for CVAT\'s import of "Segmentation mask 1.1"', "milseg.annotations.cvat:CvatWriter"
    ),
    "yolo": Format(
        "yolo/ with one text file of polygons a photo, and data.yaml", "milseg.annotations.yolo:YoloWriter"
    ),
    "npz": Format(
        "scores/ with the coarse scores of each photo, compressed", "milseg.annotations.npz:NpzWriter"
    ),
}


def writer_class(name: str) -> type[Writer]:
    """The writer of a format; its `needs_scores` says whether predictions must carry scores.

    Raises:
        UserError: no such format.
    """
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS)
    writer: type[Writer] = load_object(FORMATS[name].writer)
    return writer


def open_writer(
    name: str, out: Path, classes: Sequence[str], *, resume: bool = False, **options: Any
) -> Writer:
    """Open the writer of one format.

    Args:
        name: a key of `FORMATS`.
        out: the folder to write into; made where it is missing.
        classes: names of the masks' numbers; a first one named "background" is no label.
        resume: go on with what an earlier run left in `out`; otherwise start anew.
        options: what the format's own writer takes besides.

    Raises:
        UserError: no such format, class names that the format cannot hold, a folder that cannot be written,
            or a run to resume that had other classes or options.

    >>> import tempfile, numpy as np
    >>> from milseg.annotations.writer import Prediction
    >>> out = Path(tempfile.mkdtemp())
    >>> with open_writer("coco", out, ["background", "cat"]) as writer:
    ...     writer.add(Prediction(name="a", photo_file="a.jpg", photo_path=Path("a.jpg"), size=(1, 2),
    ...                           mask=np.array([[0, 1]], dtype=np.uint8), confidence=0.5))
    True
    >>> (out / "coco.json").exists()
    True
    """
    return writer_class(name)(out, classes, resume=resume, **options)
