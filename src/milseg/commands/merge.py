"""`milseg merge`."""

from __future__ import annotations

from pathlib import Path

from milseg.config import MergeOptions
from milseg.inference.merging import merge_folders


def merge_shards(options: MergeOptions) -> None:
    """`milseg merge`."""
    out = merge_folders([Path(folder) for folder in options.folders], options.out, resume=options.resume)
    print(f"{out['photos']} photos in {options.out or options.folders[0]}, {out['failed']} left out.")
