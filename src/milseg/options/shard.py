"""Settings of `milseg shard`, and of reading shards in any command."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from milseg.errors import UserError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def bytes_of(text: str) -> int:
    """Bytes of a size such as 256MB or 20GB; a bare number is bytes.

    >>> bytes_of("256MB"), bytes_of("1.5 gb"), bytes_of("512")
    (256000000, 1500000000, 512)
    """
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if parts is None or not float(parts[1]):
        raise UserError(f"size {text!r}: expected such as 256MB or 20GB")
    return int(float(parts[1]) * UNITS[parts[2]])


def cache_folder() -> Path:
    """Where fetched shards and indexes go when nobody says."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "milseg" / "shards"


@dataclass(frozen=True, kw_only=True)
class ShardReading:
    """How shards are read.

    Attributes:
        tags_key: key of the tags in each photo's JSON.
        cache: folder for shards fetched from elsewhere, and for indexes; None: `cache_folder()`.
        cache_size: bytes of fetched shards that are kept.
    """

    tags_key: str = "tags"
    cache: Path | None = None
    cache_size: int = 20 * 10**9

    @classmethod
    def of(cls, options: object) -> ShardReading:
        """From a command's options, as far as it has them."""
        return cls(
            tags_key=getattr(options, "tags_key", cls.tags_key),
            cache=getattr(options, "cache", None),
            cache_size=bytes_of(getattr(options, "cache_size", "20GB")),
        )


PLAIN_READING = ShardReading()


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """Pack photos with their tags into tar shards, which any command reads: for network disks and object stores.

    Masks are never packed.

    Attributes:
        source: photos with tags, of any kind that `milseg train` takes, shards included.
        tags: file with the tags, where it is not the source itself.
        split: only the photos of this split.
        classes: tags to keep, with commas; none takes all.
        tags_are: complete (a tag that is not there is absent) or partial (it is unknown).
        no_background: the tags name everything in the photo; there is no background class.
        ignore_unknown_tags: leave out tags that are not among --classes.
        kind: what the source is, where it could be several things.
        tags_key: key of the tags in the JSON files of shards.
        cache: folder for shards fetched from elsewhere.
        cache_size: how much of them is kept.
        out: folder for shard-000000.tar and so on, each with its index, and shards.json.
        shard_size: begin a new shard before it grows beyond this, such as 256MB.
        photos_per_shard: so many photos in each shard, in place of a size.
        longest_side: photos larger than this are made this small and stored as JPEG; none stores every file as it is.
        max_pixels: larger photos are left out, not decoded.
        resume: keep the shards that an earlier call into the same folder finished.
        overwrite: start anew in a folder that already holds shards.
    """

    source: Path = field(metadata={"positional": True})
    tags: Path | None = None
    split: str | None = None
    classes: tuple[str, ...] | None = None
    tags_are: str = "complete"
    no_background: bool = False
    ignore_unknown_tags: bool = False
    kind: str | None = None
    tags_key: str = "tags"
    cache: Path | None = None
    cache_size: str = "20GB"
    out: Path = Path("runs/shards")
    shard_size: str | None = None
    photos_per_shard: int | None = None
    longest_side: int | None = None
    max_pixels: int = 100_000_000
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.shard_size is not None and self.photos_per_shard is not None:
            raise UserError("--shard-size and --photos-per-shard: give one of the two")
        for name in ("photos_per_shard", "longest_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: expected 1 or more")

    @property
    def shard_bytes(self) -> int:
        """Bytes that a shard stays below, where photos are not counted."""
        return bytes_of(self.shard_size or "256MB")
