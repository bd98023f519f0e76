"""Settings of `milseg shard`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from milseg.config.source import SourceOptions, bytes_of
from milseg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ShardOptions(SourceOptions):
    """Pack photos with their tags into tar shards, which any command reads: for network disks and object stores.

    Masks are never packed.

    Attributes:
        out: folder for shard-000000.tar and so on, each with its index, and shards.json.
        shard_size: begin a new shard before it grows beyond this, such as 256MB.
        photos_per_shard: so many photos in each shard, in place of a size.
        longest_side: photos larger than this are made this small and stored as JPEG; none stores every file as it is.
        max_pixels: larger photos are left out, not decoded.
        resume: keep the shards that an earlier call into the same folder finished.
        overwrite: start anew in a folder that already holds shards.
    """

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
