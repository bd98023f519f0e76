"""Score a model on the photos of a set that have true masks; `evaluation.folders` scores masks that are files."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from milseg.config import EvaluateOptions, InferenceConfig
from milseg.data.bags import BACKGROUND, VOID, BagSet, load_mask, load_photo
from milseg.data.image import UInt8
from milseg.data.sources.evaluation_set import evaluation_bags
from milseg.distributed import collectives
from milseg.errors import UserError
from milseg.evaluation.confusion import Evaluation, Scores
from milseg.inference.hub import local_folder
from milseg.inference.model_folder import ModelSpec, load_model
from milseg.inference.segmenter import Segmenter
from milseg.models.fcn import FCN
from milseg.utils.files import PathLike, as_path


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
        if not isinstance(bags, BagSet):
            bags = evaluation_bags(EvaluateOptions(source=as_path(bags)), stored.classes)
        bags = bags.with_ranges(stored.value_ranges)
    if not isinstance(bags, BagSet):
        raise UserError(
            f"{bags}: expected a BagSet, as milseg.read_voc gives it, beside a network without class names"
        )
    spec = ModelSpec(backbone="", classes=bags.classes, longest_side=longest_side)
    segmenter = Segmenter(model, spec, inference=InferenceConfig())
    evaluations = {reading: Evaluation(bags.classes) for reading in readings}
    left_out: list[str] = []
    with collectives.errors_on_all_ranks():
        for photo, truth in _photos_and_truth(bags, left_out, progress):
            score_map = segmenter.score_map(photo)
            for reading, evaluation in evaluations.items():
                mask = score_map.argmax_mask((photo.shape[0], photo.shape[1]), reading=reading)
                evaluation.update(mask, truth)
    notes = _left_out_of_all(bags, left_out)
    unscored = _never_shown(bags)
    return {name: _of_all(part).compute(notes=notes, unscored=unscored) for name, part in evaluations.items()}


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
    bags = bags.with_ranges(segmenter.spec.value_ranges)
    evaluation = Evaluation(bags.classes)
    left_out: list[str] = []
    with collectives.errors_on_all_ranks():
        for photo, truth in _photos_and_truth(bags, left_out, progress):
            evaluation.update(segmenter.segment(photo).mask, truth)
    notes = _left_out_of_all(bags, left_out)
    return _of_all(evaluation).compute(notes=notes, unscored=_never_shown(bags))


def _of_all(part: Evaluation) -> Evaluation:
    """The counts of all processes together."""
    whole = Evaluation(part.classes)
    for other in collectives.gathered(part):
        whole.merge(other)
    return whole


def _left_out_of_all(bags: BagSet, left_out: list[str]) -> list[str]:
    """A sentence on the photos that no process could read.

    Raises:
        UserError: not one photo could be read.
    """
    every = [reason for some in collectives.gathered(left_out) for reason in some]
    if len(every) == len(bags):
        raise UserError(f"{bags.name}: none of its {len(bags):,} photos can be read; the first: {every[0]}")
    return [f"{len(every):,} photos that cannot be read left out, such as {every[0]}"] if every else []


def _photos_and_truth(bags: BagSet, left_out: list[str], progress: bool) -> Iterator[tuple[UInt8, UInt8]]:
    """This process's share of the set; photos that cannot be read are named in `left_out`."""
    if not len(bags):
        raise UserError(f"{bags.name}: no photos to score")
    mine = bags.bags[collectives.rank_slice(len(bags))]
    quiet = not progress or not collectives.is_main()
    for bag in tqdm(mine, desc=f"score on {bags.name}", unit="photo", disable=quiet):
        try:
            photo = load_photo(bag)
        except UserError as error:
            left_out.append(str(error))
            print(f"milseg: left out: {error}", file=sys.stderr)
            continue
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
