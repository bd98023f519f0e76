"""`milseg shard`: photos with their tags, packed into tar shards.

Which photos a shard holds depends on the bags and the settings alone, and its bytes on the photos: a run that was
killed goes on behind its last whole shard, and ends with the files it would have written undisturbed.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from milseg.config import ShardOptions
from milseg.data.bags import PRESENT, UNKNOWN, Bag, BagSet
from milseg.data.image import PackedPhoto, fit_size, open_photo, resize_photo
from milseg.data.shards.cache import file_digest
from milseg.data.shards.index import index_record, index_text, key_of, read_index, scan_shard
from milseg.data.shards.read import MANIFEST, index_name
from milseg.data.sources.open import open_source_of
from milseg.errors import UserError
from milseg.utils.files import atomic_path, claim_folder, remove_leftovers, write_json, write_text

QUALITY = 95  # of photos that are made smaller
AHEAD = 16  # photos that are read before they are written
SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A photo as it goes into a shard: its bytes, ending and size, as it is now and as it was."""

    data: bytes
    suffix: str
    size: tuple[int, int]
    original: tuple[int, int]


def shard_run(options: ShardOptions, *, progress: bool = True) -> dict[str, Any]:
    """Write the shards of a source into `options.out`; returns the manifest.

    Raises:
        UserError: anything at fault with the source, the settings or the folder; no photo that can be read.
    """
    claim_folder(options.out, resume=options.resume, overwrite=options.overwrite)
    bags = open_source_of(options)
    _refuse_own_source(bags, options.out)
    plan = _digest_of(bags, options)
    rows = _finished(options.out, plan) if options.resume else []
    _remove_earlier(options.out, keep=len(rows))
    for row in rows:
        _tell(row["left_out"])
    start = rows[-1]["stop"] if rows else 0
    with tqdm(total=len(bags), initial=start, desc="shard", unit=" photos", disable=not progress) as bar:
        for row in _write_shards(bags, options, plan, start, len(rows), bar):
            rows.append(row)
    photos = sum(row["photos"] for row in rows)
    if not photos:
        reasons = [reason for row in rows for reason in row["left_out"].values()]
        raise UserError(f"{bags.name}: none of {len(bags):,} photos could be read; the first: {reasons[0]}")
    manifest = _manifest(bags, rows, photos)
    write_json(options.out / MANIFEST, manifest)
    return manifest


def _refuse_own_source(bags: BagSet, out: Path) -> None:
    """Shards cannot be written over those that they are made of."""
    for group in dict.fromkeys(bag.photo.group for bag in bags.bags if isinstance(bag.photo, PackedPhoto)):
        if Path(group).resolve().parent == out.resolve():
            raise UserError(f"{out}: holds the shards that are the source; choose another folder with --out")


def _digest_of(bags: BagSet, options: ShardOptions) -> str:
    """Of all that decides what goes where: a run is resumed with the same, or not at all."""
    size = options.photos_per_shard or options.shard_bytes
    settings = [bool(options.photos_per_shard), size, options.longest_side, options.max_pixels]
    content = [[bag.name, bag.tags] for bag in bags.bags]
    return hashlib.sha256(json.dumps([settings, bags.classes, content]).encode()).hexdigest()


def _finished(out: Path, plan: str) -> list[dict[str, Any]]:
    """What the indexes of the shards say that an earlier run finished, from the first on without a gap."""
    rows: list[dict[str, Any]] = []
    while True:
        path = out / _shard_name(len(rows))
        index_path = out / index_name(path.name)
        if not (path.is_file() and index_path.is_file()):
            return rows
        row = _row(path.name, read_index(index_path)[1])
        if row["plan"] != plan:
            raise UserError(
                f"{index_path}: the run to resume had other photos, tags or settings; give the same ones, or "
                "start anew with --overwrite"
            )
        if path.stat().st_size != row["bytes"]:
            return rows
        rows.append(row)


def _row(name: str, record: dict[str, Any]) -> dict[str, Any]:
    try:
        row = {key: record[key] for key in ("plan", "stop", "bytes", "sha256", "left_out", "tag_counts")}
    except KeyError as error:
        raise UserError(f"{name}: its index lacks {error}; start anew with --overwrite") from None
    return {"file": name, "photos": len(record["samples"]), **row}


def _remove_earlier(out: Path, *, keep: int) -> None:
    """Remove what this run will write again; files of other names stay."""
    (out / MANIFEST).unlink(missing_ok=True)
    remove_leftovers(out / MANIFEST)
    for path in sorted(out.glob("shard-[0-9]*.tar")):
        number = path.stem.removeprefix("shard-")
        if number.isdigit() and int(number) >= keep:
            (out / index_name(path.name)).unlink(missing_ok=True)
            path.unlink()
    for path in out.glob(".shard-[0-9]*.tmp.*"):
        path.unlink(missing_ok=True)


def _shard_name(number: int) -> str:
    return f"shard-{number:06}.tar"


def _write_shards(
    bags: BagSet, options: ShardOptions, plan: str, start: int, number: int, bar: tqdm[Any]
) -> Iterator[dict[str, Any]]:
    """Write the shards of the bags from `start` on; gives the row of each when it and its index are whole."""
    photos = _packed(bags, options, start)
    waiting = next(photos, None)
    while waiting is not None:
        path = options.out / _shard_name(number)
        left_out: dict[str, str] = {}
        sizes: dict[str, list[int]] = {}
        counts = dict.fromkeys(bags.classes, 0)
        with atomic_path(path) as temporary:
            with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
                stop = waiting[0]
                while waiting is not None:
                    place, bag, found = waiting
                    if isinstance(found, str):
                        left_out[bag.name] = found
                        _tell({bag.name: found})
                    else:
                        about = _about(bags, bag, found)
                        files = {
                            key_of(bag.name) + found.suffix: found.data,
                            key_of(bag.name) + ".json": about,
                        }
                        if sizes and _is_full(options, tar, len(sizes), files):
                            break
                        for name, data in files.items():
                            tar.addfile(_member(name, data), io.BytesIO(data))
                        sizes[key_of(bag.name)] = [*found.size]
                        for name, tag in zip(bags.classes, bag.tags, strict=True):
                            counts[name] += tag == PRESENT
                    stop = place + 1
                    bar.update()
                    waiting = next(photos, None)
            index = scan_shard(temporary, where=str(path))
            digest = file_digest(temporary)
        record = {
            **index_record(index),
            "sha256": digest,
            "plan": plan,
            "stop": stop,
            "left_out": left_out,
            "tag_counts": counts,
            "sizes": sizes,
        }
        write_text(options.out / index_name(path.name), index_text(record))
        yield _row(path.name, record)
        number += 1


def _is_full(options: ShardOptions, tar: tarfile.TarFile, photos: int, files: dict[str, bytes]) -> bool:
    """Whether a photo's files belong into the next shard."""
    if options.photos_per_shard:
        return photos >= options.photos_per_shard
    end = tar.offset + 2 * tarfile.BLOCKSIZE  # two empty blocks end a tar
    for name, data in files.items():
        end += len(_member(name, data).tobuf(tarfile.PAX_FORMAT))
        end += -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return -(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE > options.shard_bytes


def _member(name: str, data: bytes) -> tarfile.TarInfo:
    """The header of a file without owner and time, so that equal photos make equal shards."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o644, 0
    return member


def _about(bags: BagSet, bag: Bag, found: Packed) -> bytes:
    """The JSON beside a photo."""
    tagged = list(zip(bags.classes, bag.tags, strict=True))
    about = {
        "key": key_of(bag.name),
        "name": bag.name,
        "file": bag.name + found.suffix,
        "tags": [name for name, tag in tagged if tag == PRESENT and name != "background"],
        "unknown": [name for name, tag in tagged if tag == UNKNOWN],
        "width": found.size[1],
        "height": found.size[0],
        "original_width": found.original[1],
        "original_height": found.original[0],
    }
    return json.dumps(about, ensure_ascii=False).encode()


def _packed(bags: BagSet, options: ShardOptions, start: int) -> Iterator[tuple[int, Bag, Packed | str]]:
    """The photos in order, some read ahead by threads; in place of one that cannot be read the reason."""

    def read(bag: Bag) -> Packed | str:
        try:
            return pack_photo(bag, longest_side=options.longest_side, max_pixels=options.max_pixels)
        except (UserError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        running: dict[int, Future[Packed | str]] = {}
        for place in range(start, len(bags)):
            for ahead in range(place, min(place + AHEAD, len(bags))):
                if ahead not in running:
                    running[ahead] = pool.submit(read, bags.bags[ahead])
            yield place, bags.bags[place], running.pop(place).result()


def pack_photo(bag: Bag, *, longest_side: int | None, max_pixels: int) -> Packed:
    """A photo's file as it is; one larger than `longest_side` smaller, upright and as JPEG.

    Every photo is decoded once, so that what cannot be read is found now, and not by each that uses the shards.

    Raises:
        UserError: it cannot be read.
    """
    assert isinstance(bag.photo, Path | PackedPhoto)
    photo = open_photo(bag.photo, max_pixels=max_pixels)
    original = (photo.shape[0], photo.shape[1])
    size = fit_size(*original, longest_side)
    if size == original:
        data = bag.photo.read_bytes() if isinstance(bag.photo, Path) else bag.photo.read()
        return Packed(data=data, suffix=bag.photo.suffix.lower(), size=size, original=original)
    stream = io.BytesIO()
    Image.fromarray(resize_photo(photo, size)).save(stream, "JPEG", quality=QUALITY)
    return Packed(data=stream.getvalue(), suffix=".jpg", size=size, original=original)


def _manifest(bags: BagSet, rows: list[dict[str, Any]], photos: int) -> dict[str, Any]:
    counts = {name: sum(row["tag_counts"][name] for row in rows) for name in bags.classes}
    return {
        "milseg_shards": 1,
        "name": bags.name,
        "classes": list(bags.classes),
        "tags_from": bags.tags_from,
        "photos": photos,
        "bytes": sum(row["bytes"] for row in rows),
        "tag_counts": {name: count for name, count in counts.items() if name != "background"},
        "left_out": {name: reason for row in rows for name, reason in row["left_out"].items()},
        "notes": list(bags.notes),
        "shards": [
            {
                **{key: row[key] for key in ("file", "photos", "bytes", "sha256")},
                "index": index_name(row["file"]),
            }
            for row in rows
        ],
    }


def _tell(left_out: dict[str, str]) -> None:
    for name, reason in left_out.items():
        tqdm.write(f"milseg: left out: {name}: {reason}", file=sys.stderr)
