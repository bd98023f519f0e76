"""Score a folder of masks against a folder of true masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from milseg.data.bags import mask_values_for
from milseg.data.image import UInt8, open_mask
from milseg.data.mask_checks import Reading, check_numbers, check_truth
from milseg.data.mask_survey import survey
from milseg.data.sources.ground_truth import masks_below
from milseg.data.sources.mask_names import (
    LABELS,
    VOID_NAMES,
    ValueNames,
    class_notes,
    names_of_values,
    read_labels,
    require_common,
)
from milseg.errors import UserError
from milseg.evaluation.confusion import Evaluation, Scores


def evaluate_folder(
    predictions: Path,
    truth: Path,
    *,
    classes: ValueNames = None,
    truth_classes: ValueNames = None,
    names: Iterable[str] | None = None,
) -> Scores:
    """Score a folder of masks against a folder of true masks; both are looked at as a set first.

    Masks are PNGs (palette or grey) and belong together when their paths below the two folders agree but for
    the extension. Classes belong together by name: a true class that the predictions do not know is void,
    with a note.

    Args:
        classes: what the predictions' values mean: "voc", a JSON file, names in order, or the name of each value; None
            reads `labels.json` in the folder or the nearest one above.
        truth_classes: what the true masks' values mean, likewise; None reads `labels.json` in the truth folder itself
            where there is one, and else takes the predictions' classes.
        names: score only these masks (relative paths without extension, as in an image set's list); None
            takes every true mask.

    Raises:
        UserError: no masks; a true mask without prediction; masks of different sizes; no class names, or none
            in common; a value without a name; masks that mean nothing as a set (see `milseg.data.mask_checks`).
    """
    folder, truth = Path(predictions), Path(truth)
    predicted, true = masks_below(folder), masks_below(truth)
    meant = names_of_values(_labels_above(folder) if classes is None else classes, folder, ())
    labels = tuple(dict.fromkeys(name for name in meant.values() if name not in VOID_NAMES))
    stored = names_of_values(truth_classes, truth, labels)
    require_common(labels, stored.values(), "the predictions' classes")
    if names is not None:
        true = _chosen(true, names, truth)
    missing = [name for name in true if name not in predicted]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(true)} true masks have no prediction, the first is "
            f"{missing[0]}; make masks for all of them, or name the ones to score"
        )
    theirs = Reading(where=truth, names=stored, classes=labels, given=isinstance(truth_classes, Mapping))
    ours = Reading(
        where=folder,
        names=meant,
        classes=labels,
        given=isinstance(classes, Mapping),
        labels="--labels",
        values="--pred-values",
    )
    notes = check_truth(survey(true.values()), theirs)
    notes += check_numbers(survey(predicted[name] for name in true), ours)
    extra = len(predicted) - len(true)
    notes += [f"{extra} predictions without a true mask were left out."] if extra else []
    notes += class_notes(labels, stored.values())
    tables = _Tables(
        predicted=mask_values_for(labels, meant) if isinstance(classes, Mapping) else None,
        true=mask_values_for(labels, stored),
    )
    evaluation = Evaluation(labels)
    for name, path in true.items():
        _score_pair(evaluation, predicted[name], path, tables)
    unscored = [name for name in labels if name not in stored.values()]
    return evaluation.compute(notes=notes, unscored=unscored)


@dataclass(frozen=True, kw_only=True)
class _Tables:
    """From the values of files to class numbers, uint8 [256]; None where values are the numbers."""

    predicted: UInt8 | None
    true: UInt8


def _labels_above(folder: Path) -> tuple[str, ...]:
    for place in (folder, *folder.absolute().parents):
        if (place / LABELS).is_file():
            return read_labels(place / LABELS)
    raise UserError(
        f"{folder}: no {LABELS} in this folder or above it; say what the values of the predicted masks mean with "
        '--labels (voc, or a JSON file {"classes": ["background", ...]} in the order of the values) or --pred-values, '
        "and with --truth-labels where those of the true masks differ"
    )


def _chosen(found: Mapping[str, Path], names: Iterable[str], folder: Path) -> dict[str, Path]:
    wanted = list(dict.fromkeys(names))
    absent = [name for name in wanted if name not in found]
    if absent or not wanted:
        first = f", the first is {absent[0]}" if absent else ""
        raise UserError(f"{folder}: {len(absent)} of the {len(wanted)} masks to score are not there{first}")
    return {name: found[name] for name in wanted}


def _score_pair(evaluation: Evaluation, predicted: Path, true: Path, tables: _Tables) -> None:
    prediction, truth = open_mask(predicted), open_mask(true)
    if prediction.shape != truth.shape:
        raise UserError(
            f"{predicted}: {prediction.shape[1]} x {prediction.shape[0]} pixels, but {true} has "
            f"{truth.shape[1]} x {truth.shape[0]}; masks are scored at the photo's own size"
        )
    if tables.predicted is not None:
        prediction = tables.predicted[prediction]
    evaluation.update(prediction, tables.true[truth])
