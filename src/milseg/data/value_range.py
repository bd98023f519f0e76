"""Values of more than 8 bits become 8 bits by one range for the whole set, so that equal values look equal.

A range belongs to a kind of values ("uint16", "int32", "float", ...). Values of 8 bits are never changed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from milseg.data.types import UInt8
from milseg.errors import UserError, unknown_name

# The value that becomes black and the one that becomes white, for each kind of values.
ValueRanges = Mapping[str, tuple[float, float]]

KINDS = ("uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float")
# The largest values of the depths that files come in, 8 to 32 bits; floating-point numbers go to 1 or to some of these.
INTEGER_TOPS = (255, 1023, 4095, 16383, 65535, 2**24 - 1, 2**31 - 1, 2**32 - 1)
FLOAT_TOPS = (1, 255, 65535)
# Of a photo's values, percent: a few hot or dead pixels decide nothing.
LOW, HIGH = 0.1, 99.9
# Of the photos' own low and high values, percent: one odd photo among many decides nothing.
OUTER = 5.0
# Larger numbers are stand-ins for "no value" (-3.4e38 in elevation models).
LARGEST = 1e30
SAMPLED = 2**18  # values of a photo that are looked at
ROWS = 256  # that are scaled together


def kind_of(dtype: np.dtype[Any]) -> str:
    """The kind of values of an array type; "" for uint8.

    >>> kind_of(np.dtype(np.uint8)), kind_of(np.dtype(">u2")), kind_of(np.dtype(np.float64))
    ('', 'uint16', 'float')
    """
    if dtype.kind == "f":
        return "float"
    return "" if dtype == np.uint8 else dtype.newbyteorder("=").name


@dataclass(frozen=True, kw_only=True)
class Span:
    """The values that one photo takes: a low and a high percentile of them."""

    kind: str
    low: float
    high: float


def usable(values: NDArray[Any], nodata: float | None = None) -> NDArray[np.bool_]:
    """Where `values` are numbers that were measured: finite, below 1e30, not the file's mark for no data."""
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            good = np.abs(values) < LARGEST  # false for NaN and infinity
    else:
        good = np.ones(values.shape, dtype=bool)
    if nodata is not None and not math.isnan(nodata):
        good &= values != nodata
    return np.asarray(good)


def span_of(values: NDArray[Any], nodata: float | None = None) -> Span | None:
    """The span of a photo's values [H, W, C]; None for 8 bits, or where no value is usable."""
    kind = kind_of(values.dtype)
    if not kind:
        return None
    step = max(1, math.isqrt(values.size // SAMPLED))
    seen = values[::step, ::step]
    seen = seen[usable(seen, nodata)]
    if not seen.size:
        return None
    low, high = np.percentile(seen, (LOW, HIGH), method="nearest")
    return Span(kind=kind, low=float(low), high=float(high))


def decide_ranges(spans: Iterable[Span | None]) -> dict[str, tuple[float, float]]:
    """One range for each kind of values in a set, from its photos' spans.

    Values that fill more than half of a depth (8, 10, 12, 14, 16, ... bits; 0 to 1, 0 to 255 for floats) get that
    whole depth; others get the span that they take.

    >>> decide_ranges([Span(kind="uint16", low=12, high=3900), Span(kind="float", low=280.5, high=310.0)])
    {'float': (280.5, 310.0), 'uint16': (0.0, 4095.0)}
    """
    found: dict[str, list[Span]] = {}
    for span in spans:
        if span is not None:
            found.setdefault(span.kind, []).append(span)
    return {kind: _range_of(kind, found[kind]) for kind in sorted(found)}


def _range_of(kind: str, spans: Sequence[Span]) -> tuple[float, float]:
    low = float(np.percentile([span.low for span in spans], OUTER, method="nearest"))
    high = float(np.percentile([span.high for span in spans], 100 - OUTER, method="nearest"))
    tops = FLOAT_TOPS if kind == "float" else INTEGER_TOPS
    top = next((top for top in tops if high <= top * 1.001), None)
    if top is not None and low >= -0.01 * top and (high - low > top / 2 or low == high >= 0):
        return 0.0, float(top)
    return (low, high) if high > low else (low, low + 1.0)


def photo_range(
    values: NDArray[Any], nodata: float | None, ranges: ValueRanges | None
) -> tuple[float, float]:
    """The range for a photo's values: the set's, or one from this photo alone where the set has none of its kind."""
    kind = kind_of(values.dtype)
    if ranges is not None and kind in ranges:
        return ranges[kind]
    return decide_ranges([span_of(values, nodata)]).get(kind, (0.0, 1.0))


def to_eight_bits(values: NDArray[Any], low_high: tuple[float, float], nodata: float | None = None) -> UInt8:
    """Scale values [H, W, C] so that low becomes 0 and high 255; others are clipped, unusable ones become 0.

    >>> to_eight_bits(np.array([[[-1.0], [0.5], [2.0], [np.nan], [np.inf]]]), (0.0, 1.0)).ravel().tolist()
    [0, 128, 255, 0, 0]
    """
    low, high = low_high
    if values.dtype.kind == "u" and values.dtype.itemsize == 2 and values.size > 2**16:
        table = to_eight_bits(np.arange(2**16, dtype=np.uint16)[:, None, None], low_high, nodata)
        return np.asarray(table.ravel()[values])
    scaled = np.empty(values.shape, dtype=np.uint8)
    for start in range(0, len(values), ROWS):
        rows = values[start : start + ROWS]
        numbers = np.where(usable(rows, nodata), rows, low).astype(np.float64)
        numbers = (numbers - low) * (255.0 / (high - low))
        scaled[start : start + ROWS] = np.rint(np.clip(numbers, 0.0, 255.0)).astype(np.uint8)
    return scaled


def range_words(ranges: ValueRanges) -> str:
    """The ranges as people read them.

    >>> range_words({"float": (0.0, 1.0), "uint16": (0.0, 4095.0)})
    'float from 0 to 1, uint16 from 0 to 4,095'
    """
    return ", ".join(f"{kind} from {low:,.6g} to {high:,.6g}" for kind, (low, high) in ranges.items())


def check_ranges(ranges: ValueRanges) -> None:
    """Check what a model's description says of ranges.

    Raises:
        UserError: an unknown kind, or a range whose second number is not the larger one.
    """
    for kind, (low, high) in ranges.items():
        if kind not in KINDS:
            raise unknown_name("kind of values", str(kind), KINDS)
        if not low < high:
            raise UserError(
                f"value_ranges: {kind} from {low:g} to {high:g}; expected a low and a higher number"
            )
