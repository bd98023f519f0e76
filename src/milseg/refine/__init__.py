"""The table of refiners, and how a name on the command line becomes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from milseg.data.image import UInt8
from milseg.errors import unknown_name
from milseg.refine.crf import dense_crf
from milseg.refine.pamr import pamr, pamr_photo
from milseg.refine.random_walk import transition_matrix, walked, walking_size
from milseg.refine.superpixels import segment_means, superpixel_means, superpixels
from milseg.utils.call_syntax import check_settings, parse_call

__all__ = [
    "REFINERS",
    "Refiner",
    "RefinerEntry",
    "dense_crf",
    "find_refiner",
    "pamr",
    "pamr_photo",
    "segment_means",
    "superpixel_means",
    "superpixels",
    "transition_matrix",
    "walked",
    "walking_size",
]

# (photo uint8 [H, W, 3], probabilities float32 [C, H, W]) to better probabilities [C, H, W].
Refiner = Callable[[UInt8, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class RefinerEntry:
    """A refiner with what listings say.

    Attributes:
        refine: the function; its keyword-only parameters are the options that may be typed.
        about: one line.
    """

    refine: Callable[..., torch.Tensor]
    about: str = ""


REFINERS: dict[str, RefinerEntry] = {
    "crf": RefinerEntry(refine=dense_crf, about="fully connected CRF: like colours and near pixels agree"),
    "pamr": RefinerEntry(refine=pamr_photo, about="each pixel follows its most similar neighbours"),
    "superpixels": RefinerEntry(refine=superpixel_means, about="the mean over each SLIC segment"),
}


def find_refiner(text: str) -> Refiner:
    """The refiner of a name, with its options in parentheses where there are any.

    >>> refine = find_refiner("crf(iterations=5)")
    >>> photo = torch.zeros(2, 3, 3, dtype=torch.uint8).numpy()
    >>> refine(photo, torch.full((2, 2, 3), 0.5)).shape
    torch.Size([2, 2, 3])

    Raises:
        UserError: an unknown name or option; it names the known ones.
    """
    name, settings = parse_call(text)
    if name not in REFINERS:
        raise unknown_name("refiner", name, REFINERS)
    refine = REFINERS[name].refine
    return partial(refine, **check_settings("refiner", name, settings, refine))
