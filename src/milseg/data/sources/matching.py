"""Rows of any file of tags, and the photos they speak of: each photo gets one row, or none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from milseg.data.sources.cells import clean_tag
from milseg.data.sources.labelled import Labelled, Labels, split_name
from milseg.data.sources.names import Match, composed, without_suffix
from milseg.errors import UserError

Rows = dict[str, Labelled]  # by photo, as `PhotoFiles.names` has it
Claim = tuple[Match, Labelled]


def match_rows(labels: Labels) -> tuple[Rows, list[Labelled], list[str]]:
    """The row of each photo that has one.

    Several rows that name one photo add up. Rows that name different files and could both mean one photo do not: the
    closer name wins, and none where both are as close.

    Returns:
        Rows by photo, in the order of the file; the rows without a photo; notes.

    Raises:
        UserError: a name that several photos have, two names that may equally mean one photo, or rows of one photo
            that contradict each other in their split.
    """
    claims: dict[str, list[Claim]] = {}
    missing: list[Labelled] = []
    for row in labels.rows:
        match = labels.photos.match(row.image, row.where)
        if match is None:
            missing.append(row)
        else:
            claims.setdefault(match.name, []).append((match, row))
    found: Rows = {}
    notes: list[str] = []
    several: list[str] = []
    unlike: dict[str, list[str]] = {}
    for photo, all_claims in claims.items():
        kept, lost = _closest(photo, all_claims)
        missing += lost
        if not kept:
            continue
        differs = kept[0][0].differs
        if differs:
            unlike.setdefault(differs, []).append(f"{kept[0][1].image[:100]} for {photo}")
        if len(kept) > 1:
            several.append(f"{photo} ({kept[0][1].where}; {kept[1][1].where})")
        found[photo] = _added([row for _, row in kept], photo)
    notes += [
        f"{len(names):,} names differ from their photo's in {what}, such as {names[0]}"
        for what, names in unlike.items()
    ]
    if several:
        notes.append(f"{len(several):,} photos have several rows, whose tags add up, such as {several[0]}")
    return found, missing, notes


def missing_note(labels: Labels, missing: Sequence[Labelled]) -> str:
    """What is to be known of rows without a photo: how many, one of them, and why where a photo looks like it."""
    shown, why = missing[0], ""
    for row in missing[:200]:
        why = labels.photos.why_not(row.image)
        if why:
            shown = row
            break
    such = f"{shown.image[:200]} ({shown.where})" + (f": {why}" if why else "")
    return f"{len(missing):,} rows without a photo on disk left out, such as {such}"


def none_found(labels: Labels, missing: Sequence[Labelled]) -> UserError:
    """The message where no row has a photo."""
    total = len(labels.rows)
    what = f"none of its {total:,} photos is" if total else "names no photo, so none is"
    such = ""
    if missing:
        first = missing[0]
        why = labels.photos.why_not(first.image)
        such = f" (the first is {first.image[:200]!r}, {first.where}{f'; {why}' if why else ''})"
    return UserError(
        f"{labels.file}: {what} below {labels.photos.root}{such}, which has {len(labels.photos.names):,} photos; give "
        "the photos' folder as the source, and this file as the tags"
    )


def _closest(photo: str, claims: list[Claim]) -> tuple[list[Claim], list[Labelled]]:
    """The rows that name this very photo, and those that must mean another one."""
    if len({row.image for _, row in claims}) == 1:
        return claims, []
    best = min(claims, key=lambda claim: claim[0].rank)
    kept = [claim for claim in claims if _same_file(best[0], claim[0])]
    rest = [claim for claim in claims if not _same_file(best[0], claim[0])]
    rival = next((claim for claim in rest if claim[0].rank == best[0].rank), None)
    if rival is not None:
        if best[0].likeness > 2:
            return [], [row for _, row in claims]
        raise UserError(
            f"{rival[1].where}: {rival[1].image[:200]!r} may be the photo {photo}, and so may "
            f"{best[1].image[:200]!r} ({best[1].where}); write paths below the photos' folder, or keep one of the two"
        )
    return kept, [row for _, row in rest]


def _same_file(one: Match, other: Match) -> bool:
    """Whether two written paths can be one file: one is the end of the other, but for what `Likeness` forgives."""
    a, b = _plain_parts(one), _plain_parts(other)
    length = min(len(a), len(b))
    return a[len(a) - length :] == b[len(b) - length :]


def _plain_parts(match: Match) -> tuple[str, ...]:
    """A written path without what may differ between two ways to write one name: case, and a missing extension."""
    parts = tuple(composed(part).casefold() for part in match.parts)
    stem = without_suffix(parts[-1])
    return (*parts[:-1], parts[-1] if match.differs == "the extension" else stem)


def _added(rows: list[Labelled], photo: str) -> Labelled:
    """Rows of one photo as one: what any of them says is present is, else what any does not know is unknown.

    Raises:
        UserError: rows in different splits.
    """
    first = rows[0]
    if len(rows) == 1:
        return first
    for row in rows:
        if split_name(row.split) != split_name(first.split):
            raise UserError(
                f"{row.where}: {photo} is in the split {row.split or 'none'!r} here and in {first.split or 'none'!r} "
                f"before ({first.where}); keep it in one"
            )
    looked = [row for row in rows if row.seen]
    present = dict.fromkeys(tag for row in looked for tag in row.present)
    unknown = dict.fromkeys(tag for row in looked for tag in row.unknown if tag not in present)
    absent = dict.fromkeys(
        tag for row in looked for tag in row.absent if tag not in present and tag not in unknown
    )
    return replace(
        first, present=tuple(present), absent=tuple(absent), unknown=tuple(unknown), seen=bool(looked)
    )


def with_clean_tags(row: Labelled) -> Labelled:
    """A row whose tags are spelt as they are compared."""
    present, absent, unknown = (clean_tags(tags) for tags in (row.present, row.absent, row.unknown))
    if (present, absent, unknown) == (row.present, row.absent, row.unknown):
        return row
    return replace(row, present=present, absent=absent, unknown=unknown)


def clean_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags spelt as they are compared, each once."""
    return tuple(dict.fromkeys(map(clean_tag, tags)))
