"""The ranges of values that a prediction reads photos of more than 8 bits by, where the model has none for them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from milseg.annotations.cleanup import read_header
from milseg.config import PredictOptions
from milseg.data.photo_statistics import sample_ranges
from milseg.data.sources.photo_inputs import PhotoFile
from milseg.data.value_range import check_ranges, range_words
from milseg.distributed.launch import is_first
from milseg.inference.merging import parse_shard
from milseg.inference.model_folder import ModelSpec
from milseg.inference.prediction_files import LEDGER

log = logging.getLogger("milseg")


def _stored_ranges(record: Any) -> dict[str, tuple[float, float]] | None:
    """The ranges in the record of a run; None where it holds something else, of which opening it tells."""
    try:
        ranges = {str(kind): (float(low), float(high)) for kind, (low, high) in (record or {}).items()}
        check_ranges(ranges)
        return ranges
    except (ValueError, TypeError, AttributeError):
        return None


def sampled_ranges(
    options: PredictOptions, spec: ModelSpec, photos: Sequence[PhotoFile]
) -> dict[str, tuple[float, float]]:
    """Ranges for kinds of values that the model knows none of: from these photos, the same for all; told.

    A run that goes on takes those that it began with.
    """
    begun = [options.out]
    if options.shard:
        begun.insert(0, parse_shard(options.shard).folder(options.out))
    headers = [read_header(folder / ".parts" / LEDGER) for folder in begun] if options.resume else []
    stored = next((header for header in headers if header is not None), None)
    ranges = None if stored is None else _stored_ranges(stored.get("value_ranges"))
    if ranges is None:
        ranges = sample_ranges([photo.path for photo in photos], max_pixels=options.max_pixels)
    ranges = {kind: pair for kind, pair in ranges.items() if kind not in spec.value_ranges}
    if ranges and is_first():
        log.warning(
            f"the model was not trained on photos like these; black to white is {range_words(ranges)}, by "
            "these photos themselves"
        )
    return ranges
