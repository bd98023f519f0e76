"""The table of kinds of source; imports nothing heavy. `milseg.data.sources.open` finds which one is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from milseg.utils.registry import load_object


@dataclass(frozen=True, kw_only=True)
class Source:
    """One row of the table.

    Attributes:
        where: "module:function" of the reader. One with a file takes (photos' folder or photos, file, names of the
            classes where they are known), another one (folder, split).
        needs_file: whether the tags are in a file of their own.
        about: one line for listings.
    """

    where: str
    needs_file: bool
    about: str

    def load(self) -> Callable[..., Any]:
        """Return the reader."""
        reader: Callable[..., Any] = load_object(self.where)
        return reader


SOURCES: dict[str, Source] = {
    "folder": Source(
        where="milseg.data.sources.folder:read_folder",
        needs_file=False,
        about="a folder of photos for each tag",
    ),
    "table": Source(
        where="milseg.data.sources.table:read_tags_table",
        needs_file=True,
        about="CSV, TSV or JSON lines: image,tags[,split], or a column for each tag",
    ),
    "coco": Source(
        where="milseg.data.sources.coco:read_coco",
        needs_file=True,
        about="COCO JSON; each image's categories are its tags",
    ),
    "cvat": Source(
        where="milseg.data.sources.cvat:read_cvat",
        needs_file=True,
        about="CVAT for images 1.1 (XML); labels of tags and shapes are tags",
    ),
    "datumaro": Source(
        where="milseg.data.sources.datumaro:read_datumaro",
        needs_file=True,
        about="Datumaro JSON, as CVAT exports it",
    ),
    "voc": Source(
        where="milseg.data.sources.voc_tree:read_voc_tree",
        needs_file=False,
        about="a VOC tree of any classes: XML annotations, or lists in ImageSets/Main",
    ),
    "label_studio": Source(
        where="milseg.data.sources.label_studio:read_label_studio",
        needs_file=True,
        about="a Label Studio export, JSON or JSON-MIN; labels are tags",
    ),
    "shards": Source(
        where="milseg.data.shards.read:read_shards",
        needs_file=False,
        about="tar shards, also at an address: milseg shard, webdataset, img2dataset",
    ),
}
