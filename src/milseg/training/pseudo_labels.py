"""Self-training: a model's own masks of its training photos, with their tags known, are the next round's targets.

The tags of a training photo say which classes its mask may hold; the photo's colours say where they end. A model's map
with both heeded is better than what it says of a new photo, so a network taught by such masks is better than the one
that made them. Made from tags alone: the true masks, where there are any, are never opened.

Source: the rounds of EM in Papandreou et al. 2015 and of the retraining in later work; see docs/masks-worth-using.md.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from milseg.data.bags import PRESENT, VOID, Bag, BagSet, load_photo
from milseg.data.image import UInt8
from milseg.data.masks import write_mask
from milseg.distributed.collectives import errors_on_all_ranks, rank_slice
from milseg.inference.segmenter import Segmenter
from milseg.utils.parallel import one_thread, prefetch_map, processors


def pseudo_label(segmenter: Segmenter, photo: UInt8, tags: tuple[int, ...], *, sure: float) -> UInt8:
    """The mask of a photo uint8 [H, W, 3] whose tags are known, uint8 [H, W]; pixels that are not sure are VOID.

    A refined map is sure of every pixel, right or wrong. What is sure here is where the map before it agreed: the
    refiner moves a border, and what it moved the border over is left open.

    Args:
        segmenter: its inference says which views and which refiner.
        tags: PRESENT, ABSENT or UNKNOWN for each class; only present classes can be in the mask.
        sure: the least probability, before the refiner, of the class that the mask gives to a pixel; 0 to 1.
    """
    allowed = torch.tensor(tags) == PRESENT
    size = (photo.shape[0], photo.shape[1])
    if not allowed.any():
        return np.full(size, VOID, dtype=np.uint8)
    score_map = segmenter.score_map(photo, allowed=allowed)
    mask = segmenter.refined(photo, score_map).argmax_mask(size)
    mask[score_map.probability_of(mask).numpy() < sure] = VOID
    return mask


def write_own_masks(
    segmenter: Segmenter, bags: BagSet, folder: Path, *, sure: float, progress: bool = True
) -> BagSet:
    """The bags with one's own masks, each a palette PNG below `folder`; masks that are there already are kept.

    Each file appears whole, so a run that was stopped goes on where it was. The bags' true masks are not opened.
    Several processes make a share each, and leave when all are there.
    """
    paths = [folder / f"{bag.name}.png" for bag in bags.bags]
    own = rank_slice(len(bags))
    todo = [(b, p) for b, p in zip(bags.bags[own], paths[own], strict=True) if not os.path.exists(p)]
    with errors_on_all_ranks():
        for made in {path.parent for path in paths[own]}:
            made.mkdir(parents=True, exist_ok=True)

        def make(job: tuple[Bag, Path]) -> None:
            bag, path = job
            write_mask(path, pseudo_label(segmenter, load_photo(bag), bag.tags, sure=sure))

        for _ in tqdm(
            prefetch_map(make, todo, workers=processors(), begin=one_thread),
            total=len(todo),
            desc="own masks",
            unit="photo",
            disable=not progress,
        ):
            pass
    with_masks = tuple(replace(bag, mask=path) for bag, path in zip(bags.bags, paths, strict=True))
    return replace(bags, bags=with_masks, mask_values=None)
