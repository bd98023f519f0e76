"""Tags of a set of PASCAL VOC from a file of tags of any form, read as every other source's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from milseg.data.sources.labelled import Labelled, split_name
from milseg.data.sources.matching import match_rows, with_clean_tags
from milseg.data.sources.names import without_suffix
from milseg.data.sources.photo_files import PhotoFiles
from milseg.data.sources.tags import read_tags
from milseg.errors import UserError, unknown_name


def tags_for(
    photos: Mapping[str, Path],
    path: Path,
    known: Sequence[str],
    *,
    splits: Collection[str] = (),
    ignore_unknown: bool = False,
) -> tuple[dict[str, Labelled], list[str]]:
    """What a file says of the photos of a set, and what is odd about it, one sentence each.

    The photos say what is in the set; a row whose split column says otherwise is only noted.

    Args:
        photos: photo file by id, of the whole set.
        known: the tags there are.
        splits: what the split column may call this set.

    Returns:
        Each photo's row, with known tags alone, for photos that have one, in the order of `photos`; and the notes.

    Raises:
        UserError: as `read_tags` and `match_rows`; a tag that is not known; no row for any photo.
    """
    ids = {path.name: i for i, path in photos.items()}
    labels = read_tags(path, PhotoFiles(next(iter(photos.values())).parent, ids), known)
    matched, missing, notes = match_rows(labels)
    notes = [*labels.notes, *notes]
    if not matched:
        rows = labels.rows
        first = without_suffix(rows[0].image) if rows else ""
        raise UserError(
            f"{path}: has no row for any photo of the set; its images are like {first!r}, the set's like "
            f"{next(iter(photos))!r}"
        )
    by_id = {ids[name]: with_clean_tags(row) for name, row in matched.items()}
    found = {}
    ignored: list[str] = []
    for i in photos:
        if i in by_id:
            found[i], strange = _known_only(by_id[i], known, labels.classes)
            if strange and not ignore_unknown:
                raise UserError(f"{by_id[i].where}: {unknown_name('tag', strange[0], known)}")
            ignored += strange
    notes += _set_notes(path, photos, by_id, missing, [split_name(split) for split in splits])
    if ignored:
        notes.append(f"{len(ignored):,} unknown tags ignored, such as {ignored[0]!r}")
    return found, notes


def _known_only(row: Labelled, known: Collection[str], asked: Collection[str]) -> tuple[Labelled, list[str]]:
    """A row's known tags, and the others; a column of a tag that is not known may say 0 or nothing."""
    strange = [tag for tag in row.present if tag not in known]
    strange += [tag for tag in (*row.absent, *row.unknown) if tag not in known and tag not in asked]
    kept = (tuple(tag for tag in tags if tag in known) for tags in (row.present, row.absent, row.unknown))
    present, absent, unknown = kept
    return (
        Labelled(
            image=row.image,
            where=row.where,
            present=present,
            absent=absent,
            unknown=unknown,
            split=row.split,
            seen=row.seen,
        ),
        strange,
    )


def _set_notes(
    path: Path,
    photos: Mapping[str, Path],
    rows: Mapping[str, Labelled],
    missing: Sequence[Labelled],
    splits: Collection[str],
) -> list[str]:
    """How the file and the set on disk differ."""
    without = [i for i in photos if i not in rows]
    other = [(i, row) for i, row in rows.items() if row.split and split_name(row.split) not in splits]
    strangers = [row for row in missing if row.split and split_name(row.split) in splits]
    notes = []
    if without:
        notes.append(f"{len(without):,} photos without a row in {path.name} left out, such as {without[0]}")
    if other:
        i, row = other[0]
        notes.append(
            f"{len(other):,} photos are in the list on disk but {path.name} puts them in another split, such as {i} "
            f"({row.split!r}, {row.where.removeprefix(f'{path}, ')}); kept"
        )
    if strangers:
        row = strangers[0]
        notes.append(
            f"{len(strangers):,} rows of {path.name} name this split but are not in the list on disk, such as "
            f"{row.image[:200]} ({row.where.removeprefix(f'{path}, ')}); left out"
        )
    return notes
