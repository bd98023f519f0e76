"""Photos in tar shards, as `milseg shard`, webdataset and img2dataset write them, here or elsewhere.

A photo is read from its place in the tar; nothing is unpacked. Where `shards.json` lies beside the shards, it and the
index of each shard say what is where; else each tar is looked through once, and what was found is remembered.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from milseg.config.fields import shown
from milseg.config.source import PLAIN_READING, ShardReading, cache_folder
from milseg.data.image import PackedPhoto
from milseg.data.shards.cache import Shard, address_of, download, fetch, file_system, kept_file
from milseg.data.shards.index import (
    Sample,
    ShardIndex,
    index_record,
    index_text,
    read_index,
    scan_shard,
)
from milseg.data.sources.json_file import parse_json, read_json
from milseg.data.sources.labelled import Labelled, Labels
from milseg.data.sources.names import is_plain_text
from milseg.data.sources.photo_files import PhotoFiles
from milseg.errors import UserError
from milseg.utils.files import check_size, write_text

MANIFEST = "shards.json"
MOST_SHARDS = 100_000
MAX_MANIFEST = MAX_INDEX = 2**26  # bytes
MOST_BYTES = 2**50  # of a shard


@dataclass(frozen=True)
class TarPhoto(PackedPhoto):
    """A photo in a shard: `length` bytes from `offset` on."""

    shard: Shard
    key: str
    suffix: str
    offset: int
    length: int

    @property
    def group(self) -> str:  # type: ignore[override]
        return self.shard.place

    def read(self) -> bytes:
        return self.shard.read(self.offset, self.length)

    def soon(self) -> None:
        self.shard.soon()

    def __str__(self) -> str:
        return f"{self.shard.place}: {self.key}{self.suffix}"


@dataclass(frozen=True, kw_only=True)
class OpenShards:
    """Shards that were found, with what is in each.

    Attributes:
        name: of the source, for messages.
        shards, indexes: each shard and its index, in order.
        manifest: what `shards.json` says; empty where there is none.
        names: the name of each photo, shard by shard.
        notes: what is odd.
    """

    name: str
    shards: tuple[Shard, ...]
    indexes: tuple[ShardIndex, ...]
    manifest: Mapping[str, Any]
    names: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def samples(self) -> Iterator[tuple[str, TarPhoto, Sample]]:
        """Each photo's file name, the photo, and what is known of it, in the shards' order."""
        for shard, index, names in zip(self.shards, self.indexes, self.names, strict=True):
            for name, sample in zip(names, index.samples, strict=True):
                photo = TarPhoto(shard, sample.key, sample.suffix, sample.offset, sample.length)
                yield name + sample.suffix, photo, sample


def names_shards(source: Path | str) -> bool:
    """Whether this can only be shards: an address, a tar, a pattern of tars, `shards.json` or a folder with it."""
    text, path = str(source), Path(source)
    if address_of(text) is not None:
        return True
    if os.path.isdir(path):
        return os.path.isfile(path / MANIFEST)
    if os.path.isfile(path):
        return path.suffix.lower() == ".tar" or path.name == MANIFEST
    return path.suffix.lower() == ".tar" and bool(re.search(r"[{*?\[]", text))


def holds_tars(folder: Path) -> bool:
    """Whether tars lie in a folder, which may be shards if nothing else is there."""
    return next((path for path in folder.iterdir() if path.suffix.lower() == ".tar"), None) is not None


def open_shards(
    source: Path | str, reading: ShardReading = PLAIN_READING, *, progress: bool = True
) -> OpenShards:
    """Find shards and what is in them; no photo is read.

    Args:
        source: a folder of tars, one tar, a pattern ({000..009} or *), or a manifest; each a path or an address.

    Raises:
        UserError: nothing there, a shard that is damaged or not what its index says, two photos of one name.
    """
    cache = reading.cache or cache_folder()
    address = address_of(source)
    name = address or str(source)
    manifest: dict[str, Any] = {}
    home = _manifest_place(source)
    if home is not None:
        manifest = _read_manifest(home)
        base = home.rpartition("/")[0]
        rows = manifest["shards"]
        shards = [
            Shard(
                place=f"{base}/{row['file']}" if base else row["file"],
                length=row["bytes"],
                sha256=row["sha256"],
                cache=cache,
                cache_size=reading.cache_size,
            )
            for row in rows
        ]
    else:
        shards = [Shard(place=p, cache=cache, cache_size=reading.cache_size) for p in _places(source)]
    if not shards:
        raise UserError(f"{name}: no shard; expected one or more .tar files")
    with ThreadPoolExecutor(max_workers=8 if address else 1) as pool:
        found = pool.map(lambda shard: _index_of(shard, reading, listed=bool(manifest)), shards)
        bar = tqdm(
            found, total=len(shards), desc="shards", unit=" shards", disable=not progress or len(shards) < 20
        )
        indexes = tuple(bar)
    names, more = _unique_names(shards, indexes)
    counts = Counter(note for index in indexes for note in index.notes)
    notes = [*more, *(f"{note} ({count} shards so)" if count > 1 else note for note, count in counts.items())]
    return OpenShards(
        name=name, shards=tuple(shards), indexes=indexes, manifest=manifest, names=names, notes=tuple(notes)
    )


def read_shards(
    source: Path | str, reading: ShardReading = PLAIN_READING, *, need_tags: bool = True
) -> Labels:
    """Photos in shards with the tags of their JSON, as every reader gives them; no photo is read.

    Args:
        need_tags: whether it is a mistake that no photo has tags.

    Raises:
        UserError: as `open_shards`; no tags under the key.
    """
    found = open_shards(source, reading)
    packed, rows = {}, []
    for name, photo, sample in found.samples():
        packed[name] = photo
        rows.append(
            Labelled(
                image=name,
                where=f"{photo.shard.place}: {sample.key}.json",
                present=sample.present or (),
                absent=sample.absent,
                unknown=sample.unknown,
                split=sample.split,
                seen=sample.present is not None,
            )
        )
    if not packed:
        raise UserError(f"{found.name}: no photo in {len(found.shards):,} shards")
    if need_tags and not any(row.seen for row in rows):
        keys = next((index.keys for index in found.indexes if index.keys), ())
        has = f"the keys are {', '.join(keys[:12])}" if keys else "there is no JSON beside the photos"
        raise UserError(
            f"{found.name}: no tags under the key {reading.tags_key!r}; {has}. Name the key with --tags-key, or give a "
            "file of tags with --tags"
        )
    classes = tuple(found.manifest.get("classes", ()))
    return Labels(
        file=Path(found.name),
        photos=PhotoFiles(_some_folder(), packed),
        rows=rows,
        classes=tuple(name for name in classes if name != "background"),
        tags_from=found.manifest.get("tags_from", "shards"),
        notes=(*found.manifest.get("notes", ()), *found.notes),
        packed=packed,
    )


def own_classes(labels: Labels, source: Path | str) -> tuple[tuple[str, ...] | None, bool | None]:
    """The classes in the order that `milseg shard` kept, and whether there is a background; None for others' shards."""
    home = _manifest_place(source)
    if home is None or not labels.classes:
        return None, None
    return labels.classes, "background" in _read_manifest(home)["classes"]


def _some_folder() -> Path:
    """Photos in shards are below no folder; any that is there will do, as no file in it is asked for."""
    return Path(tempfile.gettempdir())


def _manifest_place(source: Path | str) -> str | None:
    """Where the manifest is, as a path or an address; None where there is none."""
    address = address_of(source)
    if address is not None:
        return address if address.endswith(".json") else None
    path = Path(source)
    if os.path.isfile(path / MANIFEST):
        return str(path / MANIFEST)
    return str(path) if os.path.isfile(path) and path.suffix == ".json" else None


def _read_manifest(place: str) -> dict[str, Any]:
    if address_of(place) is None:
        check_size(Path(place), MAX_MANIFEST, "manifest of shards")
        record = read_json(Path(place), "manifest of shards")
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / MANIFEST
            download(place, file, most=MAX_MANIFEST)
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{place}: not UTF-8; expected a manifest of shards") from None
        record = parse_json(text, place)
    try:
        if record["milseg_shards"] != 1:
            raise UserError(f"{place}: a manifest of version {shown(record['milseg_shards'])}; expected 1")
        _check_rows(record["shards"])
        texts = [*record["classes"], *record["notes"], record["tags_from"]]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("classes or notes that are no texts")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{place}: no manifest of shards ({repr(error)[:200]}); expected what milseg shard writes"
        ) from None
    return dict(record)


def _check_rows(rows: Any) -> None:
    """Check what a manifest says of each shard.

    Raises:
        ValueError: a name that is no file's beside it, a size or a hash that is none, or far too many.
    """
    if not isinstance(rows, list) or len(rows) > MOST_SHARDS:
        raise ValueError(f"its shards are {shown(rows)}, expected a list of at most {MOST_SHARDS:,}")
    for row in rows:
        name, length, digest = row["file"], row["bytes"], row["sha256"]
        if not (isinstance(name, str) and name.endswith(".tar") and is_plain_text(name) and len(name) <= 255):
            raise ValueError(f"a shard called {shown(name)}")
        if "/" in name or "\\" in name:
            raise ValueError(f"a shard called {shown(name)}")
        if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length <= MOST_BYTES:
            raise ValueError(f"{name} of {shown(length)} bytes")
        if not (isinstance(digest, str) and re.fullmatch(r"[0-9a-f]{64}", digest)):
            raise ValueError(f"{name} with the SHA-256 {shown(digest)}")


def _places(source: Path | str) -> list[str]:
    """The tars that are meant, by path or address, in order.

    Raises:
        UserError: nothing is there.
    """
    address = address_of(source)
    if address is None and os.path.isdir(source):
        return sorted(str(path) for path in Path(source).iterdir() if path.suffix.lower() == ".tar")
    places: list[str] = []
    for text in expand_braces(address or str(source)):
        if not re.search(r"[*?\[]", text) or (address is None and os.path.isfile(text)):
            places.append(text)
        elif address is None:
            places += sorted(glob.glob(text, recursive=True))
        else:
            system, path = file_system(text)
            try:
                places += sorted(system.unstrip_protocol(found) for found in system.glob(path))
            except Exception as error:  # each store's library has its own errors
                reason = " ".join(str(error).split())[:300]
                raise UserError(f"{text}: cannot be listed ({type(error).__name__}: {reason})") from None
    missing = [] if address else [place for place in places if not os.path.isfile(place)]
    if missing or not places:
        raise UserError(
            f"{str(missing[0] if missing else source)[:500]}: no such shard; expected a .tar file"
        )
    return list(dict.fromkeys(places))


def expand_braces(text: str) -> list[str]:
    """Names that a pattern stands for, as a shell expands braces.

    >>> expand_braces("a-{08..10}.tar"), expand_braces("{x,y}{1..2}")
    (['a-08.tar', 'a-09.tar', 'a-10.tar'], ['x1', 'x2', 'y1', 'y2'])
    """
    pieces = re.split(r"\{([^{}]*)\}", text)
    choices = [_choices(piece, text) if number % 2 else [piece] for number, piece in enumerate(pieces)]
    if math.prod(map(len, choices)) > MOST_SHARDS:
        raise UserError(f"{text[:200]}: stands for more than {MOST_SHARDS:,} shards; name fewer at a time")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(inner: str, text: str) -> Sequence[str]:
    """What may stand in the place of braces: a range of numbers, or texts between commas."""
    numbers = re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", inner)
    if numbers is None:
        if ".." in inner and re.fullmatch(r"[\d.]+", inner):
            raise UserError(
                f"{text[:200]}: {{{inner[:40]}}} is no range of shards; expected such as {{000..009}}"
            )
        return inner.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    if not first <= last < first + MOST_SHARDS:
        raise UserError(
            f"{text[:200]}: {{{inner}}} is no range of shards, or of more than {MOST_SHARDS:,}; expected such as "
            "{000000..000009}"
        )
    return [f"{n:0{len(numbers[1])}}" for n in range(first, last + 1)]


def index_name(tar: str) -> str:
    """The name of the index beside a shard."""
    return tar.removesuffix(".tar") + ".index.json"


def _index_of(shard: Shard, reading: ShardReading, *, listed: bool) -> ShardIndex:
    """The index that `milseg shard` wrote beside a shard, else the one remembered, else made now."""
    if listed:
        index = _written_index(shard, reading)
        if index is not None:
            return index
    path = shard.local()
    stat = path.stat()
    known = f"{path.absolute()} {stat.st_size} {stat.st_mtime_ns} {reading.tags_key}"
    kept = shard.cache / "indexes" / f"{hashlib.sha256(known.encode()).hexdigest()[:32]}.json"
    if kept.is_file():
        with suppress(UserError):
            return read_index(kept)[0]
    index = scan_shard(path, tags_key=reading.tags_key, where=shard.place)
    with suppress(OSError, UserError):  # a cache that cannot be written costs time only
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, index_text(index_record(index)))
    return index


def _written_index(shard: Shard, reading: ShardReading) -> ShardIndex | None:
    place = index_name(shard.place)
    if address_of(place) is None:
        path = Path(place)
        if not Path(shard.place).is_file():
            raise UserError(f"{shard.place}: no such shard, which {MANIFEST} lists")
        length = Path(shard.place).stat().st_size
        if length != shard.length:
            raise UserError(
                f"{shard.place}: {length:,} bytes; expected {shard.length:,} by {MANIFEST}. Cut short, or changed "
                "since: copy or make it again"
            )
    else:
        path = kept_file(place, shard.cache, shard.sha256)
        fetch(place, path, most=MAX_INDEX)
    check_size(path, MAX_INDEX, "index of a shard")
    index, record = read_index(path)
    if record.get("sha256") != shard.sha256 or index.length != shard.length:
        raise UserError(f"{place}: the index of another shard than {MANIFEST} lists; make the shards again")
    return index if index.tags_key == reading.tags_key else None


def _unique_names(
    shards: Sequence[Shard], indexes: Sequence[ShardIndex]
) -> tuple[tuple[tuple[str, ...], ...], list[str]]:
    """Names of the photos: their keys, with the shard's name before them where keys come again in every shard."""
    names = [tuple(sample.name for sample in index.samples) for index in indexes]
    every = [name for here in names for name in here]
    if len(set(every)) == len(every):
        return tuple(names), []
    stems = [shard.stem for shard in shards]
    again = next(name for name, count in Counter(every).items() if count > 1)
    if len(set(stems)) < len(stems):
        raise UserError(f"two shards called {stems[0]!r} hold a photo {again!r}; rename one of the shards")
    names = [tuple(f"{stem}/{name}" for name in here) for stem, here in zip(stems, names, strict=True)]
    return tuple(names), [f"the key {again!r} is in several shards: photos are called after their shard too"]


def in_shard_order(labels: Labels, rows: Labels) -> Labels:
    """Rows of a file of tags for photos in shards, as they lie in the shards."""
    place = {name: number for number, name in enumerate(labels.packed)}
    last = len(place)
    at = {row.image: place.get(labels.photos.find(row.image, row.where) or "", last) for row in rows.rows}
    return replace(
        rows,
        rows=sorted(rows.rows, key=lambda row: at[row.image]),
        packed=labels.packed,
        notes=(*labels.notes, *rows.notes),
    )
