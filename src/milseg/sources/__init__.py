"""Where bags come from: PASCAL VOC with SBD, tag files, and digit scenes made here."""

from milseg.sources.tag_file import TagRow, read_tag_file
from milseg.sources.voc import PAIRS, SETS, VOC_CLASSES, default_pair, read_voc, require_disjoint

__all__ = [
    "PAIRS",
    "SETS",
    "VOC_CLASSES",
    "TagRow",
    "default_pair",
    "read_tag_file",
    "read_voc",
    "require_disjoint",
]
