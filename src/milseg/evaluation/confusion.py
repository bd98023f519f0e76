"""Scores of masks: one confusion matrix over the whole set, then intersection over union.

The paper's metric ("Experiments"): for each class the pixels in the intersection of truth and prediction over
the pixels in their union, in percent; mean IU is the mean over the classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from milseg.data.bags import VOID
from milseg.data.image import UInt8
from milseg.errors import UserError

Matrix = NDArray[np.int64]

# Pixels counted at a time; of noise np.bincount widens them to 8 bytes each.
_BLOCK = 1 << 20
# A mask that shows less of what is there is nearly empty.
LEAST_SHOWN = 0.1


def confusion(prediction: ArrayLike, truth: ArrayLike, classes: int) -> Matrix:
    """Count pixels by true class (row) and predicted class (column).

    Void pixels of the truth are left out. The last column counts pixels of a true class where the prediction
    is void (255): no class was named, so the pixel is a miss, and is no other class's false positive.

    Args:
        prediction: integers, 0 to classes - 1 or 255, any shape.
        truth: the same shape and range.
        classes: how many classes C, background included; at most 255.

    Returns:
        int64 [C, C + 1].

    Raises:
        UserError: shapes differ, or a value is neither a class number nor 255.

    >>> confusion([[0, 1, 1]], [[0, 0, 255]], classes=2).tolist()
    [[1, 1, 0], [0, 0, 0]]
    """
    predicted, true = _flat(prediction, "prediction"), _flat(truth, "truth")
    if np.shape(prediction) != np.shape(truth):
        raise UserError(
            f"prediction {list(np.shape(prediction))} and truth {list(np.shape(truth))} differ in shape"
        )
    found = np.zeros((classes + 1) ** 2, dtype=np.int64)
    for start in range(0, true.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        rows, columns, counts = _pairs(true[block], predicted[block])
        _check_values(columns, classes, "prediction")
        _check_values(rows, classes, "truth")
        # Void comes after the classes.
        places = np.minimum(rows, classes).astype(np.intp) * (classes + 1) + np.minimum(columns, classes)
        found += np.bincount(places, weights=counts, minlength=found.size).astype(np.int64)
    return found.reshape(classes + 1, classes + 1)[:classes]


def _pairs(true: UInt8, predicted: UInt8) -> tuple[UInt8, UInt8, Matrix]:
    """True values, predicted ones, and how many pixels have both; a pair may come more than once.

    Neighbours in a mask are mostly alike, and a run of them is counted as one. Noise is counted pixel by pixel.
    """
    ends = true[1:] != true[:-1]
    ends |= predicted[1:] != predicted[:-1]
    if np.count_nonzero(ends) < true.size // 8:
        last = np.append(np.flatnonzero(ends), true.size - 1)
        return true[last], predicted[last], np.diff(last, prepend=-1)
    counts = np.bincount(true.astype(np.uint16) * 256 + predicted, minlength=256 * 256)
    shown = np.flatnonzero(counts)
    return (shown >> 8).astype(np.uint8), (shown & 255).astype(np.uint8), counts[shown]


def _flat(values: ArrayLike, what: str) -> UInt8:
    array = np.asarray(values)
    if array.dtype == np.uint8:
        return array.reshape(-1)
    if not np.issubdtype(array.dtype, np.integer):
        raise UserError(f"{what}: holds {array.dtype} values; expected class numbers (integers)")
    if array.size and (array.min() < 0 or array.max() > VOID):
        raise UserError(
            f"{what}: holds values from {array.min()} to {array.max()}; expected class numbers or 255"
        )
    return array.reshape(-1).astype(np.uint8)


def _check_values(values: UInt8, classes: int, what: str) -> None:
    wrong = (values >= classes) & (values != VOID)
    if wrong.any():
        raise UserError(
            f"{what}: holds the value {values[wrong].min()}; expected class numbers 0 to "
            f"{classes - 1}, or 255 (void)"
        )


@dataclass(frozen=True, kw_only=True)
class PhotoCounts:
    """What single photos are told by, where one figure of the whole set hides them. Void pixels count for nothing.

    Attributes:
        with_things: photos whose true mask shows a class other than the background.
        nearly_empty: those of them whose predicted mask calls less than `LEAST_SHOWN` of these pixels anything but
            background.
        tags: pairs of a photo and a class other than the background that its true mask shows.
        tags_without_pixel: those of them without a pixel of the class in the predicted mask.
        clean: photos whose true mask shows the background alone.
        false_alarms: those of them whose predicted mask shows anything else.
    """

    with_things: int = 0
    nearly_empty: int = 0
    tags: int = 0
    tags_without_pixel: int = 0
    clean: int = 0
    false_alarms: int = 0

    def __add__(self, other: PhotoCounts) -> PhotoCounts:
        return PhotoCounts(**{key: value + getattr(other, key) for key, value in asdict(self).items()})

    def rows(self) -> dict[str, tuple[str, int, int]]:
        """What each count is of, by its key in JSON: (words, count, of how many)."""
        return {
            "nearly_empty": ("photos with a nearly empty mask", self.nearly_empty, self.with_things),
            "tags_without_pixel": ("tags without a pixel", self.tags_without_pixel, self.tags),
            "false_alarms": ("clean photos with a mask", self.false_alarms, self.clean),
        }

    def to_json(self) -> dict[str, dict[str, float | None]]:
        """Count, of how many, and share in percent; None where there are none to count."""
        return {
            key: {"count": count, "of": total, "share": 100.0 * count / total if total else None}
            for key, (_, count, total) in self.rows().items()
        }


def photo_counts(matrix: Matrix, classes: Sequence[str]) -> PhotoCounts:
    """The counts of one photo from its confusion matrix [C, C + 1].

    >>> photo_counts(confusion([[0, 0, 0]], [[0, 1, 1]], 2), ["background", "cat"])
    PhotoCounts(with_things=1, nearly_empty=1, tags=1, tags_without_pixel=1, clean=0, false_alarms=0)
    """
    things = np.array([name != "background" for name in classes])
    predicted = matrix[:, :-1].sum(axis=0)
    there = int(matrix[things].sum())
    if there:
        shown = int(matrix[np.ix_(things, things)].sum())
        true = (matrix.sum(axis=1) > 0) & things
        return PhotoCounts(
            with_things=1,
            nearly_empty=int(shown < LEAST_SHOWN * there),
            tags=int(true.sum()),
            tags_without_pixel=int((true & (predicted == 0)).sum()),
        )
    return PhotoCounts(clean=1, false_alarms=int(predicted[things].any())) if matrix.sum() else PhotoCounts()


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Scores of a set, in percent; nan where undefined.

    Attributes:
        mean_iu: mean of the defined values of per_class_iu.
        per_class_iu: intersection over union; nan for a class that neither truth nor prediction shows.
        pixel_accuracy: pixels right, of all that are not void.
        mean_accuracy: mean over the true classes of the share of their pixels that are right.
        frequency_weighted_iu: IU weighted by each class's share of the true pixels.
        predicted_share: of the pixels that are not void, how many are predicted as each class.
        photos: how many masks were scored.
        by_photo: what single photos are told by; None where only the matrix of a set is known.
        notes: what is odd about the set, one sentence each.
    """

    mean_iu: float
    per_class_iu: dict[str, float]
    pixel_accuracy: float
    mean_accuracy: float
    frequency_weighted_iu: float
    predicted_share: dict[str, float]
    photos: int
    by_photo: PhotoCounts | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file, None for nan."""
        data = asdict(self)
        data["notes"] = list(self.notes)
        data["by_photo"] = None if self.by_photo is None else self.by_photo.to_json()
        return {key: _plain(value) for key, value in data.items()}

    def table(self) -> str:
        """A Markdown table, one line a class and one a mean, two decimals."""
        rows = [(name, value) for name, value in self.per_class_iu.items()]
        rows += [
            ("**mean IU**", self.mean_iu),
            ("pixel accuracy", self.pixel_accuracy),
            ("mean accuracy", self.mean_accuracy),
            ("frequency-weighted IU", self.frequency_weighted_iu),
        ]
        lines = ["| | % |", "|---|---:|"]
        lines += [f"| {name} | {'-' if math.isnan(value) else f'{value:.2f}'} |" for name, value in rows]
        for words, count, total in self.by_photo.rows().values() if self.by_photo else ():
            share = f"{100 * count / total:.2f}" if total else "-"
            lines.append(f"| {words} ({count:,} of {total:,}) | {share} |")
        lines += ["", f"{self.photos} photos.", *self.notes]
        return "\n".join(lines) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def scores_from(
    matrix: Matrix,
    classes: Sequence[str],
    photos: int,
    *,
    by_photo: PhotoCounts | None = None,
    notes: Iterable[str] = (),
    unscored: Iterable[str] = (),
) -> Scores:
    """Scores of a confusion matrix.

    IU of class c = n_cc / (t_c + sum_j n_jc - n_cc), with n_jc the pixels of class j predicted as c and t_c
    all true pixels of c (Long et al. 2014, "Metrics"). A class that neither the truth nor the prediction
    shows is nan and leaves the means; one that only the prediction shows scores 0. Without any true pixel
    every score is nan.

    Args:
        matrix: int64 [C, C + 1] as `confusion` gives it.
        classes: the C names.
        photos: how many masks were counted.
        by_photo: taken over as it is.
        unscored: classes that the truth has no way to show; nan even where they are predicted.
    """
    if matrix.shape != (len(classes), len(classes) + 1):
        raise ValueError(f"expected a matrix [{len(classes)}, {len(classes) + 1}], got {list(matrix.shape)}")
    right = np.diagonal(matrix).astype(np.float64)
    true = matrix.sum(axis=1).astype(np.float64)
    union = true + matrix[:, :-1].sum(axis=0) - right
    seen = true > 0
    scored = (union > 0) & ~np.isin(np.array(classes), list(unscored))
    with np.errstate(invalid="ignore", divide="ignore"):
        iu = np.where(scored, 100.0 * right / union, np.nan)
        accuracy = 100.0 * right / true
    total = true.sum()
    return Scores(
        mean_iu=float(iu[scored].mean()) if total else math.nan,
        per_class_iu={name: float(value) for name, value in zip(classes, iu, strict=True)},
        pixel_accuracy=float(100.0 * right.sum() / total) if total else math.nan,
        mean_accuracy=float(accuracy[seen].mean()) if total else math.nan,
        frequency_weighted_iu=float((true[seen] * iu[seen]).sum() / total) if total else math.nan,
        predicted_share={
            name: float(100.0 * count / total) if total else math.nan
            for name, count in zip(classes, matrix[:, :-1].sum(axis=0), strict=True)
        },
        photos=photos,
        by_photo=by_photo,
        notes=tuple(notes),
    )


class Evaluation:
    """One confusion matrix over a whole set, filled mask by mask.

    >>> evaluation = Evaluation(["background", "cat"])
    >>> evaluation.update([[0, 1]], [[1, 1]])
    >>> evaluation.compute().per_class_iu["cat"]
    50.0
    """

    def __init__(self, classes: Sequence[str]) -> None:
        if len(set(classes)) != len(classes) or not 1 <= len(classes) <= VOID:
            raise UserError(
                f"{len(classes)} classes, {len(set(classes))} of them different; expected 1 to 255, each once"
            )
        self.classes = tuple(classes)
        self.matrix: Matrix = np.zeros((len(classes), len(classes) + 1), dtype=np.int64)
        self.photos = 0
        self.by_photo = PhotoCounts()

    def update(self, prediction: ArrayLike, truth: ArrayLike) -> None:
        """Count one photo's masks [H, W]; see `confusion` for the values and errors."""
        matrix = confusion(prediction, truth, len(self.classes))
        self.matrix += matrix
        self.photos += 1
        self.by_photo += photo_counts(matrix, self.classes)

    def merge(self, other: Evaluation) -> None:
        """Add the counts of another part of the same set, as from another process."""
        if other.classes != self.classes:
            raise ValueError(
                f"cannot merge evaluations of different classes: {self.classes} and {other.classes}"
            )
        self.matrix += other.matrix
        self.photos += other.photos
        self.by_photo += other.by_photo

    def compute(self, *, notes: Iterable[str] = (), unscored: Iterable[str] = ()) -> Scores:
        """The scores so far."""
        return scores_from(
            self.matrix,
            self.classes,
            self.photos,
            by_photo=self.by_photo,
            notes=notes,
            unscored=unscored,
        )
