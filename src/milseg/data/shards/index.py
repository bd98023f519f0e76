"""What is in one shard: its photos, where their bytes lie, and the tags that lie beside them.

The layout is that of webdataset and img2dataset: members of one key, `KEY.jpg` and `KEY.json`, are one sample; the key
ends at the first dot of the file name. Tags are in the JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from milseg.data.shards.tar_index import Member, tar_members
from milseg.data.sources.json_file import parse_json, read_json
from milseg.data.sources.names import PHOTO_SUFFIXES, is_plain_text
from milseg.errors import UserError

MAX_PHOTO = 2**29  # bytes of a photo's file
MAX_JSON = 2**24
VERSION = 1


class Sample(NamedTuple):
    """A photo in a shard.

    Attributes:
        key: as in the tar. suffix: of the photo, with its dot. offset, length: of its bytes in the tar.
        present: its tags; None where nothing is said. absent, unknown, split: as in `Labelled`.
    """

    key: str
    suffix: str
    offset: int
    length: int
    present: tuple[str, ...] | None = None
    absent: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    split: str = ""

    @property
    def name(self) -> str:
        return name_of(self.key)


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """All of a shard that is not photos.

    Attributes:
        length: of the tar.
        samples: in the order of the tar.
        tags_key: the key that tags were looked for under.
        keys: those of the first sample's JSON, for messages.
        notes: what was passed over.
    """

    length: int
    samples: tuple[Sample, ...]
    tags_key: str
    keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def key_of(name: str) -> str:
    """A bag's name as a key: the dots of the file name would end it.

    >>> key_of("v1.0/site.12"), name_of(key_of("v1.0/site.12"))
    ('v1.0/site%2E12', 'v1.0/site.12')
    """
    folder, slash, last = name.rpartition("/")
    return folder.replace("%", "%25") + slash + last.replace("%", "%25").replace(".", "%2E")


def name_of(key: str) -> str:
    """The name that `key_of` made a key of; keys that others chose are mostly names already."""
    folder, slash, last = key.rpartition("/")
    last = re.sub("%2E|%25", lambda found: "." if found[0] == "%2E" else "%", last)
    # Files are called after names: none may become a step upwards.
    return key if last in (".", "..") else folder.replace("%25", "%") + slash + last


def split_member(name: str) -> tuple[str, str]:
    """Key and ending of a member, at the first dot of its file name.

    >>> split_member("a.b/c.seg.PNG")
    ('a.b/c', '.seg.png')
    """
    folder, slash, last = name.rpartition("/")
    stem, dot, ending = last.partition(".")
    return folder + slash + stem, (dot + ending).lower()


def scan_shard(path: Path, *, tags_key: str = "tags", where: str | None = None) -> ShardIndex:
    """Read a shard's headers and its JSON; no photo is read.

    Args:
        tags_key: where the tags are in the JSON: a list, or a text with commas.
        where: what messages call the shard, if not by its path.

    Raises:
        UserError: as `tar_members`; two members of one name; JSON that is none, or tags that are no list of texts; a
            photo or a JSON file far too large.
    """
    where = where or str(path)
    parts: dict[str, dict[str, Member]] = {}
    odd: list[str] = []
    for member in tar_members(path, where):
        if not is_plain_text(member.name):
            odd.append(member.name)
            continue
        key, ending = split_member(member.name)
        if key.rpartition("/")[2] == "" or key.startswith("__MACOSX/"):
            continue  # hidden files: other programs' leftovers
        if ending in parts.setdefault(key, {}):
            raise UserError(f"{where}: two members are called {member.name!r}; make the shard again")
        parts[key][ending] = member
    samples: list[Sample] = []
    keys: tuple[str, ...] = ()
    several = 0
    with path.open("rb") as file:
        for key, members in parts.items():
            photos = [suffix for suffix in PHOTO_SUFFIXES if suffix in members]
            if not photos:
                continue
            several += len(photos) > 1
            photo = members[photos[0]]
            _check_size(photo, MAX_PHOTO, where)
            about: dict[str, Any] = {}
            if ".json" in members:
                _check_size(members[".json"], MAX_JSON, where)
                file.seek(members[".json"].offset)
                about = _about(file.read(members[".json"].length), f"{where}: {members['.json'].name}")
            keys = keys or tuple(about)
            samples.append(_sample(key, photos[0], photo, about, tags_key, where))
    notes = (
        [f"{len(odd):,} members whose names are no plain text left out, such as {odd[0]!a}"] if odd else []
    )
    if several:
        notes.append(
            f"{several:,} samples hold several images; the first of {', '.join(PHOTO_SUFFIXES[:5])} is taken"
        )
    return ShardIndex(
        length=path.stat().st_size, samples=tuple(samples), tags_key=tags_key, keys=keys, notes=tuple(notes)
    )


def _check_size(member: Member, limit: int, where: str) -> None:
    if member.length > limit:
        raise UserError(
            f"{where}: the member {member.name!r} has {member.length:,} bytes, over the limit of {limit:,}; not read"
        )


def _about(data: bytes, where: str) -> dict[str, Any]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8; expected JSON") from None
    about = parse_json(text, where)
    if not isinstance(about, dict):
        raise UserError(f'{where}: expected a JSON object, such as {{"tags": ["cat"]}}')
    return about


def _sample(
    key: str, suffix: str, photo: Member, about: Mapping[str, Any], tags_key: str, where: str
) -> Sample:
    split = about.get("split")
    return Sample(
        key=key,
        suffix=suffix,
        offset=photo.offset,
        length=photo.length,
        present=_tags(about.get(tags_key), f"{where}: {key}.json: {tags_key}"),
        # Others may mean something else by these words: they count where they are lists of texts.
        absent=_texts(about.get("absent")) or (),
        unknown=_texts(about.get("unknown")) or (),
        split=split if isinstance(split, str) else "",
    )


def _tags(value: Any, where: str) -> tuple[str, ...] | None:
    """Tags as a list, or as a text with commas; None where nothing is said."""
    if isinstance(value, str):
        value = value.split(",")
    found = _texts(value)
    if value is not None and found is None:
        raise UserError(f"{where}: is {repr(value)[:60]}; expected a list of texts, or a text with commas")
    return found


def _texts(value: Any) -> tuple[str, ...] | None:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return None
    return tuple(dict.fromkeys(item.strip() for item in value if item.strip()))


def index_record(index: ShardIndex) -> dict[str, Any]:
    """The index as JSON holds it."""
    return {
        "milseg_shard_index": VERSION,
        "bytes": index.length,
        "tags_key": index.tags_key,
        "keys": list(index.keys),
        "notes": list(index.notes),
        "columns": list(Sample._fields),
        "samples": [list(sample) for sample in index.samples],
    }


def index_text(record: Mapping[str, Any]) -> str:
    """JSON with a sample a line, so that a person can look at it."""
    head = {name: value for name, value in record.items() if name != "samples"}
    lines = ",\n".join(json.dumps(sample, ensure_ascii=False) for sample in record["samples"])
    return json.dumps(head, ensure_ascii=False)[:-1] + f', "samples": [\n{lines}\n]}}\n'


def read_index(path: Path) -> tuple[ShardIndex, dict[str, Any]]:
    """An index that was written before, and all that the file says beside it.

    Raises:
        UserError: damaged, or of another version.
    """
    record = read_json(path, "index of a shard")
    try:
        if record["milseg_shard_index"] != VERSION:
            raise UserError(
                f"{path}: an index of version {record['milseg_shard_index']!r}; expected {VERSION}"
            )
        index = ShardIndex(
            length=int(record["bytes"]),
            samples=tuple(_stored_samples(record["samples"], int(record["bytes"]))),
            tags_key=str(record["tags_key"]),
            keys=tuple(map(str, record["keys"])),
            notes=tuple(map(str, record["notes"])),
        )
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise UserError(
            f"{path}: damaged index of a shard ({error!r}); make it again, or remove it"
        ) from None
    return index, record


def _stored_samples(rows: list[Any], length: int) -> Iterator[Sample]:
    for key, suffix, offset, size, present, absent, unknown, split in rows:
        texts = (key, suffix, split, *(present or ()), *absent, *unknown)
        if (
            not all(isinstance(text, str) for text in texts)
            or not is_plain_text(key)
            or ".." in key.split("/")
        ):
            raise ValueError(f"sample {key!r}")
        if key.startswith("/") or suffix not in PHOTO_SUFFIXES:
            raise ValueError(f"sample {key!r}")
        if not (
            isinstance(offset, int) and isinstance(size, int) and offset >= 0 and 0 <= size <= length - offset
        ):
            raise ValueError(f"place of {key!r}")
        yield Sample(
            key,
            suffix,
            offset,
            size,
            None if present is None else tuple(present),
            tuple(absent),
            tuple(unknown),
            split,
        )
