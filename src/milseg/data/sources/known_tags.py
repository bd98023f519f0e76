"""Tags that are known of photos to be predicted, from any file of tags that training reads."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from milseg.data.sources.build import BACKGROUND_NAMES, TAGS_ARE
from milseg.data.sources.labelled import Labelled, Labels
from milseg.data.sources.matching import clean_tags, match_rows, missing_note, with_clean_tags
from milseg.data.sources.names import without_suffix
from milseg.data.sources.photo_files import PhotoFiles
from milseg.data.sources.tags import read_tags
from milseg.errors import UserError, unknown_name


@dataclass(frozen=True, kw_only=True)
class KnownTags:
    """What a file says of some photos.

    Attributes:
        allowed: by photo, named by its path without extension: the classes that it may show besides the background.
            Photos of which nothing is known are not in it.
        present: by photo, the classes that it is said to show; a photo said to show none has an empty tuple.
        notes: what is odd, one sentence each.
    """

    allowed: dict[str, tuple[str, ...]]
    present: dict[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_known_tags(
    path: Path,
    classes: Sequence[str],
    photos: Sequence[str],
    *,
    root: Path,
    tags_are: str = "complete",
    ignore_unknown: bool = False,
) -> KnownTags:
    """Which classes the photos may show, by a table of any form, COCO JSON or a Label Studio export.

    A row is a photo's as in training (see `NameIndex`). What a row says is present or unknown is allowed, and so is a
    class that the file has no column or category for; all else is ruled out, or where tags are partial only what is
    said to be absent.

    Args:
        path: the file.
        classes: the model's, background included.
        photos: their paths below the input folder, with extension; `root` is that folder.
        tags_are: complete or partial.
        ignore_unknown: skip tags that are no class of the model.

    Raises:
        UserError: a file that cannot be read; a tag that is no class of the model; two photos for a row; no row for
            any photo.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> _ = (root / "tags.csv").write_text("image,cat,dog\\na,1,\\nb,0,1\\n")
    >>> read_known_tags(root / "tags.csv", ["background", "cat", "dog"], ["a.jpg", "b.jpg"], root=root).allowed
    {'a': ('cat', 'dog'), 'b': ('dog',)}
    """
    if tags_are not in TAGS_ARE:
        raise unknown_name("value of tags_are", tags_are, TAGS_ARE)
    labels = read_tags(path, PhotoFiles(root, photos), classes)
    asked = clean_tags(labels.classes)
    rows, notes = _rows_of(path, labels)
    for row in labels.rows:
        _check_tags(with_clean_tags(row), asked, classes, ignore_unknown)
    names = [name for name in classes if name != "background"]
    silent = [name for name in names if asked and name not in asked]
    allowed = {
        photo: _allowed(row, names, silent, partial=tags_are == "partial") for photo, row in rows.items()
    }
    present = {
        photo: tuple(name for name in names if name in row.present)
        for photo, row in rows.items()
        if row.present or not allowed[photo]
    }
    if silent and tags_are == "complete":
        notes.append(f"{path}: has nothing on {', '.join(silent)}, which may be in any photo then")
    return KnownTags(
        allowed={photo: here for photo, here in allowed.items() if here is not None},
        present={photo: here for photo, here in present.items() if allowed[photo] is not None},
        notes=tuple(notes),
    )


def _check_tags(
    row: Labelled, asked: Collection[str], classes: Collection[str], ignore_unknown: bool
) -> None:
    """Stop at a tag that is no class; a column or category that the model does not know may say 0 or nothing."""
    known = {*classes, *BACKGROUND_NAMES}
    strange = [tag for tag in row.present if tag not in known and tag.casefold() not in known]
    strange += [tag for tag in (*row.absent, *row.unknown) if tag not in known and tag not in asked]
    if strange and not ignore_unknown:
        raise UserError(
            f"{row.where}: {unknown_name('tag', strange[0], classes)}. --ignore-unknown-tags leaves out "
            "what the model does not know"
        )


def _allowed(
    row: Labelled, names: Sequence[str], silent: Collection[str], *, partial: bool
) -> tuple[str, ...] | None:
    """The classes that may be there; None where the row says nothing."""
    if not row.seen:
        return None
    maybe = set(names).difference(row.absent) if partial else {*row.present, *row.unknown, *silent}
    found = tuple(name for name in names if name in maybe)
    return None if len(found) == len(names) and not row.present else found


def _rows_of(path: Path, labels: Labels) -> tuple[dict[str, Labelled], list[str]]:
    """The row of each photo that has one, and what is odd about the file."""
    found, missing, notes = match_rows(labels)
    if not labels.rows:
        raise UserError(f"{path}: holds no photo with its tags; expected a row for each photo")
    if not found:
        first = labels.rows[0].image
        why = labels.photos.why_not(first)
        raise UserError(
            f"{path}: no row for any of the photos; its rows are like {first[:200]!r}, the photos like "
            f"{labels.photos.names[0]!r}{f' ({why})' if why else ''}"
        )
    alike = [row for row in missing[:200] if labels.photos.why_not(row.image)]
    if alike:
        notes.append(missing_note(labels, missing))
    rows = {without_suffix(photo): with_clean_tags(row) for photo, row in found.items()}
    return rows, [*labels.notes, *notes]
