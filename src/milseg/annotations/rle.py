"""Run lengths of binary masks: COCO's compressed counts and Label Studio's packed bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from milseg.data.image import UInt8

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def run_lengths(bits: Bools) -> Ints:
    """Lengths of the runs of equal values, int64 [n], the first run being one of False (perhaps of length 0).

    >>> run_lengths(np.array([True, True, False])).tolist()
    [0, 2, 1]
    """
    edges = np.flatnonzero(bits[1:] != bits[:-1]) + 1
    start = [0, 0] if bits.size and bits[0] else [0]
    bounds = np.concatenate([start, edges, [bits.size]]).astype(np.int64)
    return bounds[1:] - bounds[:-1]


def coco_counts(mask: Bools) -> Ints:
    """COCO's counts of a mask [H, W]: run lengths down the columns, left to right, zeros first."""
    return run_lengths(np.ravel(mask, order="F"))


def coco_string(counts: Ints) -> str:
    """COCO's text for counts.

    From the fourth count on, the difference to the count two before is stored (runs of one kind are often
    alike). Each number becomes groups of five bits, lowest first, bit 5 set when more follow, the sign in the
    last group's bit 4; each group is a letter from chr(48) on.

    Source: `rleToString` of the COCO API (maskApi.c).

    >>> coco_string(np.array([6, 1, 40, 4]))
    '61X13'
    """
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    letters = []
    rest, going = values, np.ones(values.shape, dtype=bool)
    while going.any():
        group = rest & 31
        rest = rest >> 5
        more = going & (rest != np.where(group & 16, -1, 0))
        letters.append(np.where(going, group + 32 * more + 48, 0))
        going = more
    columns = np.stack(letters, axis=1).astype(np.uint8) if letters else np.zeros((0, 1), dtype=np.uint8)
    return columns[columns > 0].tobytes().decode("ascii")


def coco_rle(mask: Bools) -> dict[str, list[int] | str]:
    """COCO's compressed RLE of a mask [H, W], as it stands in a JSON file."""
    return {"size": [int(side) for side in mask.shape], "counts": coco_string(coco_counts(mask))}


# Label Studio: bits of a run's length, for each of the four codes; the ones its own converter writes.
LENGTH_BITS = (3, 4, 8, 16)
WORD_BITS = 8


def label_studio_rle(mask: Bools) -> list[int]:
    """Label Studio's brush RLE of a mask [H, W]: bytes, as numbers 0 to 255.

    It encodes the 4 * H * W bytes of an RGBA picture, 255 in all four channels inside the mask and 0 outside,
    row by row. 32 bits: how many bytes; 5 bits: bits of a word less 1; four times 4 bits: the possible bits
    of a length, less 1. Then for each run: 1 bit (1: one word repeated; 0: different words, never written
    here), 2 bits: which of the four, the length less 1, the word. Zeros fill the last byte.

    Source: `label_studio_sdk.converter.brush`, after thi.ng's rle-pack.

    Raises:
        ValueError: 2**30 pixels or more; the format has 32 bits for their bytes.

    >>> label_studio_rle(np.array([[False, True]]))
    [0, 0, 0, 8, 57, 27, 252, 96, 17, 255, 128]
    """
    if mask.size >= 2**30:
        raise ValueError(f"{mask.size:,} pixels; Label Studio's format holds less than {2**30:,}")
    runs = run_lengths(mask.ravel()) * 4
    words = np.where(np.arange(runs.size) % 2, 255, 0)
    # Runs longer than a length can say are cut; the last piece keeps the rest. A first run of 0 has no piece.
    longest = 1 << LENGTH_BITS[-1]
    pieces = -(-runs // longest)
    lengths = np.full(int(pieces.sum()), longest, dtype=np.int64)
    ends = np.cumsum(pieces)[runs > 0] - 1
    lengths[ends] = (runs - (pieces - 1) * longest)[runs > 0]
    words = np.repeat(words, pieces)
    code = np.searchsorted(1 << np.array(LENGTH_BITS), lengths)
    size = np.array(LENGTH_BITS)[code]
    # One number a token, its bits in the order of writing.
    tokens = (((4 | code) << size) | (lengths - 1)) << WORD_BITS | words
    head = np.array([4 * mask.size, WORD_BITS - 1, *(bits - 1 for bits in LENGTH_BITS)], dtype=np.int64)
    bits = np.concatenate([[32, 5, 4, 4, 4, 4], 3 + size + WORD_BITS])
    packed: list[int] = _pack(np.concatenate([head, tokens]), bits).tolist()
    return packed


def _pack(numbers: Ints, bits: Ints) -> UInt8:
    """The lowest bits[i] bits of each numbers[i], highest first, one after the other, as bytes."""
    starts = np.cumsum(bits) - bits
    position = np.arange(int(bits.sum())) - np.repeat(starts, bits)
    return np.packbits((np.repeat(numbers, bits) >> (np.repeat(bits, bits) - 1 - position)) & 1)
