"""Which photo a written name means: one resolver for every file that names photos. Names in, a name out.

A name is written as people and tools write it: composed or decomposed Unicode, with an upload's prefix or
suffix, absolute, from Windows, percent-encoded, as an address with a query, without its extension. It is only
ever looked up among the photos that were listed, so nothing that is written can lead to another file.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import unquote, unquote_plus

PHOTO_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"),
    *(".heic", ".heif", ".jp2", ".ppm", ".pgm", ".tga"),
)
# Folders that usually hold the photos themselves, whatever is in them.
PLAIN_FOLDERS = ("images", "JPEGImages", "photos", "img", "imgs")
# Label Studio puts eight hexadecimal digits before the name of an upload; Django seven letters after a name taken.
UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")
UPLOAD_SUFFIX = re.compile(r"(?<=.)_(?=[A-Za-z0-9]*[A-Z0-9])(?=[A-Za-z0-9]*[A-Za-z])[A-Za-z0-9]{7}$")
# Control characters, and halves of surrogate pairs, which no file name or output in UTF-8 can hold.
CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+://")
LOCAL_FILES = re.compile(r"(?:^|/)data/local-files/*\?(?:.*?&)?d=")
UPLOADS = re.compile(r"(?:^|/)data/upload/(?:\d+/)?")
DRIVE = re.compile(r"[A-Za-z]:")
# Without any of these a name can be read in one way only.
SPECIAL = re.compile(r"[\\%?#+:]|data/upload/")


def without_suffix(name: str) -> str:
    """A path without a photo's extension; other endings stay.

    >>> without_suffix("a/b.c.JPG"), without_suffix("a/site.12")
    ('a/b.c', 'a/site.12')
    """
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in PHOTO_SUFFIXES else name


def is_plain_text(name: str) -> bool:
    """Whether a name is fit for file names and messages: no control characters, nothing outside Unicode."""
    return not CONTROL.search(name)


def names_a_file(written: str) -> bool:
    """Whether a written text can be the name of a photo at all."""
    text = written.strip()
    if not is_plain_text(text):
        return False
    return bool(spellings(text)) if "/" in text or SPECIAL.search(text) else text not in ("", ".", "..")


def spellings(written: str) -> tuple[tuple[str, ...], ...]:
    """The paths that a written name can stand for, likeliest first, each as its parts.

    >>> ["/".join(parts) for parts in spellings("/data/local-files/?d=pets%2Fa%20b.jpg")][0]
    'pets/a b.jpg'
    >>> ["/".join(parts) for parts in spellings(r"C:\\photos\\a.jpg")]
    ['C:\\\\photos\\\\a.jpg', 'photos/a.jpg']
    """
    plain = written.strip()
    texts = _texts(plain) if SPECIAL.search(plain) else (plain,)
    found = (tuple(_parts(text)) for text in texts)
    return tuple(dict.fromkeys(parts for parts in found if parts))


def _texts(written: str) -> Iterator[str]:
    text = written.replace("\\", "/")
    encoded = LOCAL_FILES.search(text)
    if encoded is not None:
        bases = [text[encoded.end() :], text[encoded.end() :].partition("&")[0]]
    elif (address := ADDRESS.match(text)) is not None:
        path = text[address.end() :].partition("/")[2]
        upload = UPLOADS.search(path)
        path = path if upload is None else path[upload.end() :]
        bases = [_cut(path), path]
    elif (upload := UPLOADS.search(text)) is not None:
        path = text[upload.end() :]
        bases = [path, _cut(path)]
    else:
        # A plain name may hold what would be a query or an escape in an address.
        yield from (written, text, _cut(text), unquote(text), unquote(_cut(text)), unquote_plus(text))
        return
    for decode in (unquote, unquote_plus, str):
        for base in bases:
            yield decode(base).replace("\\", "/")


def _cut(path: str) -> str:
    """A path without a query and a fragment."""
    return re.split(r"[?#]", path, maxsplit=1)[0]


def _parts(text: str) -> list[str]:
    """The parts of a path; what lies before a step upwards or a drive says nothing of where the photo is."""
    if "/" not in text:
        return [text] if text not in ("", ".", "..") else []
    if text.endswith("/"):
        return []
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        parts = parts[len(parts) - parts[::-1].index("..") :]
    return parts[1:] if parts and DRIVE.fullmatch(parts[0]) else parts


def leads_out(written: str) -> bool:
    """Whether a name is absolute or goes upwards, as it is written."""
    text = written.strip().replace("\\", "/")
    return text.startswith("/") or bool(DRIVE.match(text)) or ".." in unquote(text).split("/")


def composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _stripped(last: str) -> str:
    """A file name without what an upload put around it."""
    if "-" not in last and "_" not in last:
        return last
    stem, suffix = os.path.splitext(last)
    return UPLOAD_SUFFIX.sub("", UPLOAD_PREFIX.sub("", stem)) + suffix


def _bare(last: str) -> str:
    return without_suffix(composed(last))


Keys = Callable[[str], Iterable[str]]


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """One way in which a written file name and a photo's may agree.

    Attributes:
        differs: in what they differ then, for notes; "" where that is worth no note.
        photo, written: the keys under which each is looked up; they agree where they share one.
        fold: how folders are compared.
    """

    differs: str
    photo: Keys
    written: Keys
    fold: Callable[[str], str] = composed


def _uploaded(last: str) -> tuple[str, ...]:
    plain = composed(last)
    return (plain, _stripped(plain), without_suffix(plain), without_suffix(_stripped(plain)))


def _any_case(last: str) -> tuple[str, ...]:
    return tuple(key.casefold() for key in _uploaded(last)[:2])


def _any_suffix(last: str) -> tuple[str, ...]:
    return (without_suffix(_stripped(composed(last))).casefold(), _bare(last).casefold())


def _loosest(last: str) -> tuple[str, ...]:
    full = composed(last)
    plain = _stripped(full)
    keys = (full.casefold(), without_suffix(full).casefold())
    return keys if plain is full else (*keys, plain.casefold(), without_suffix(plain).casefold())


def _folded(text: str) -> str:
    return composed(text).casefold()


# From the closest on.
LIKENESSES = (
    Likeness(differs="", photo=lambda last: (last,), written=lambda last: (last,), fold=str),
    Likeness(differs="", photo=lambda last: (composed(last),), written=lambda last: (composed(last),)),
    Likeness(differs="", photo=lambda last: (_bare(last),), written=lambda last: (composed(last),)),
    Likeness(differs="an upload's prefix or suffix", photo=_uploaded, written=lambda n: _uploaded(n)[:2]),
    Likeness(differs="upper and lower case", photo=_any_case, written=_any_case, fold=_folded),
    Likeness(
        differs="upper and lower case",
        photo=lambda last: (_bare(last).casefold(),),
        written=lambda last: (composed(last).casefold(),),
        fold=_folded,
    ),
    Likeness(differs="the extension", photo=_any_suffix, written=_any_suffix, fold=_folded),
)
EXACT = 2  # up to here, two photos that a name may mean are the writer's mistake


@dataclass(frozen=True, kw_only=True)
class Match:
    """The photo that a name means.

    Attributes:
        name: of the photo, as it was listed.
        likeness: a place in `LIKENESSES`.
        parts: the name as it was understood.
        by_name: whether the folders disagree, so that the file name alone decided.
    """

    name: str
    likeness: int
    parts: tuple[str, ...]
    by_name: bool

    @property
    def rank(self) -> tuple[bool, int]:
        """Lower is closer."""
        return self.by_name, self.likeness

    @property
    def differs(self) -> str:
        """In what the name and the photo's differ, where that is worth a note."""
        return LIKENESSES[self.likeness].differs or ("the folder" if self.by_name else "")


@dataclass(frozen=True, kw_only=True)
class Ambiguous:
    """Several photos that a name may mean, equally well; `likeness` as in `Match`."""

    names: tuple[str, ...]
    likeness: int


class NameIndex:
    """Photos' paths, to be found by any name that people or tools give them.

    Args:
        names: the paths, relative, with forward slashes.
        roots: absolute paths of the folder they are below, as parts; absolute names are taken from there.
    """

    def __init__(self, names: Iterable[str], roots: Sequence[tuple[str, ...]] = ()) -> None:
        self.names = tuple(names)
        self.roots = tuple(roots)
        self._tables: dict[int, dict[str, list[str]]] = {}

    @cached_property
    def _all(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def _loosest(self) -> frozenset[str]:
        """Keys of which a name has one at least, if it means any photo: most names that mean none end here."""
        return frozenset(key for name in self.names for key in _loosest(name.rpartition("/")[2]))

    @cached_property
    def _folders(self) -> frozenset[str]:
        """The names of the folders that photos lie in."""
        return frozenset(name.split("/")[-2] for name in self.names if "/" in name)

    def _table(self, number: int) -> dict[str, list[str]]:
        if number not in self._tables:
            table: dict[str, list[str]] = {}
            for name in self.names:
                for key in dict.fromkeys(LIKENESSES[number].photo(name.rpartition("/")[2])):
                    table.setdefault(key, []).append(name)
            self._tables[number] = table
        return self._tables[number]

    def find(self, written: str) -> Match | Ambiguous | None:
        """The photo that a written name means; None where there is none.

        The closest likeness decides, and in it the path: the whole path, the path below a plain folder
        (`PLAIN_FOLDERS`), the longest common end, and else the file name, where only one photo has it and the
        photos know no folder of that name.
        """
        if written in self._all:
            return Match(name=written, likeness=0, parts=tuple(written.split("/")), by_name=False)
        paths = [parts for parts in spellings(written) if not self._loosest.isdisjoint(_loosest(parts[-1]))]
        if not paths:
            return None
        unsure = None
        for number, likeness in enumerate(LIKENESSES):
            table = self._table(number)
            for parts in paths:
                keys = dict.fromkeys(likeness.written(parts[-1]))
                names = dict.fromkeys(name for key in keys for name in table.get(key, ()))
                found = self._by_folder(parts, list(names), number) if names else None
                if isinstance(found, Match):
                    return found
                if found is not None and number <= EXACT:
                    return found
                unsure = unsure or found
        return unsure

    def _by_folder(self, parts: tuple[str, ...], names: list[str], number: int) -> Match | Ambiguous | None:
        """The photo whose folders agree best with those that are written."""
        fold = LIKENESSES[number].fold
        strict, inside = self._inside(parts)
        folders = tuple(map(fold, inside[:-1]))
        there = {name: tuple(map(fold, name.split("/")[:-1])) for name in names}
        same = [name for name in names if there[name] == folders]
        plain = [name for folder in PLAIN_FOLDERS for name in names if there[name] == (folder, *folders)]
        for chosen in (same, plain[:1]):
            if len(chosen) == 1:
                return Match(name=chosen[0], likeness=number, parts=parts, by_name=False)
            if chosen:
                return Ambiguous(names=tuple(chosen), likeness=number)
        if strict:
            return None
        depth = {name: _common_end(there[name], folders) for name in names}
        best = [name for name in names if depth[name] == max(depth.values())]
        whole = [name for name in best if depth[name] in (len(there[name]), len(folders))]
        # Of photos at equal depth, one that the written path holds whole.
        held = [name for name in whole if depth[name] == len(there[name])]
        for chosen, by_name in ((held, False), (whole, False), (best, True)):
            if by_name and inside[-2:-1] and inside[-2] in self._folders:
                return None
            if len(chosen) == 1:
                return Match(name=chosen[0], likeness=number, parts=parts, by_name=by_name)
            if chosen:
                return Ambiguous(names=tuple(chosen), likeness=number)
        return None

    def _inside(self, parts: tuple[str, ...]) -> tuple[bool, tuple[str, ...]]:
        """Whether a path is absolute and below the photos' folder, and what is then left of it."""
        for root in self.roots:
            if len(parts) > len(root) > 0 and parts[: len(root)] == root:
                return True, parts[len(root) :]
        return False, parts

    @cached_property
    def _alike(self) -> dict[str, str]:
        return {_loose(name): name for name in reversed(self.names)}

    def why_not(self, written: str) -> str:
        """Why a name means no photo, where some photo looks like it; "" where none does."""
        found = self.find(written)
        if isinstance(found, Ambiguous):
            what = "their Unicode forms" if found.likeness < EXACT else LIKENESSES[found.likeness].differs
            return f"it may be {found.names[0]} or {found.names[1]}, which it matches but for {what}"
        for parts in spellings(written):
            alike = self._alike.get(_loose("/".join(parts)))
            if alike is not None and found is None:
                return f"there is {alike}, which differs in {_difference(parts[-1], alike)}"
        if found is None and leads_out(written):
            return "it leads out of the photos' folder, in which no photo has that name"
        return ""


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if a != b:
            break
        count += 1
    return count


def _letters(text: str) -> str:
    """Without accents and in lower case."""
    marks = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in marks if not unicodedata.combining(letter)).casefold()


def _loose(path: str) -> str:
    """A file name's letters and digits alone, without accents, leading zeros and the extension."""
    last = _letters(without_suffix(_stripped(path.rpartition("/")[2])))
    kept = re.sub(r"[^\w]|_", "", last)
    return re.sub(r"(?<!\d)0+(?=\d)", "", kept) or last


def _difference(last: str, alike: str) -> str:
    other = alike.rpartition("/")[2]
    one, two = without_suffix(_stripped(composed(last))), without_suffix(_stripped(composed(other)))
    if one.casefold() == two.casefold():
        return "the folder"
    if _letters(one) == _letters(two):
        return "accents or other marks on letters"
    if re.sub(r"(?<!\d)0+(?=\d)", "", one) == re.sub(r"(?<!\d)0+(?=\d)", "", two):
        return "leading zeros (spreadsheets drop them)"
    return "blanks or signs"
