from __future__ import annotations

import numpy as np
import pytest
import torch

from milseg.errors import UserError
from milseg.models.backbones import build_fcn
from milseg.models.fcn import FCN
from milseg.predict import masks_from_scores
from milseg.tiles import out_of_memory, photo_tile_scores, pieces

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
        ("squeezenet1_0", {"output_stride": 8}, (420, 611), 400 * 400),
        ("mobilenet_v2", {"output_stride": 16}, (700, 640), 620 * 620),
    ],
)
def test_tiles_leave_no_seam(
    backbone: str, options: dict[str, int], size: tuple[int, int], most: int
) -> None:
    model, photo = network(backbone, **options), photo_of(*size)
    whole = photo_tile_scores(model, photo, device=CPU)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    tiled = photo_tile_scores(model, photo, device=CPU, most=most)
    assert len(calls) >= 2
    torch.testing.assert_close(tiled, whole, rtol=1e-5, atol=1e-6 * float(whole.abs().max()))
    masks = [
        masks_from_scores(scores, size, stride=model.stride, offset=model.offset) for scores in (whole, tiled)
    ]
    assert float((masks[0] == masks[1]).float().mean()) >= 0.9999


def test_a_device_without_memory_gets_smaller_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    model, photo = network("tiny"), photo_of(300, 300)
    whole = photo_tile_scores(model, photo, device=CPU)
    seen: list[int] = []
    forward = model.forward

    def small(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.shape[2] * images.shape[3])
        if seen[-1] > 160 * 160:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(images)

    monkeypatch.setattr(model, "forward", small)
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
