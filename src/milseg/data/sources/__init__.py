"""Where bags come from: PASCAL VOC with SBD, tag files, and digit scenes made here."""

from milseg.data.sources.voc import VOC_CLASSES, read_voc
from milseg.data.sources.voc_sets import PAIRS, SETS, default_pair, require_disjoint

__all__ = [
    "PAIRS",
    "SETS",
    "VOC_CLASSES",
    "default_pair",
    "read_voc",
    "require_disjoint",
]
