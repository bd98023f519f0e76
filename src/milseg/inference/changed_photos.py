"""Which photos are others than when their masks were made: those are made again when a run goes on."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from milseg.annotations.cleanup import forget_photos
from milseg.annotations.writer import entries_of
from milseg.data.sources.photo_inputs import PhotoFile
from milseg.data.types import PackedPhoto
from milseg.inference.prediction_files import LEDGER

log = logging.getLogger("milseg")


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_stamp(path: Path | PackedPhoto) -> list[Any] | None:
    """What tells a photo's file from another: bytes, time of change and SHA-256; of one in a shard the bytes alone."""
    if isinstance(path, PackedPhoto):
        return [path.length]
    try:
        stat = path.stat()
        return [stat.st_size, stat.st_mtime_ns, digest_of(path)]
    except OSError:
        return None  # reading it tells why


def has_changed(stamp: Any, path: Path | PackedPhoto) -> bool:
    """Whether a photo's file is another than when its mask was made; a record without a stamp says no."""
    if not isinstance(stamp, list) or not stamp:
        return False
    if isinstance(path, PackedPhoto):
        return bool(stamp[0] != path.length)
    try:
        stat = path.stat()
        if len(stamp) != 3 or stat.st_size != stamp[0]:
            return True
        return bool(stat.st_mtime_ns != stamp[1] and digest_of(path) != stamp[2])
    except OSError:
        return False


def forget_changed(out: Path, photos: Iterable[PhotoFile]) -> None:
    """Photos that changed since their masks were made are made again."""
    ledger = out / ".parts" / LEDGER
    if not ledger.is_file():
        return
    paths = {photo.name: photo.path for photo in photos}
    changed = [
        entry["name"]
        for _, entry in entries_of(ledger)
        if entry["name"] in paths and has_changed(entry.get("file"), paths[entry["name"]])
    ]
    if changed:
        forget_photos(out, set(changed), [LEDGER])
        log.warning(
            f"{len(changed)} photos changed since their masks were made, such as {changed[0]}; they are made "
            "again"
        )
