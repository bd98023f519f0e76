"""Run lengths: worked by hand, against slow readers, and against the tools that read them."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from milseg.annotations.rle import coco_counts, coco_rle, coco_string, label_studio_rle, run_lengths
from milseg.data.image import UInt8

from .helpers import blobs, mask_of, masks, read_coco_rle, read_coco_string, read_label_studio_rle

brush_reason = (
    "label-studio-sdk is not installed; it pins other versions than this package's, use its own venv"
)


@pytest.mark.parametrize(
    ("bits", "lengths"),
    [([0], [1]), ([1], [0, 1]), ([0, 0, 1, 1, 1, 0], [2, 3, 1]), ([1, 0], [0, 1, 1]), ([1, 1], [0, 2])],
)
def test_run_lengths_by_hand(bits: list[int], lengths: list[int]) -> None:
    assert run_lengths(np.array(bits, dtype=bool)).tolist() == lengths


def test_coco_counts_go_down_the_columns() -> None:
    # Columns of the mask: 0 0, 1 0, 1 1.
    assert coco_counts(mask_of([0, 1, 1], [0, 0, 1]) == 1).tolist() == [2, 1, 1, 2]


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([0], "0"),
        ([15], "?"),  # 15 + 48
        ([16], "`0"),  # 16 has bit 4 set: another group says that it is no minus sign
        ([31], "o0"),
        ([32], "P1"),  # groups 0 and 1; 0 + 32 + 48, 1 + 48
        ([6, 1, 40, 4], "61X13"),  # 40 = 8 + 1 * 32; 4 - 1 = 3
        ([6, 9, 2, 4], "692K"),  # 4 - 9 = -5 = 27 in five bits
        ([6, 9, 6, 4, 2], "696KL"),  # the fifth: 2 - 6 = -4 = 28
        ([0, 50, 1, 10], "0b11hN"),  # 10 - 50 = -40: groups 24 and -2 = 30
    ],
)
def test_coco_text_by_hand(counts: list[int], text: str) -> None:
    assert coco_string(np.array(counts)) == text
    assert read_coco_string(text) == counts


@given(st.lists(st.integers(1, 10**8), min_size=1, max_size=30))
def test_coco_text_keeps_any_counts(counts: list[int]) -> None:
    assert read_coco_string(coco_string(np.array(counts))) == counts


@given(masks((0, 1)))
def test_coco_rle_against_the_slow_reader(mask: UInt8) -> None:
    np.testing.assert_array_equal(read_coco_rle(coco_rle(mask == 1)), mask == 1)


@given(masks((0, 1), side=40))
def test_coco_rle_is_byte_for_byte_that_of_pycocotools(mask: UInt8) -> None:
    tool = pytest.importorskip("pycocotools.mask")
    expected = tool.encode(np.asfortranarray(mask))
    assert coco_rle(mask == 1) == {"size": expected["size"], "counts": expected["counts"].decode()}


def test_coco_rle_of_a_large_mask_is_that_of_pycocotools() -> None:
    tool = pytest.importorskip("pycocotools.mask")
    mask = blobs(375, 500, 2)
    assert coco_rle(mask == 1)["counts"] == tool.encode(np.asfortranarray(mask))["counts"].decode()


def test_label_studio_by_hand() -> None:
    # 8 bytes for two pixels; words of 8 bits; lengths of 3, 4, 8 or 16 bits. Then twice: 1 (repeated), 00
    # (3 bits), 011 (4 times), the word.
    parts = [f"{8:032b}", "00111", "0010", "0011", "0111", "1111"]
    parts += ["1", "00", "011", "00000000", "1", "00", "011", "11111111"]
    bits = "".join(parts)
    bits += "0" * (-len(bits) % 8)
    by_hand = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    assert by_hand == [0, 0, 0, 8, 57, 27, 252, 96, 17, 255, 128]
    assert label_studio_rle(np.array([[False, True]])) == by_hand


# Pixels of a run where the code of its length changes; 16384 pixels are 65536 bytes, the most of one piece.
@pytest.mark.parametrize("run", [1, 2, 3, 4, 5, 63, 64, 65, 16383, 16384, 16385, 32768, 40000])
@pytest.mark.parametrize("first", [False, True])
def test_label_studio_run_lengths(run: int, first: bool) -> None:
    mask = np.array([[first] * run + [not first]])
    assert read_label_studio_rle(label_studio_rle(mask)) == np.repeat(mask.ravel() * 255, 4).tolist()
    assert read_label_studio_rle(label_studio_rle(mask[:, :run])) == [255 * first] * (4 * run)


@given(masks((0, 1)))
def test_label_studio_against_the_slow_reader(mask: UInt8) -> None:
    expected = np.repeat(mask.ravel().astype(int) * 255, 4).tolist()
    assert read_label_studio_rle(label_studio_rle(mask == 1)) == expected


@settings(deadline=None)
@given(masks((0, 1), side=30))
def test_label_studios_own_converter_agrees(mask: UInt8) -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason=brush_reason)
    written = label_studio_rle(mask == 1)
    theirs = brush.mask2rle(mask * 255)
    # Theirs ends with a whole byte of zeros where the bits fill the last one.
    assert theirs[: len(written)] == written
    assert theirs[len(written) :] in ([], [0])
    np.testing.assert_array_equal(brush.decode_rle(written).reshape(*mask.shape, 4)[..., 3], mask * 255)


def test_label_studio_refuses_what_32_bits_cannot_count() -> None:
    huge = np.broadcast_to(np.False_, (2**15, 2**15))
    with pytest.raises(ValueError, match="1,073,741,824 pixels"):
        label_studio_rle(huge)


def test_a_photo_takes_well_under_a_tenth_of_a_second() -> None:
    mask = blobs(375, 500, 2, sigma=4) == 1
    start = time.perf_counter()
    for _ in range(5):
        label_studio_rle(mask)
        coco_rle(mask)
    # About 3 ms on a free core; generous, as the machine may be busy.
    assert (time.perf_counter() - start) / 5 < 0.1


def test_long_runs_take_few_bytes() -> None:
    """A run is cut only where its length does not fit into the longest form, 16 bits."""
    side = 256
    empty = label_studio_rle(np.zeros((side, side), dtype=bool))
    assert read_label_studio_rle(empty) == [0] * (4 * side * side)
    # The head, 32 + 5 + 4 * 4 bits, then 4 pieces of 65,536 bytes: 3 + 16 + 8 bits each.
    assert len(empty) == -(-(53 + 4 * 27) // 8)
