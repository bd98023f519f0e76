"""What the values of mask files mean: names in the order of the values, or value by value.

labels.json                      {"classes": ["background", "cat", ...]}, in the order of the values
--truth-values 0=background,255=cat
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from milseg.data.bags import VOID
from milseg.data.label_map import find_label_map, read_label_map
from milseg.data.sources.voc import VOC_CLASSES
from milseg.errors import UserError

# "voc", a JSON file, names in the order of the values, or the name of each value; None where nobody says.
ValueNames = str | Path | Sequence[str] | Mapping[int, str] | None
LABELS = "labels.json"
# What a value may be called that is never scored.
VOID_NAMES = ("void", "ignore", "unlabeled", "unlabelled")


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names from `{"classes": ["background", "cat", ...]}`, in the order of their numbers.

    Raises:
        UserError: missing, not JSON, or not a list of different names.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f'{path}: no such file; expected class names as in {{"classes": [...]}}') from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON file that can be read ({error})") from None
    names = data.get("classes") if isinstance(data, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise UserError(
            f'{path}: expected {{"classes": ["background", ...]}}, a list of names in the order of the values'
        )
    if len(set(names)) != len(names) or len(names) > VOID:
        raise UserError(
            f"{path}: {len(names)} classes, {len(set(names))} of them different; expected 1 to 255, each once"
        )
    return tuple(names)


def parse_values(parts: Iterable[str], option: str) -> dict[int, str]:
    """The name of each value from `VALUE=NAME` parts, as options have them.

    Raises:
        UserError: a part of another form, a value outside 0 to 255 or given twice.

    >>> parse_values(["0=background", "255=cat"], "--truth-values")
    {0: 'background', 255: 'cat'}
    """
    names: dict[int, str] = {}
    for part in parts:
        value, equals, name = (word.strip() for word in part.partition("="))
        if not equals or not name or not value.isdecimal() or int(value) > 255:
            raise UserError(
                f"{option} {part!r}: expected VALUE=NAME with a value from 0 to 255, as in 255=cat"
            )
        if int(value) in names:
            raise UserError(f"{option}: the value {value} is given twice; keep one")
        names[int(value)] = name
    if not names:
        raise UserError(f"{option}: expected one or more of VALUE=NAME, as in 0=background,255=cat")
    return names


def given_names(
    labels: ValueNames, values: Iterable[str] | None, labels_option: str, values_option: str
) -> ValueNames:
    """What one of two options says of the values.

    Raises:
        UserError: both are given, or `values` cannot be read.
    """
    if values is None:
        return labels
    if labels is not None:
        raise UserError(f"{labels_option} and {values_option} both name the values; give one of the two")
    return parse_values(values, values_option)


def names_of_values(given: ValueNames, folder: Path, default: Sequence[str]) -> dict[int, str]:
    """The name of each value of the masks in `folder`.

    Args:
        given: see `ValueNames`; None reads `labels.json` in the folder itself where there is one, else CVAT's label
            map in it or above it.
        default: the names in order, where nothing else says them.

    Raises:
        UserError: as `read_labels`.
    """
    if given is None:
        beside, colours = folder / LABELS, find_label_map(folder)
        if beside.is_file():
            return dict(enumerate(read_labels(beside)))
        return dict(enumerate(default if colours is None else read_label_map(colours)))
    if isinstance(given, Mapping):
        return dict(given)
    return dict(enumerate(names_in_order(given)))


def names_in_order(given: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Class names: VOC's for "voc", else those of a JSON file, or as given."""
    if given == "voc":
        return VOC_CLASSES
    return read_labels(Path(given)) if isinstance(given, str | Path) else tuple(given)


def require_common(known: Sequence[str], stored: Collection[str], whose: str) -> None:
    """Stop where the truth can say nothing of the classes.

    Raises:
        UserError: no name in common besides the background.
    """
    if not set(stored) & (set(known) - {"background"}):
        raise UserError(
            f"{whose} ({', '.join(known)}) and the truth's ({', '.join(stored)}) share no name besides background; "
            "name both sets alike, or say what the truth's values mean (--truth-labels, --truth-values)"
        )


def class_notes(known: Iterable[str], stored: Iterable[str]) -> list[str]:
    """What is odd about two lists of classes that are matched by name."""
    ours, theirs = list(known), list(dict.fromkeys(stored))
    notes = []
    unknown = [name for name in theirs if name not in ours and name not in VOID_NAMES]
    if unknown:
        notes.append(f"Scored as void, as the predictions do not know them: {', '.join(unknown)}.")
    absent = [name for name in ours if name not in theirs]
    if absent:
        notes.append(f"Never scored, as the truth does not know them: {', '.join(absent)}.")
    return notes
