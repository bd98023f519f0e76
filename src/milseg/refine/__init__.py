"""The table of refiners, and how a text such as `crf(iterations=5)` becomes one; loads nothing before it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from math import inf
from typing import TYPE_CHECKING, TypeAlias

from milseg.errors import unknown_name
from milseg.utils.call_syntax import check_settings, parse_call
from milseg.utils.registry import load_object

if TYPE_CHECKING:
    import torch

    from milseg.data.image import UInt8

# (photo uint8 [H, W, 3], probabilities float32 [C, H, W]) to better probabilities [C, H, W].
Refiner: TypeAlias = "Callable[[UInt8, torch.Tensor], torch.Tensor]"


@dataclass(frozen=True, kw_only=True)
class RefinerRow:
    """One row of the table.

    Attributes:
        where: "module:function"; the function's keyword-only parameters are the options that may be typed.
        about: one line for listings.
        limits: option -> its lowest and its highest value. A model folder names a refiner too, so a limit also keeps a
            damaged or hostile one from taking hours.
    """

    where: str
    about: str
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)


REFINERS: dict[str, RefinerRow] = {
    "crf": RefinerRow(
        where="milseg.refine.crf:dense_crf",
        about="fully connected CRF: like colours and near pixels agree",
        limits={
            "iterations": (0, 100),
            "spatial_sigma": (0.01, 1e4),
            "spatial_weight": (0, 1e4),
            "bilateral_sigma_xy": (0.01, 1e4),
            "bilateral_sigma_rgb": (0.01, 1e4),
            "bilateral_weight": (0, 1e4),
            "scale": (1, 64),
            "max_pixels": (1, 4e6),
        },
    ),
    "pamr": RefinerRow(
        where="milseg.refine.pamr:pamr_photo",
        about="each pixel follows its most similar neighbours",
        limits={"iterations": (0, 100)},
    ),
    "superpixels": RefinerRow(
        where="milseg.refine.superpixels:superpixel_means",
        about="the mean over each SLIC segment",
        limits={"count": (1, 100_000), "compactness": (1e-3, inf)},
    ),
}


@lru_cache(maxsize=64)
def find_refiner(text: str) -> Refiner:
    """Return the refiner of a name, with its options in parentheses if it has any.

    >>> import torch
    >>> refine = find_refiner("crf(iterations=5)")
    >>> photo = torch.zeros(2, 3, 3, dtype=torch.uint8).numpy()
    >>> refine(photo, torch.full((2, 2, 3), 0.5)).shape
    torch.Size([2, 2, 3])

    Raises:
        UserError: an unknown name or option, which names the known ones, or a value beyond its limits.
    """
    name, settings = parse_call(text)
    if name not in REFINERS:
        raise unknown_name("refiner", name, REFINERS)
    row = REFINERS[name]
    function = load_object(row.where)
    return partial(function, **check_settings("refiner", name, settings, function, row.limits))
