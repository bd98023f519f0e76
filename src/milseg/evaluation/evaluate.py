"""Score masks against the truth: a folder of them, or what a model says of the photos of a set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from milseg.config import InferenceConfig
from milseg.data.bags import BACKGROUND, VOID, BagSet, load_mask, load_photo, mask_values_for
from milseg.data.image import UInt8, open_mask
from milseg.data.sources.evaluation_set import evaluation_bags
from milseg.data.sources.ground_truth import (
    TruthClasses,
    class_notes,
    masks_below,
    read_labels,
    require_common,
    truth_labels,
)
from milseg.distributed import collectives
from milseg.errors import UserError
from milseg.evaluation.confusion import Evaluation, Scores
from milseg.inference.hub import local_folder
from milseg.inference.model_folder import ModelSpec, load_model
from milseg.inference.segmenter import Segmenter
from milseg.models.fcn import FCN
from milseg.utils.files import PathLike, as_path


def evaluate_folder(
    predictions: Path,
    truth: Path,
    *,
    classes: Sequence[str] | None = None,
    truth_classes: TruthClasses = None,
    names: Iterable[str] | None = None,
) -> Scores:
    """Score a folder of masks against a folder of true masks.

    Masks are PNGs (palette or grey) and belong together when their paths below the two folders agree but for
    the extension. Classes belong together by name: a true class that the predictions do not know is void,
    with a note.

    Args:
        classes: names of the predictions' values; None reads `labels.json` in the folder or the nearest one
            above.
        truth_classes: names of the true masks' values: "voc", a JSON file, or names; None reads `labels.json`
            in the truth folder itself where there is one, and else takes the predictions' classes.
        names: score only these masks (relative paths without extension, as in an image set's list); None
            takes every true mask.

    Raises:
        UserError: no masks; a true mask without prediction; masks of different sizes; no class names, or none
            in common; a value without a name.
    """
    predicted, true = masks_below(predictions), masks_below(truth)
    labels = tuple(classes) if classes is not None else read_labels(_labels_above(predictions))
    stored = truth_labels(truth_classes, truth, labels)
    require_common(labels, stored, "the predictions' classes")
    if names is not None:
        true = _chosen(true, names, truth)
    missing = [name for name in true if name not in predicted]
    if missing:
        raise UserError(
            f"{predictions}: {len(missing)} of {len(true)} true masks have no prediction, the first is "
            f"{missing[0]}; make masks for all of them, or name the ones to score"
        )
    evaluation = Evaluation(labels)
    table = mask_values_for(labels, dict(enumerate(stored)))
    for name, path in true.items():
        _score_pair(evaluation, predicted[name], path, table, len(stored))
    extra = len(predicted) - len(true)
    notes = [f"{extra} predictions without a true mask were left out."] if extra else []
    unscored = [name for name in labels if name not in stored]
    return evaluation.compute(notes=[*notes, *class_notes(labels, stored)], unscored=unscored)


def _labels_above(folder: Path) -> Path:
    for place in (folder, *folder.absolute().parents):
        if (place / "labels.json").is_file():
            return place / "labels.json"
    raise UserError(
        f"{folder}: no labels.json in this folder or above it; pass the class names in the order of "
        "their values"
    )


def _chosen(found: Mapping[str, Path], names: Iterable[str], folder: Path) -> dict[str, Path]:
    wanted = list(dict.fromkeys(names))
    absent = [name for name in wanted if name not in found]
    if absent or not wanted:
        first = f", the first is {absent[0]}" if absent else ""
        raise UserError(f"{folder}: {len(absent)} of the {len(wanted)} masks to score are not there{first}")
    return {name: found[name] for name in wanted}


def _score_pair(evaluation: Evaluation, predicted: Path, true: Path, table: UInt8, stored: int) -> None:
    prediction, truth = open_mask(predicted), open_mask(true)
    if prediction.shape != truth.shape:
        raise UserError(
            f"{predicted}: {prediction.shape[1]} x {prediction.shape[0]} pixels, but {true} has "
            f"{truth.shape[1]} x {truth.shape[0]}; masks are scored at the photo's own size"
        )
    for path, mask, count in ((predicted, prediction, len(evaluation.classes)), (true, truth, stored)):
        worst = int(np.where(mask == VOID, 0, mask).max(initial=0))
        if worst >= count:
            raise UserError(
                f"{path}: holds the value {worst}, but only {count} classes are named; expected 0 to "
                f"{count - 1}, or 255 (void). Pass the class names that belong to these masks"
            )
    evaluation.update(prediction, table[truth])


def evaluate_model(
    model: FCN | PathLike,
    bags: BagSet | PathLike,
    *,
    readings: Sequence[str] = ("scores",),
    longest_side: int | None = None,
    progress: bool = True,
) -> dict[str, Scores]:
    """Score a network's own maps on the photos of a set at their own size, by each of the `readings`.

    Several processes (`milseg.distributed.collectives`) each score their share of the photos, and all return the
    scores of the whole set: counts of pixels add up, so they are those of one process.

    Args:
        model: put into evaluation mode; predicts on the device it is on. Or a model folder, which brings its own
            longest side.
        bags: their masks are read, for scoring alone. Or, with a model folder, a VOC tree that has masks.
        longest_side: the network sees larger photos made smaller; the masks keep the photos' size.

    Raises:
        UserError: no photos, or a photo without a mask; a folder of photos for a model without class names.
    """
    if not isinstance(model, FCN):
        model, stored = load_model(local_folder(as_path(model)))
        longest_side = longest_side or stored.longest_side
        bags = bags if isinstance(bags, BagSet) else evaluation_bags(as_path(bags), stored.classes)
    if not isinstance(bags, BagSet):
        raise UserError(
            f"{bags}: expected a BagSet, as milseg.read_voc gives it, beside a network without class names"
        )
    spec = ModelSpec(backbone="", classes=bags.classes, longest_side=longest_side)
    segmenter = Segmenter(model, spec, inference=InferenceConfig())
    evaluations = {reading: Evaluation(bags.classes) for reading in readings}
    with collectives.errors_on_all_ranks():
        for photo, truth in _photos_and_truth(bags, progress):
            score_map = segmenter.score_map(photo)
            for reading, evaluation in evaluations.items():
                mask = score_map.argmax_mask((photo.shape[0], photo.shape[1]), reading=reading)
                evaluation.update(mask, truth)
    unscored = _never_shown(bags)
    return {name: _of_all(part).compute(unscored=unscored) for name, part in evaluations.items()}


def evaluate_segmenter(segmenter: Segmenter, bags: BagSet, *, progress: bool = True) -> Scores:
    """Score the masks that `milseg predict` would write, with all that stands between map and mask.

    Several processes share the photos as in `evaluate_model`.

    Raises:
        UserError: as `evaluate_model`; or the set has other classes than the model.
    """
    if bags.classes != segmenter.classes:
        raise UserError(
            f"{bags.name}: its classes are {', '.join(bags.classes)}, the model's {', '.join(segmenter.classes)}"
        )
    evaluation = Evaluation(bags.classes)
    with collectives.errors_on_all_ranks():
        for photo, truth in _photos_and_truth(bags, progress):
            evaluation.update(segmenter.segment(photo).mask, truth)
    return _of_all(evaluation).compute(unscored=_never_shown(bags))


def _of_all(part: Evaluation) -> Evaluation:
    """The counts of all processes together."""
    whole = Evaluation(part.classes)
    for other in collectives.gathered(part):
        whole.merge(other)
    return whole


def _photos_and_truth(bags: BagSet, progress: bool) -> Iterator[tuple[UInt8, UInt8]]:
    """This process's share of the set."""
    if not len(bags):
        raise UserError(f"{bags.name}: no photos to score")
    mine = bags.bags[collectives.rank_slice(len(bags))]
    quiet = not progress or not collectives.is_main()
    for bag in tqdm(mine, desc=f"score on {bags.name}", unit="photo", disable=quiet):
        photo = load_photo(bag)
        yield photo, load_mask(bag, bags, size=(photo.shape[0], photo.shape[1]))


def _never_shown(bags: BagSet) -> list[str]:
    """Classes that no value of the masks stands for: none can be right, so they are not scored, rather than 0."""
    shown = set(range(VOID) if bags.mask_values is None else bags.mask_values.tolist())
    return [name for i, name in enumerate(bags.classes) if i not in shown]


def evaluate_all_background(bags: BagSet) -> Scores:
    """The scores of calling every pixel background: what a model must beat to have learned anything."""
    evaluation = Evaluation(bags.classes)
    for bag in bags.bags:
        truth = load_mask(bag, bags)
        evaluation.update(np.full_like(truth, BACKGROUND), truth)
    return evaluation.compute()
