"""The tags in a cell of a table, as a person or a program wrote them.

One separator holds for a whole column: a comma, a semicolon, a bar or a line break where any cell has one, so that
`golden retriever` beside `cat, dog` is one tag. In a column without any, blanks separate, unless the cells show that
their words belong together. Lists as programs print them are lists: JSON, Python, NumPy, `{"choices": [...]}`.
"""

from __future__ import annotations

import ast
import csv
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from milseg.errors import UserError

# How programs and people write that a photo has no tag; in quotes inside a list these are tags.
NO_TAG = frozenset(
    (
        "",
        "nan",
        "none",
        "null",
        "nil",
        "n/a",
        "na",
        "#n/a",
        "#na",
        "<na>",
        "nat",
        "-",
        "--",
        "\u2013",
        "\u2014",
    )
)
SEPARATORS = ("|", ";", ",", "\n")  # from the rarest in names on, which wins where two are as frequent
# What spreadsheets show for a formula that failed; a cell typed as -dog becomes the second.
FAILED = re.compile(r"#(NAME|REF|VALUE|DIV/0|NUM|NULL)[?!]")
QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
CALL = re.compile(r"^(?:\w+\.)?[A-Za-z_]\w*\((.*?)(?:,\s*dtype\s*=[^\[\]]*)?\)$", re.DOTALL)
NUMPY_TEXT = re.compile(r"\b(?:np|numpy)\.str_\(('[^']*'|\"[^\"]*\")\)")
BRACKETS = {"[": "]", "{": "}", "(": ")"}
LONGEST_NAME = 3  # words of a tag that only its cells vouch for
# Names of several words that no list of ILSVRC's has; COCO's.
COMMON_NAMES = frozenset(
    (
        *("traffic light", "fire hydrant", "stop sign", "parking meter", "sports ball", "kite board"),
        *("baseball bat", "baseball glove", "tennis racket", "wine glass", "hot dog", "potted plant"),
        *("dining table", "cell phone", "teddy bear", "hair drier", "hair dryer", "tv monitor"),
    )
)
SINGLE_WORDS = frozenset(
    (
        *(
            "person",
            "people",
            "man",
            "woman",
            "child",
            "car",
            "bicycle",
            "bike",
            "motorcycle",
            "airplane",
            "bus",
        ),
        *(
            "train",
            "truck",
            "boat",
            "bench",
            "bird",
            "cat",
            "dog",
            "horse",
            "sheep",
            "cow",
            "elephant",
            "bear",
        ),
        *(
            "zebra",
            "giraffe",
            "chair",
            "couch",
            "sofa",
            "bed",
            "table",
            "tree",
            "grass",
            "sky",
            "road",
            "water",
        ),
        *(
            "building",
            "house",
            "flower",
            "fish",
            "aeroplane",
            "motorbike",
            "bottle",
            "pottedplant",
            "tvmonitor",
        ),
    )
)


def clean_tag(tag: str) -> str:
    """A tag as it is compared: composed Unicode, single blanks, nothing invisible at its ends.

    >>> clean_tag("  cafe\\u0301 \\u00a0au  lait") == "caf\\u00e9 au lait"
    True
    """
    return " ".join(unicodedata.normalize("NFC", tag).replace("\ufeff", "").replace("\u200b", "").split())


@dataclass(frozen=True, kw_only=True)
class Column:
    """How the cells of one column hold their tags.

    Attributes:
        separator: one of `SEPARATORS`, " ", or "" where each cell is one tag.
        also: tags that other separators may come between: pieces that the column has as tags by themselves.
        notes: how the cells were read, where it could be otherwise.
    """

    separator: str
    also: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def tags(self, cell: str, where: str = "the cell") -> tuple[str, ...]:
        """The tags of one cell, each once; marks such as `?dog` stay.

        Raises:
            UserError: a formula, a spreadsheet's error, or an object that holds no labels.
        """
        text = _plain(cell, where)
        listed = listed_tags(text, where)
        if listed is None:
            parts = [piece for part in split_at(text, self.separator) for piece in self._pieces(part)]
            listed = [part for part in parts if not is_no_tag(part)]
        return tuple(dict.fromkeys(tag for tag in map(clean_tag, listed) if tag))

    def _pieces(self, part: str) -> Iterable[str]:
        """A part cut at another separator, where all its pieces are tags of their own elsewhere."""
        for other in SEPARATORS:
            if other != self.separator and other in part:
                pieces = [clean_tag(piece) for piece in part.split(other)]
                if all(piece.lstrip("?-") in self.also for piece in pieces):
                    return pieces
        return (part,)


def is_no_tag(cell: str) -> bool:
    """Whether a bare cell says that there is no tag (`NO_TAG`)."""
    return cell.strip().casefold() in NO_TAG


def column_of(cells: Iterable[str], known: Collection[str] = ()) -> Column:
    """How the cells of a column are separated, decided by all of them.

    Args:
        cells: of the column; lists that programs printed, and cells without a tag, have no say.
        known: names of the classes, where they are known.

    >>> column_of(["golden retriever", "cat, dog"]).tags("golden retriever")
    ('golden retriever',)
    >>> column_of(["cat dog", "dog"]).tags("dog  cat")
    ('dog', 'cat')
    """
    counts = Counter(cell.strip() for cell in cells)
    plain = {
        cell: count
        for cell, count in counts.items()
        if not is_no_tag(cell) and cell[0] not in BRACKETS and not CALL.match(cell)
    }
    outside = {cell: QUOTED.sub("", cell) for cell in plain}
    frequent = {
        separator: sum(count for cell, count in plain.items() if separator in outside[cell])
        for separator in SEPARATORS
    }
    best = max(SEPARATORS, key=lambda separator: frequent[separator])
    if not frequent[best]:
        return _without_separator(plain, known)
    parts = Counter(clean_tag(part).lstrip("?-") for cell in plain for part in split_at(cell, best))
    also = frozenset(part for part in parts if part and not any(other in part for other in SEPARATORS))
    loose = [part for part in also if " " in part and all(word in also for word in part.split())]
    notes = (
        [
            f"tags are separated by {best!r} in this column, so {min(loose)!r} is one tag; write {best!r} between its "
            "words if it is several"
        ]
        if loose
        else []
    )
    return Column(separator=best, also=also, notes=tuple(notes))


def _without_separator(plain: dict[str, int], known: Collection[str]) -> Column:
    """Blanks separate tags, unless the cells show that words belong together."""
    words = {cell: [word.lstrip("?-") for word in _words(cell)] for cell in plain}
    several = [cell for cell in words if len(words[cell]) > 1]
    if not several:
        return Column(separator=" ")
    names = {clean_tag(name).casefold() for name in known}
    alone = {words[cell][0] for cell in words if len(words[cell]) == 1}
    shown = min(several)
    if names:
        whole = any(" ".join(words[cell]).casefold() in names for cell in several)
    else:
        whole = _belong_together(plain, words, several, alone)
    if whole:
        return Column(
            separator="",
            notes=(
                f"each cell of the tags is one tag, blanks included, such as {shown!r}; separate several tags by "
                "commas if that is wrong",
            ),
        )
    cells = Counter(word for cell in words for word in set(words[cell]))
    sure = names or all(
        cells[word] > 1 or word.casefold() in SINGLE_WORDS for cell in several for word in words[cell]
    )
    note = f"tags are separated by blanks, as in {shown!r}; write a tag of several words with a separator ({shown};)"
    return Column(separator=" ", notes=() if sure else (note[:300],))


def _belong_together(
    plain: dict[str, int], words: dict[str, list[str]], several: Sequence[str], alone: Collection[str]
) -> bool:
    """Whether the words of a cell are one name: a known one, or words that no other cell combines otherwise."""
    for cell in several:
        name = " ".join(words[cell]).casefold()
        if name in known_names() and not all(word in alone for word in words[cell]):
            return True
    cells = Counter(word for cell in words for word in set(words[cell]))
    closed = all(
        len(words[cell]) <= LONGEST_NAME
        and all(cells[word] == 1 for word in words[cell])
        and not all(word.casefold() in SINGLE_WORDS for word in words[cell])
        for cell in several
    )
    rows = sum(plain[cell] for cell in several)
    return closed and rows >= 2 * len(several) and not any(cell[0] in "?-" for cell in several)


@cache
def known_names() -> frozenset[str]:
    """Names of several words, in lower case: ILSVRC's and COCO's."""
    from milseg.models.weights import imagenet_categories

    return COMMON_NAMES | {name.casefold() for name in imagenet_categories() if " " in name}


def _words(cell: str) -> list[str]:
    return cell.split()


def split_at(cell: str, separator: str) -> list[str]:
    """The parts of a cell; quotes around a part hold it together and are taken off.

    >>> split_at('"potted plant" dog', " "), split_at("it's; 'a; b'", ";")
    (['potted plant', 'dog'], ["it's", 'a; b'])
    """
    text = cell if separator == "\n" else " ".join(cell.split())
    if not separator:
        parts = [text]
    elif '"' in text:
        parts = _quoted_parts(text, separator)
    elif "'" in text:
        parts = re.findall(
            rf"(?:\s*'[^']*'\s*(?=[{re.escape(separator)}]|$)|[^{re.escape(separator)}])+", text
        )
    else:
        parts = text.split(separator)
    return [_unquoted(part.strip()) for part in parts if part.strip()]


def _quoted_parts(text: str, separator: str) -> list[str]:
    if separator == "\n":
        return text.split("\n")
    try:
        return next(csv.reader([text], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:  # longer than any cell
        return text.split(separator)


def _unquoted(part: str) -> str:
    if len(part) > 1 and part[0] == part[-1] and part[0] in "'\"":
        return part[1:-1].strip()
    return part


def _plain(cell: str, where: str) -> str:
    """A cell's text.

    Raises:
        UserError: a formula of a spreadsheet, or its error.
    """
    text = cell.strip()
    if FAILED.match(text):
        raise UserError(
            f"{where}: {text[:40]!r} is a spreadsheet's error in place of tags; a cell typed as -dog is taken for a "
            "formula there: format the column as text, or write the tag into a column of its own (1, 0)"
        )
    if text.startswith("="):
        raise UserError(
            f"{where}: {text[:60]!r} is a formula; save the table with values in place of formulas"
        )
    return text


def listed_tags(text: str, where: str = "the cell") -> list[str] | None:
    """The tags of a list as programs print it; None for a text that is no list.

    >>> listed_tags("['cat' 'dog']"), listed_tags('{"choices": ["cat"]}'), listed_tags("set()")
    (['cat', 'dog'], ['cat'], [])
    >>> listed_tags("cat, dog") is None
    True

    Raises:
        UserError: a JSON object without labels.
    """
    if not text or (text[0] not in BRACKETS and not text.endswith(")")):
        return None
    value = _json_value(text)
    if isinstance(value, list | dict):
        return list(labels_in(value, where))
    call = CALL.match(text)
    if call is not None and (not call[1] or call[1][0] in BRACKETS):
        text = call[1] or "[]"
    if BRACKETS.get(text[0]) != text[-1]:
        return None
    inner = NUMPY_TEXT.sub(r"\1", text[1:-1]).strip()
    quoted = QUOTED.findall(inner)
    rest = [word for word in re.split(r"[\s,\[\]()]+", QUOTED.sub(" ", inner)) if word]
    if quoted and all(word.casefold() in NO_TAG for word in rest):
        return [_literal(word) for word in quoted]
    if quoted:
        return None
    if text[0] == "(":
        return None if rest else []
    parts = inner.split(",") if "," in inner else rest
    return [part.strip() for part in parts if not is_no_tag(part)]


def _json_value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _literal(quoted: str) -> str:
    try:
        return str(ast.literal_eval(quoted))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return quoted[1:-1]


def labels_in(value: Any, where: str, depth: int = 0) -> Iterator[str]:
    """The labels in a JSON value: texts, lists of them, Label Studio's objects, or an object of flags.

    Of a taxonomy's path the last name counts.

    Raises:
        UserError: an object that holds none of these.
    """
    if depth > 20:
        raise UserError(f"{where}: a list in a list, more than 20 deep; expected tags")
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from labels_in(item, where, depth + 1)
    elif isinstance(value, dict):
        yield from _labels_of(value, where, depth)
    elif value is not None and value == value and not isinstance(value, bool):
        yield str(value)


def _labels_of(value: dict[str, Any], where: str, depth: int) -> Iterator[str]:
    keys = [key for key in value if key in ("choices", "taxonomy") or key.endswith("labels")]
    if keys:
        for key in keys:
            if key == "taxonomy" and isinstance(value[key], list):
                paths = [item for item in value[key] if item]
                yield from labels_in([p[-1] if isinstance(p, list) else p for p in paths], where, depth + 1)
            else:
                yield from labels_in(value[key], where, depth + 1)
    elif value and all(isinstance(flag, int | float) and flag in (0, 1) for flag in value.values()):
        yield from (key if flag else f"-{key}" for key, flag in value.items())
    elif value and not any(key in value for key in ("original_width", "format", "x", "points")):
        shown = ", ".join(repr(key)[:30] for key in list(value)[:5])
        raise UserError(
            f"{where}: an object with {shown}; expected tags, or Label Studio's choices or labels"
        )
