from __future__ import annotations

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from milseg.errors import UserError
from milseg.inference.score_map import ScoreMap
from milseg.inference.tiling import _Band, out_of_memory, parts_of, photo_tile_scores, pieces
from milseg.models.backbones import build_fcn
from milseg.models.fcn import FCN

CPU = torch.device("cpu")


def network(backbone: str, **options: object) -> FCN:
    model = build_fcn(backbone, 3, seed=1, **options).eval()  # type: ignore[arg-type]
    model.replace_score_layer(3, std=0.5, generator=torch.Generator().manual_seed(2))
    return model


def photo_of(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("pixels", [60, 61, 97, 100, 333, 1001])
def test_pieces_give_every_place_once_and_see_all_that_it_sees(pixels: int) -> None:
    stride, offset, field = 4, 1.5, 11
    places = -(-pixels // stride)
    found = pieces(pixels, places, 60, stride=stride, offset=offset, field=field)
    assert [place for piece in found for place in range(piece.first, piece.last)] == list(range(places))
    for piece in found:
        assert piece.start % stride == 0
        assert piece.stop - piece.start <= 60 + stride
        for place in (piece.first, piece.last - 1):
            centre = offset + stride * place
            assert piece.start == 0 or centre - 5 >= piece.start
            assert piece.stop == pixels or centre + 5 <= piece.stop - 1
    assert (found[0].start, found[-1].stop) == (0, pixels)


@pytest.mark.parametrize(
    ("backbone", "options", "size", "most"),
    [
        ("tiny", {}, (301, 259), 150 * 150),
        ("squeezenet1_0", {"output_stride": 8}, (420, 611), 300 * 300),
        ("mobilenet_v2", {"output_stride": 16}, (700, 640), 200 * 200),
        ("mobilenet_v2", {"output_stride": 32}, (701, 333), 230 * 230),
        ("resnet18", {"output_stride": 8}, (610, 420), 250 * 250),
    ],
)
def test_tiles_leave_no_seam(
    backbone: str, options: dict[str, int], size: tuple[int, int], most: int
) -> None:
    model, photo = network(backbone, **options), photo_of(*size)
    whole = photo_tile_scores(model, photo, device=CPU)
    calls: list[int] = []
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_hook(lambda *_: calls.append(1))
    tiled = photo_tile_scores(model, photo, device=CPU, tile_pixels=most)
    assert len(calls) >= 2
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-6 * float(whole.abs().max()))
    masks = [
        ScoreMap(scores=scores[0], stride=model.stride, offset=model.offset, input_size=size).argmax_mask(
            size
        )
        for scores in (whole, tiled)
    ]
    assert (masks[0] == masks[1]).mean() >= 0.9999


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        *(("vgg16", {"vgg_padding": padding}) for padding in ("same", "pad100", "valid")),
        ("convnext_tiny", {}),
        ("mobilenet_v2", {"output_stride": 8}),
    ],
)
def test_the_parts_of_a_network_one_after_the_other_are_the_network(
    backbone: str, options: dict[str, object]
) -> None:
    model = network(backbone, **options)
    parts = parts_of(model, 900 * 900)
    assert len(parts) > 2
    x = torch.randn(1, 3, 250, 330, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        scores = model(x)
        stride, offset, field = 1, 0.0, 1
        for part in parts:
            size = (part.length(x.shape[2]), part.length(x.shape[3]))
            x = part.run(x)
            assert x.shape[2:] == size
            offset += stride * part.offset
            field += stride * (part.field - 1)
            stride *= part.stride
    torch.testing.assert_close(x, scores)
    assert (stride, offset, field) == (model.stride, model.offset, model.field)


def test_a_network_that_cannot_be_taken_apart_gets_tiles_that_suit_its_field() -> None:
    model, seen = network("mobilenet_v2", output_stride=16), list[tuple[int, int]]()

    class Whole:
        stride, offset, field, map_size = (
            model.stride,
            model.offset,
            model.field,
            staticmethod(model.map_size),
        )

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            seen.append((images.shape[2], images.shape[3]))
            return torch.zeros(1, 3, *model.map_size(*seen[-1]))

    photo_tile_scores(Whole(), np.zeros((1900, 2400, 3), np.uint8), device=CPU)
    assert len(seen) == 2
    # As a square of four fields or less, where a quarter of each tile's side is computed twice.
    assert max(rows * columns for rows, columns in seen) <= (4 * model.field) ** 2


def test_parts_see_a_small_share_of_their_tiles_and_tiles_have_a_bounded_size() -> None:
    most = 2048 * 2048
    (whole,) = parts_of(network("tiny"), most)
    assert (whole.stride, whole.field, whole.side) == (4, 67, 2048)
    parts = parts_of(network("mobilenet_v2", output_stride=16), most)
    assert parts[0].side == 2048
    assert all(part.field <= 0.035 * part.side for part in parts)
    # The last one ends in 1,280 channels, four bytes each.
    assert parts[-1].side ** 2 * 1280 * 4 <= 512 * 2**20


def test_rows_of_a_map_are_kept_only_as_long_as_they_are_asked_for() -> None:
    made: list[weakref.ref[torch.Tensor]] = []

    def strips() -> Iterator[torch.Tensor]:
        for number in range(4):
            strip = torch.full((1, 1, 4, 2), float(number))
            made.append(weakref.ref(strip))
            yield strip

    band = _Band(strips())
    assert band.rows(0, 6)[0, 0, :, 0].tolist() == [0, 0, 0, 0, 1, 1]
    assert band.rows(5, 12)[0, 0, :, 0].tolist() == [1, 1, 1, 2, 2, 2, 2]
    assert made[0]() is None
    assert band.rows(11, 16)[0, 0, :, 0].tolist() == [2, 3, 3, 3, 3]
    assert [ref() is None for ref in made] == [True, True, False, False]


def test_a_device_without_memory_gets_smaller_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    model, photo = network("tiny"), photo_of(300, 300)
    whole = photo_tile_scores(model, photo, device=CPU)
    seen: list[int] = []
    first = model.body[0]  # type: ignore[index]
    forward = first.forward

    def small(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.shape[2] * images.shape[3])
        if seen[-1] > 160 * 160:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(images)

    monkeypatch.setattr(first, "forward", small)
    torch.testing.assert_close(photo_tile_scores(model, photo, device=CPU), whole, rtol=1e-5, atol=1e-5)
    assert seen[0] == 300 * 300
    assert max(seen[2:]) <= 160 * 160


def test_no_memory_at_all_is_told_and_other_errors_pass() -> None:
    class Full:
        stride, offset, field = 4, 0.0, 67
        error: Exception = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 4 bytes")

        def map_size(self, height: int, width: int) -> tuple[int, int]:
            return -(-height // 4), -(-width // 4)

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            raise self.error

    model = Full()
    with pytest.raises(
        UserError, match="300 x 200 pixels does not fit into the memory of cpu, not even in tiles"
    ):
        photo_tile_scores(model, photo_of(200, 300), device=CPU)
    model.error = RuntimeError("size mismatch")
    with pytest.raises(RuntimeError, match="size mismatch"):
        photo_tile_scores(model, photo_of(200, 300), device=CPU)
    assert out_of_memory(torch.OutOfMemoryError())
    assert not out_of_memory(ValueError("allocate memory"))
