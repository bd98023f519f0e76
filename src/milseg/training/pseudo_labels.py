"""Pseudo-labels: a model's masks of its training photos, with their tags known, are the next round's targets.

The tags of a training photo say which classes its mask may hold, and the photo's colours say where they end. Masks made
with both are better than the model's masks of new photos, so a network that learns from them is better than the one
that made them. They are made from tags alone: true masks are never opened.

Source: the rounds of EM in Papandreou et al. 2015 and of the retraining in later work; see docs/masks-worth-using.md.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
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


def pseudo_label(
    segmenter: Segmenter, photo: UInt8, tags: tuple[int, ...], *, min_confidence: float
) -> UInt8:
    """Return the mask of a photo uint8 [H, W, 3] whose tags are known, uint8 [H, W]; unsure pixels are VOID.

    CRF outputs are over-confident everywhere. The confidence is therefore that of the map before refinement: pixels
    whose class the refiner changed against it become void.

    Args:
        segmenter: its inference says which test-time augmentation and which refiner.
        tags: PRESENT, ABSENT or UNKNOWN for each class; only present classes can be in the mask.
        min_confidence: the least probability, before the refiner, of a pixel's class; 0 to 1.
    """
    allowed = torch.tensor(tags) == PRESENT
    size = (photo.shape[0], photo.shape[1])
    if not allowed.any():
        return np.full(size, VOID, dtype=np.uint8)
    score_map = segmenter.score_map(photo, allowed=allowed)
    mask = segmenter.refined(photo, score_map).argmax_mask(size)
    mask[score_map.probability_of(mask).numpy() < min_confidence] = VOID
    return mask


def write_pseudo_labels(
    segmenter: Segmenter, bags: BagSet, folder: Path, *, min_confidence: float, progress: bool = True
) -> BagSet:
    """Return the bags with pseudo-labels, each a palette PNG below `folder`; existing files are kept.

    Each file appears whole, so a stopped run goes on where it was. The bags' true masks are not opened. Each of
    several processes makes its share, and returns when all files exist.
    """
    paths = [folder / f"{bag.name}.png" for bag in bags.bags]
    share = rank_slice(len(bags))
    missing = [(b, p) for b, p in zip(bags.bags[share], paths[share], strict=True) if not os.path.exists(p)]
    with errors_on_all_ranks():
        for parent in {path.parent for path in paths[share]}:
            parent.mkdir(parents=True, exist_ok=True)
        written = prefetch_map(
            partial(_write_one, segmenter, min_confidence),
            missing,
            workers=processors(),
            begin=one_thread,
        )
        for _ in tqdm(written, total=len(missing), desc="pseudo-labels", unit="photo", disable=not progress):
            pass
    with_masks = tuple(replace(bag, mask=path) for bag, path in zip(bags.bags, paths, strict=True))
    return replace(bags, bags=with_masks, mask_values=None, mask_names=None)


def _write_one(segmenter: Segmenter, min_confidence: float, job: tuple[Bag, Path]) -> None:
    bag, path = job
    write_mask(path, pseudo_label(segmenter, load_photo(bag), bag.tags, min_confidence=min_confidence))
