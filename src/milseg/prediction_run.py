"""`milseg predict`: photos in, masks into the files that annotation tools open."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from milseg.annotations import open_writer, writer_class
from milseg.annotations.earlier import read_header, remove_earlier
from milseg.annotations.writer import Ledger, Prediction, Writer, check_photos
from milseg.errors import UserError
from milseg.files import claim_folder, write_json, write_text
from milseg.hub import local_folder
from milseg.options import PredictOptions, overridden
from milseg.segmenter import Segmentation, Segmenter, load
from milseg.sources.known_tags import KnownTags, read_known_tags
from milseg.sources.photo_files import walk, without_suffix
from milseg.sources.tag_file import PHOTO_SUFFIXES

COLUMNS = ("photo", "mask", "confidence", "tags", "tag_confidence", "areas", "tags_given")
LEDGER = "predictions.jsonl"
RUN_FILES = ("predictions.csv", "failed.csv", "labels.json")
SHOWN = 10
# What `atomic_path` calls a file that is not whole yet.
LEFTOVER = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp(\..+)?")


@dataclass(frozen=True)
class PhotoFile:
    """A photo to segment: the file, and its path below the folder it was found in."""

    path: Path
    below: str

    @property
    def name(self) -> str:
        return without_suffix(self.below)


def find_photos(inputs: Iterable[str]) -> list[PhotoFile]:
    """The photos of files, folders (with all below them) and patterns, each once, in order.

    Raises:
        UserError: an input that is not there, matches nothing, or holds no photo; two photos with one path.
    """
    found: dict[str, PhotoFile] = {}
    for given in inputs:
        for photo in _photos_of(given):
            found.setdefault(os.path.abspath(photo.path), photo)
    places: dict[str, PhotoFile] = {}
    for photo in found.values():
        other = places.setdefault(photo.below, photo)
        if other is not photo:
            raise UserError(
                f"{other.path} and {photo.path}: both would be written as {photo.name!r}; give the folder above them, "
                "or predict them into different folders"
            )
    return list(found.values())


def _photos_of(given: str) -> list[PhotoFile]:
    path = Path(given)
    if path.is_dir():
        # Hidden files are left out: other programs' leftovers (macOS writes ._a.jpg beside a.jpg).
        names = sorted(walk(path, PHOTO_SUFFIXES))
        if not names:
            raise UserError(
                f"{given}: no photo in this folder; expected files ending in {', '.join(PHOTO_SUFFIXES)}"
            )
        return [PhotoFile(path / name, name) for name in names]
    if path.is_file():
        return [PhotoFile(path, path.name)]
    matches = sorted(Path(match) for match in glob.glob(given, recursive=True))
    files = [file for file in matches if file.suffix.lower() in PHOTO_SUFFIXES and file.is_file()]
    if not files:
        raise UserError(f"{given}: no such photo or folder, and no photo matches it as a pattern")
    base = Path(*_until_wildcard(path))
    return [PhotoFile(file, file.relative_to(base).as_posix()) for file in files]


def _until_wildcard(path: Path) -> list[str]:
    parts: list[str] = []
    for part in path.parts:
        if any(letter in part for letter in "*?["):
            break
        parts.append(part)
    return parts


def parse_adjust(text: str | None) -> dict[str, float]:
    """Class adjustments from `cat=1,dog=-0.5`.

    >>> parse_adjust("cat=1,dog=-0.5")
    {'cat': 1.0, 'dog': -0.5}
    """
    amounts = {}
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        name, equals, amount = part.rpartition("=")
        try:
            amounts[name.strip()] = float(amount)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise UserError(f"--adjust {part!r}: expected CLASS=NUMBER, as in cat=1,dog=-0.5")
    return amounts


def predict_run(options: PredictOptions, *, progress: bool = True) -> dict[str, int]:
    """Segment photos into `options.out`; returns counts: photos, done (now), earlier, failed.

    A photo that cannot be read is named and left out; the others go on. Finished photos are not done again with
    `resume`.

    Raises:
        UserError: no model, no photos, names that collide, a folder that is in use, or not one photo readable.
    """
    photos = find_photos(options.inputs)
    adjust = parse_adjust(options.adjust)
    formats = list(dict.fromkeys(("png", *options.format)))
    kinds = [writer_class(name) for name in formats]
    check_photos([(photo.name, photo.below) for photo in photos], kinds)
    folder = local_folder(options.model)
    segmenter = load(folder, device=options.device)
    inference = overridden(segmenter.inference, refine=options.refine, scales=options.scales)
    segmenter = Segmenter(segmenter.model, segmenter.spec, inference=inference, adjust=adjust)
    given = _known_tags(options, segmenter.classes, photos).allowed
    _claim_folder(options.out, options, photos)
    write_json(options.out / "labels.json", {"classes": list(segmenter.classes)})
    failed: dict[str, str] = {}
    done = 0
    with ExitStack() as stack:
        writers = [
            stack.enter_context(open_writer(name, options.out, segmenter.classes, resume=options.resume))
            for name in formats
        ]
        header = {
            "model": _digest(folder / "model.safetensors"),
            "tags": _tags_record(options),
            "adjust": adjust,
            "refine": options.refine,
            "scales": list(options.scales) if options.scales else None,
        }
        rows = Ledger(options.out / ".parts" / LEDGER, header, resume=options.resume)
        stack.enter_context(closing(rows))
        todo = [photo for photo in photos if not _finished(photo, writers, rows)]
        for photo in tqdm(todo, desc="predict", unit="photo", disable=not progress):
            try:
                found = segmenter.segment(
                    photo.path, tags=given.get(photo.name), max_pixels=options.max_pixels
                )
            except UserError as error:
                failed[photo.below] = str(error)
                continue
            record = _prediction(photo, found)
            for writer in writers:
                writer.add(record)
            if photo.name not in rows.names:
                rows.append(photo.name, photo.below, _row(photo, found))
            done += 1
    counts = {"photos": len(photos), "done": done, "earlier": len(photos) - len(todo), "failed": len(failed)}
    _write_table(options.out / "predictions.csv", rows)
    _write_failed(options.out / "failed.csv", failed)
    if failed and not done and not counts["earlier"]:
        raise UserError(
            f"none of {len(photos)} photos could be read; the first: {next(iter(failed.values()))}"
        )
    _tell_failed(failed)
    return counts


def _known_tags(options: PredictOptions, classes: Sequence[str], photos: Sequence[PhotoFile]) -> KnownTags:
    if options.tags is None:
        return KnownTags(allowed={})
    first = Path(options.inputs[0])
    known = read_known_tags(
        options.tags,
        classes,
        [photo.below for photo in photos],
        root=first if first.is_dir() else photos[0].path.parent,
        tags_are=options.tags_are,
        ignore_unknown=options.ignore_unknown_tags,
    )
    for note in known.notes:
        print(f"milseg: {note}", file=sys.stderr)
    free = len(photos) - len(known.allowed)
    if free:
        print(
            f"milseg: {free} photos have no row in {options.tags}, or one that says nothing, and are predicted freely",
            file=sys.stderr,
        )
    return known


def _tags_record(options: PredictOptions) -> str | list[str] | None:
    """What a run that is resumed must agree on."""
    if options.tags is None:
        return None
    digest = _digest(options.tags)
    return digest if options.tags_are == "complete" else [digest, options.tags_are]


def _claim_folder(out: Path, options: PredictOptions, photos: Iterable[PhotoFile]) -> None:
    claim_folder(out, resume=options.resume, overwrite=options.overwrite)
    if options.overwrite and not options.resume:
        _remove_earlier(out, keep={photo.path.resolve() for photo in photos})
    # A run that was killed may have left halves of files.
    for folder, _, names in os.walk(out):
        for name in filter(LEFTOVER.fullmatch, names):
            Path(folder, name).unlink(missing_ok=True)


def _remove_earlier(out: Path, *, keep: Collection[Path]) -> None:
    """Remove what an earlier run wrote: masks of other photos would be taken for this run's."""
    ledger = out / ".parts" / LEDGER
    ours = "model" in (read_header(ledger) or {})
    for name in RUN_FILES if ours else ():
        (out / name).unlink(missing_ok=True)
    remove_earlier(out, keep=keep)
    if ours:
        ledger.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finished(photo: PhotoFile, writers: list[Writer], rows: Ledger) -> bool:
    return photo.name in rows.names and all(photo.name in writer.done for writer in writers)


def _prediction(photo: PhotoFile, found: Segmentation) -> Prediction:
    height, width = found.mask.shape
    return Prediction(
        name=photo.name,
        photo_path=photo.path,
        photo_file=photo.below,
        size=(height, width),
        mask=found.mask,
        tags=found.tags,
        confidence=found.confidence,
        scores=found.scores,
        stride=found.stride,
        offset=found.offset,
        input_size=found.input_size,
        photo=found.photo,
    )


def _row(photo: PhotoFile, found: Segmentation) -> dict[str, Any]:
    return {
        "photo": photo.below,
        "mask": f"masks/{photo.name}.png",
        "confidence": round(found.confidence, 6),
        "tags": ";".join(name for name, _ in found.tags),
        "tag_confidence": ";".join(f"{confidence:.4f}" for _, confidence in found.tags),
        "areas": ";".join(f"{name}={share:.4f}" for name, share in found.areas.items()),
        "tags_given": "yes" if found.tags_given else "no",
    }


def _write_table(path: Path, rows: Ledger) -> None:
    """The photos with the least certain first: what to review first."""
    table = sorted((entry["data"] for entry in rows), key=lambda row: (row["confidence"], row["photo"]))
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_text(path, text.getvalue())


def _write_failed(path: Path, failed: Mapping[str, str]) -> None:
    if not failed:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("photo", "reason"))
    writer.writerows(failed.items())
    write_text(path, text.getvalue())


def _tell_failed(failed: Mapping[str, str]) -> None:
    for message in list(failed.values())[:SHOWN]:
        print(f"milseg: left out: {message}", file=sys.stderr)
    if len(failed) > SHOWN:
        print(f"milseg: ... and {len(failed) - SHOWN} more; failed.csv names them all", file=sys.stderr)
