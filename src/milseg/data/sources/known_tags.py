"""Tags that are known of photos to be predicted, from any file of tags that training reads."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from milseg.data.sources.build import BACKGROUND_NAMES, TAGS_ARE
from milseg.data.sources.labelled import Labelled, Labels
from milseg.data.sources.open import read_tags
from milseg.data.sources.photo_files import PhotoFiles, without_suffix
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

    A row is a photo's when it is the path below the input folder, or one of the two ends like the other; the
    extension may be left out. What a row says is present or unknown is allowed, and so is a class that the file has
    no column or category for; all else is ruled out, or where tags are partial only what is said to be absent.

    Args:
        path: the file.
        classes: the model's, background included.
        photos: their paths below the input folder, with extension; `root` is that folder.
        tags_are: complete or partial.
        ignore_unknown: skip tags that are no class of the model.

    Raises:
        UserError: a file that cannot be read; a tag that is no class of the model; two rows for a photo or two photos
            for a row; no row for any photo.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> _ = (root / "tags.csv").write_text("image,cat,dog\\na,1,\\nb,0,1\\n")
    >>> read_known_tags(root / "tags.csv", ["background", "cat", "dog"], ["a.jpg", "b.jpg"], root=root).allowed
    {'a': ('cat', 'dog'), 'b': ('dog',)}
    """
    if tags_are not in TAGS_ARE:
        raise unknown_name("value of tags_are", tags_are, TAGS_ARE)
    labels = read_tags(path, PhotoFiles(root, photos))
    for row in labels.rows:
        _check_tags(row, labels, classes, ignore_unknown)
    names = [name for name in classes if name != "background"]
    silent = [name for name in names if labels.classes and name not in labels.classes]
    rows = _rows_of(path, labels.rows, photos)
    allowed = {
        photo: _allowed(row, names, silent, partial=tags_are == "partial") for photo, row in rows.items()
    }
    present = {
        photo: tuple(name for name in names if name in row.present)
        for photo, row in rows.items()
        if row.present or not allowed[photo]
    }
    notes = []
    if silent and tags_are == "complete":
        notes.append(f"{path}: has nothing on {', '.join(silent)}, which may be in any photo then")
    return KnownTags(
        allowed={photo: here for photo, here in allowed.items() if here is not None},
        present={photo: here for photo, here in present.items() if allowed[photo] is not None},
        notes=tuple(notes),
    )


def _check_tags(row: Labelled, labels: Labels, classes: Collection[str], ignore_unknown: bool) -> None:
    """Stop at a tag that is no class; a column or category that the model does not know may say 0 or nothing."""
    known = {*classes, *BACKGROUND_NAMES}
    strange = [tag for tag in row.present if tag not in known and tag.casefold() not in known]
    strange += [tag for tag in (*row.absent, *row.unknown) if tag not in known and tag not in labels.classes]
    if strange and not ignore_unknown:
        raise UserError(
            f"{row.where}: {unknown_name('tag', strange[0], classes)}. Ask to ignore unknown tags if the model need "
            "not know them"
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


def _rows_of(path: Path, rows: Sequence[Labelled], photos: Sequence[str]) -> dict[str, Labelled]:
    """The row of each photo that has one, by the photo's path without extension."""
    table: dict[str, list[Labelled]] = {}
    for row in rows:
        table.setdefault(without_suffix(row.image), []).append(row)
    files = {without_suffix(photo): photo for photo in photos}
    by_last: dict[str, list[str]] = {}
    for key in table:
        by_last.setdefault(key.rpartition("/")[2], []).append(key)
    found: dict[str, Labelled] = {}
    taken: dict[str, str] = {}
    for name in sorted(files):
        near = [
            key for key in by_last.get(name.rpartition("/")[2], ()) if key not in files and _ends(key, name)
        ]
        keys = [name] if name in table else near
        if len(keys) > 1:
            raise UserError(f"{path}: rows {keys[0]!r} and {keys[1]!r} may both be photo {name!r}; keep one")
        for key in keys:
            other = taken.setdefault(key, name)
            if other != name:
                raise UserError(
                    f"{path}: row {key!r} may be photo {other!r} or {name!r}; write its path below the input folder"
                )
            found[name] = _only(table[key], files[name])
    if not table:
        raise UserError(f"{path}: holds no photo with its tags; expected a row for each photo")
    if not found:
        raise UserError(
            f"{path}: no row for any of the photos; its rows are like {next(iter(table))!r}, the photos like "
            f"{min(files)!r}"
        )
    return found


def _only(rows: Sequence[Labelled], photo: str) -> Labelled:
    """Of rows that agree but for the extension, the photo's own."""
    own = [
        row for row in rows if f"/{row.image}".endswith(f"/{photo}") or f"/{photo}".endswith(f"/{row.image}")
    ]
    if len(rows) > 1 and len(own) != 1:
        first, second = (own or rows)[:2]
        raise UserError(
            f"{second.where}: {second.image!r} may be the photo {photo!r}, which has a row already ({first.where}); "
            "keep one of the two"
        )
    return (own or rows)[0]


def _ends(one: str, other: str) -> bool:
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")
