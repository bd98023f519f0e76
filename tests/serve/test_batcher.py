"""Several threads' photos in one call of the network."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import milseg.serve.engine
from milseg.inference.segmenter import Segmenter
from milseg.serve.batcher import DynamicBatcher
from milseg.serve.engine import start_engine

from .conftest import photo


class Recorded(torch.nn.Module):
    """A network that notes how many photos it sees, and waits before each call until it is let go."""

    stride, offset, field = 4, 0.0, 67

    def __init__(self) -> None:
        super().__init__()
        self.go, self.begun = threading.Event(), threading.Semaphore(0)
        self.seen: list[int] = []

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.begun.release()
        assert self.go.wait(60)
        self.seen.append(len(images))
        if images.shape[3] == 13:
            raise ValueError("thirteen")
        return images[:, :1] * 2


def images(value: float, width: int = 5) -> torch.Tensor:
    return torch.full((1, 3, 4, width), value)


@pytest.fixture
def network() -> Recorded:
    return Recorded()


def test_waiting_photos_of_one_size_go_together(network: Recorded) -> None:
    together = DynamicBatcher(network, workers=1, most=3)
    with ThreadPoolExecutor(7) as threads:
        first = threads.submit(together, images(0))
        assert network.begun.acquire(timeout=60)  # the lane is taken: the others gather
        rest = [threads.submit(together, images(i)) for i in (1, 2, 3, 4)]
        other = threads.submit(together, images(9, width=7))
        while len(together._waiting) < 5:
            threading.Event().wait(0.01)
        network.go.set()
        for value, answer in zip((0, 1, 2, 3, 4), (first, *rest), strict=True):
            assert answer.result(60).tolist() == (images(value)[:, :1] * 2).tolist()
        assert other.result(60).shape == (1, 1, 4, 7)
    assert network.seen[0] == 1
    # Four of one size, three at most together, and one of another size.
    assert sorted(network.seen[1:]) == [1, 1, 3]
    assert together._free == 1


def test_an_error_reaches_its_callers_and_frees_the_lane(network: Recorded) -> None:
    network.go.set()
    together = DynamicBatcher(network, workers=1, most=3)
    with pytest.raises(ValueError, match="thirteen"):
        together(images(0, width=13))
    assert together(images(1)).shape == (1, 1, 4, 5)


def test_photos_go_one_by_one_on_a_processor_unless_told(segmenter: Segmenter) -> None:
    """Gathering them there was slower than two workers that take one photo each."""
    start_engine(segmenter, workers=2, batch=0, queue=0, max_pixels=10**6).close()
    assert not isinstance(segmenter.network, DynamicBatcher)


def test_photos_gather_on_a_gpu_unless_told(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milseg.serve.engine, "device_of", lambda network: torch.device("cuda"))
    start_engine(segmenter, workers=2, batch=0, queue=0, max_pixels=10**6).close()
    assert isinstance(segmenter.network, DynamicBatcher)
    assert segmenter.network.most == 4


def test_masks_stay_what_they_are_alone(segmenter: Segmenter) -> None:
    """Photos of two sizes from eight threads; also that batches do occur."""
    photos = [photo(seed, (40, 56) if seed % 3 else (41, 50)) for seed in range(24)]
    alone = [segmenter.segment(one).mask for one in photos]
    shared = Segmenter(segmenter.model, segmenter.spec)
    engine = start_engine(shared, workers=1, batch=4, queue=0, max_pixels=10**6)
    assert isinstance(shared.network, DynamicBatcher)
    sizes: list[int] = []
    inner = shared.network.network
    hook = inner.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))  # type: ignore[union-attr]
    with ThreadPoolExecutor(8) as threads:
        for mask, expected in zip(
            threads.map(lambda one: shared.segment(one).mask, photos), alone, strict=True
        ):
            np.testing.assert_array_equal(mask, expected)
    hook.remove()
    engine.close()
    assert sum(sizes) == 24
    assert max(sizes) > 1
