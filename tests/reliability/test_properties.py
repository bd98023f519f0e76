"""What holds for any input: of rules, palette files, tiles and the confusion matrix. Run lengths have theirs in
tests/annotations/test_rle.py.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from milseg.data.bags import VOID
from milseg.data.image import open_mask
from milseg.data.masks import write_mask
from milseg.evaluation.confusion import confusion
from milseg.inference.tiling import pieces
from milseg.rules import RULES


@st.composite
def bags(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Bags of any size with present, absent and unknown tags, padding, segments and masks; scores up to 1e4."""
    batch, classes = draw(st.integers(1, 3)), draw(st.integers(2, 5))
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = 10.0 ** draw(st.integers(-3, 4))
    valid = torch.rand(batch, height, width, generator=g) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    valid[:, 0, 0] |= draw(st.booleans())
    masks = torch.randint(0, classes, valid.shape, generator=g)
    masks[torch.rand(valid.shape, generator=g) < 0.3] = VOID
    return {
        "scores": torch.randn(batch, classes, height, width, generator=g) * size,
        "tags": torch.randint(-1, 2, (batch, classes), generator=g).to(torch.int8),
        "valid": valid,
        "segments": torch.randint(-1, 3, valid.shape, generator=g),
        "masks": masks,
    }


def loss_and_gradient(name: str, given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = given["scores"].clone().requires_grad_()
    rule = RULES[name].load().build(leaf.shape[1])
    extras = {"segments": given["segments"], "masks": given["masks"]}
    loss = rule(leaf, given["tags"], given["valid"], **extras)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), gradient


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=40)
@given(given=bags())
def test_a_rule_is_finite_and_blind_to_padding(name: str, given: dict[str, torch.Tensor]) -> None:
    loss, gradient = loss_and_gradient(name, given)
    assert loss.shape == (len(given["scores"]),)
    assert loss.isfinite().all()
    assert (loss >= -1e-4).all()
    assert gradient.isfinite().all()
    padding = ~given["valid"][:, None].expand_as(gradient)
    assert not gradient[padding].any()
    unknown = (given["tags"] == -1)[:, :, None, None].expand_as(gradient)
    assert not gradient[unknown].any()
    other = {**given, "scores": given["scores"].masked_fill(padding, 7.0)}
    other["masks"] = given["masks"].masked_fill(~given["valid"], VOID)
    torch.testing.assert_close(loss_and_gradient(name, other)[0], loss)


@given(mask=arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_any_mask_comes_back_from_its_file(mask: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mask.png"
        write_mask(path, mask)
        np.testing.assert_array_equal(open_mask(path), mask)


@settings(max_examples=300)
@given(
    pixels=st.integers(1, 3000),
    more=st.integers(1, 500),
    stride=st.sampled_from([1, 2, 4, 8, 16, 32]),
    field=st.integers(1, 300),
    shift=st.floats(-40, 40),
)
def test_tiles_give_each_place_once_with_all_that_it_sees(
    pixels: int, more: int, stride: int, field: int, shift: float
) -> None:
    side, places = field + 2 * stride + more, -(-pixels // stride)
    found = pieces(pixels, places, side, stride=stride, offset=shift, field=field)
    assert [place for piece in found for place in range(piece.first, piece.last)] == list(range(places))
    for piece in found:
        assert piece.start % stride == 0
        assert 0 <= piece.start < piece.stop <= pixels
        assert piece.last > piece.first
        for place in (piece.first, piece.last - 1):
            first, last = shift + stride * place - (field - 1) / 2, shift + stride * place + (field - 1) / 2
            assert piece.start <= max(first, 0)
            assert piece.stop - 1 >= min(last, pixels - 1)


@given(
    pair=st.tuples(st.integers(1, 6), st.integers(0, 30)).flatmap(
        lambda size: st.tuples(
            *[arrays.arrays(np.uint8, size[1], elements=st.sampled_from([*range(size[0]), VOID]))] * 2,
            st.just(size[0]),
        )
    ),
    seed=st.integers(0, 99),
)
def test_a_confusion_matrix_counts_each_pixel_that_is_not_void_once(
    pair: tuple[np.ndarray, np.ndarray, int], seed: int
) -> None:
    prediction, truth, classes = pair
    matrix = confusion(prediction, truth, classes)
    assert matrix.sum() == (truth != VOID).sum()
    assert np.diagonal(matrix).sum() == ((truth != VOID) & (prediction == truth)).sum()
    order = np.random.default_rng(seed).permutation(len(truth))
    np.testing.assert_array_equal(confusion(prediction[order], truth[order], classes), matrix)
