"""Where photos and tags come from: the settings that every command with a source shares."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

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
    """Where fetched shards and indexes go when nobody says.

    Raises:
        UserError: the user has no home.
    """
    cache = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(cache) if cache else Path.home() / ".cache") / "milseg" / "shards"
    except RuntimeError:  # HOME is not set, and the user is in no list of users
        raise UserError(
            "no home folder for the cache of shards; set HOME, or name a folder with --cache"
        ) from None


class CacheSettings(Protocol):
    """Options of any command that reads shards."""

    @property
    def cache(self) -> Path | None: ...

    @property
    def cache_size(self) -> str: ...


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
    def of(cls, options: CacheSettings) -> ShardReading:
        """From a command's options; commands that read no tags have no `tags_key`."""
        return cls(
            tags_key=getattr(options, "tags_key", cls.tags_key),
            cache=options.cache,
            cache_size=bytes_of(options.cache_size),
        )


PLAIN_READING = ShardReading()


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """A source of photos with tags.

    Attributes:
        source: photos' folder, a folder for each tag, a table, COCO JSON, a VOC tree, a Label Studio export, or
            shards (a folder, a pattern or an address of .tar files).
        tags: file with the tags, where it is not the source itself.
        split: only the photos of this split.
        classes: tags to use, with commas; none takes all.
        tags_are: complete (a tag that is not there is absent) or partial (it is unknown).
        background: whether there is a class for what no tag names: yes, no, or auto, which looks whether the tags name
            everything in every photo (sky, grass, road).
        ignore_unknown_tags: leave out tags that are not among --classes.
        kind: what the source is, where it could be several things.
        tags_key: key of the tags in the JSON files of shards.
        cache: folder for shards fetched from elsewhere, and for indexes; none: milseg/shards in the user's cache.
        cache_size: how much of fetched shards is kept, such as 20GB.
    """

    source: Path = field(metadata={"positional": True})
    tags: Path | None = None
    split: str | None = None
    classes: tuple[str, ...] | None = None
    tags_are: str = "complete"
    background: str = "auto"
    ignore_unknown_tags: bool = False
    kind: str | None = None
    tags_key: str = "tags"
    cache: Path | None = None
    cache_size: str = "20GB"
