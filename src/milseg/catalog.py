"""What there is to choose from, in words; imports nothing heavy, so that `milseg list` answers at once.

Tests hold these tables against those that do the work.
"""

from __future__ import annotations

from milseg.annotations import FORMATS
from milseg.options import ListOptions

BACKBONES: dict[str, str] = {
    "vgg16": "the paper's network; strides 32, 16, 8; 138 million weights",
    "squeezenet1_0": "smallest download, 5 MB; strides 16, 8; train with --score-scale below 1",
    "mobilenet_v2": "the default on a CPU; strides 32, 16, 8",
    "resnet18": "strides 32, 16, 8",
    "resnet50": "the default on a GPU; strides 32, 16, 8",
    "convnext_tiny": "strides 32, 16, 8",
    "tiny": "for tests and digits; no published weights; strides 4, 2",
}
RULES: dict[str, str] = {
    "max": "one most probable place of each present class (the paper)",
    "average": "every place for every present class",
    "binary-max": "one binary MIL a class on its top-scoring place, no competition",
    "oracle": "every pixel, from masks; for comparison",
}
SOURCES: dict[str, str] = {
    "folder": "a folder for each tag",
    "table": "CSV, TSV or JSON lines: image,tags[,split], or a column for each tag",
    "coco": "COCO JSON",
    "voc": "a VOC tree with XML annotations",
    "label_studio": "a Label Studio JSON export",
}


def listing() -> str:
    """The tables as text."""
    parts = {
        "backbones (--backbone)": BACKBONES,
        "rules (--rule)": RULES,
        "sources (found by looking; --kind)": SOURCES,
        "formats (--format)": {name: row.about for name, row in FORMATS.items()},
    }
    lines = []
    for title, table in parts.items():
        lines += [title, *(f"  {name:14} {about}" for name, about in table.items()), ""]
    return "\n".join(lines).rstrip()


def show(options: ListOptions) -> None:
    """`milseg list`."""
    print(listing())
