"""Class activation maps with a threshold: what people use today, for comparison.

A network trained by the average of its scores (Zhou et al. 2016) has maps without a background. Those of the classes
that it finds in the photo are scaled to a maximum of 1; a place whose maps all stay below a threshold is background.
The threshold is the best of several on the masks that score it, which is said beside the result.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from milseg.data.bags import BagSet, load_mask, load_photo
from milseg.evaluation.confusion import Evaluation
from milseg.inference.tta import tta_score_map
from milseg.models.fcn import FCN
from milseg.models.fuse import fused

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 17))


def activation_maps(scores: torch.Tensor) -> torch.Tensor:
    """Maps of the found classes, 0 to 1, [C - 1, h, w] from scores [C, h, w]; a class is found where its mean is
    above 0, and the surest one always is.

    >>> activation_maps(torch.tensor([[[0.0, 0.0]], [[4.0, 1.0]], [[-3.0, 1.0]]])).tolist()
    [[[1.0, 0.25]], [[0.0, 0.0]]]
    """
    front = scores[1:].float()
    mean = front.mean(dim=(1, 2))
    found = (mean > 0) | (mean == mean.max())
    maps = front.clamp_min(0)
    maps = maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-6)
    return maps * found[:, None, None]


def with_background(threshold: float, maps: torch.Tensor) -> torch.Tensor:
    """Return maps [C, h, w] whose class 0, the background, is `threshold` everywhere, from maps [C - 1, h, w]."""
    return torch.cat([torch.full_like(maps[:1], threshold), maps])


def cam_scores(
    model: FCN, val: BagSet, *, longest_side: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Mean IU at the best threshold, and that threshold; class 0 is the background."""
    network = fused(model.eval())
    evaluations = {threshold: Evaluation(val.classes) for threshold in THRESHOLDS}
    for bag in tqdm(val.bags, desc="score maps", unit="photo", disable=not progress):
        photo = load_photo(bag)
        size = (photo.shape[0], photo.shape[1])
        truth = load_mask(bag, val, size=size)
        score_map = tta_score_map(network, photo, longest_side=longest_side)
        maps = score_map.map(lambda scores: activation_maps(scores.cpu()))
        for threshold, evaluation in evaluations.items():
            evaluation.update(maps.map(partial(with_background, threshold)).argmax_mask(size), truth)
    scored = {threshold: evaluation.compute().to_json() for threshold, evaluation in evaluations.items()}
    best = max(scored, key=lambda threshold: scored[threshold]["mean_iu"] or 0.0)
    return {
        "mean_iu": {"plain": scored[best]["mean_iu"]},
        "by_photo": {"plain": scored[best]["by_photo"]},
        "per_class_iu": scored[best]["per_class_iu"],
        "threshold": best,
        "photos": len(val),
    }
