"""What is no input: milseg's own outputs, known by their files, and what operating systems leave behind."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

# VOC's masks are PNG files; the others hold previews, deleted files and shadows of files.
NOT_PHOTOS = frozenset(
    (
        *(
            "SegmentationClass",
            "SegmentationObject",
            "__MACOSX",
            "@eaDir",
            "@Recycle",
            "#recycle",
            "lost+found",
        ),
        *("$RECYCLE.BIN", "System Volume Information", ".ipynb_checkpoints", "Thumbs.db", "desktop.ini"),
    )
)
# Files and folders that lie together in an output folder, of each kind.
MARKS: tuple[frozenset[str], ...] = (
    frozenset(("config.yaml", "labels.json", "model.safetensors")),  # a model folder
    frozenset(("train.yaml", "metrics.jsonl")),  # a training run that has begun
    frozenset((".parts", "masks")),  # a prediction that has begun
    frozenset(("predictions.csv", "masks")),
)
# Any one of these is enough: nobody else writes files of these names.
RESULTS = frozenset(("compare.json", "table1.json", "ablations.json"))


def is_leftover(name: str) -> bool:
    """Whether a file or folder is hidden, or one that no person put there."""
    return name.startswith(".") or name in NOT_PHOTOS


def is_output(names: Collection[str]) -> bool:
    """Whether a folder of these files and folders is one that milseg wrote."""
    there = set(names)
    return any(mark <= there for mark in MARKS) or not RESULTS.isdisjoint(there)


def folders_in(folder: Path) -> Iterator[str]:
    """The names of the folders in a folder that may hold photos, sorted; outputs are not looked for.

    Raises:
        OSError: a folder that cannot be read.
    """
    with os.scandir(folder) as scan:
        names = sorted(entry.name for entry in scan if entry.is_dir())
    return (name for name in names if not is_leftover(name))
