"""Cases 18 and 26: many clients, a full line, damaged photos without end."""

from __future__ import annotations

import io
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from milseg.inference.segmenter import Segmenter

from .conftest import Live, Start, photo, png_of

PNG = {"Accept": "image/png"}


def test_16_clients_get_their_own_masks(live: Live, segmenter: Segmenter) -> None:
    photos = [photo(seed, (20 + seed % 5, 30 + seed % 3)) for seed in range(16)]
    expected = [segmenter.segment(one).mask for one in photos]

    def client(number: int) -> None:
        for turn in range(4):
            which = (number + turn) % 16
            answer = live.ask("/v1/segment", png_of(photos[which]), PNG)
            assert answer.status == 200
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.data))), expected[which])

    with ThreadPoolExecutor(16) as clients:
        assert list(clients.map(client, range(16))) == [None] * 16
    assert live.server.engine.taken == 0


class Held(Segmenter):
    """A segmenter that waits until it is let go."""

    def __init__(self, like: Segmenter) -> None:
        super().__init__(like.model, like.spec)
        self.go, self.begun = threading.Event(), threading.Semaphore(0)

    def segment(self, *arguments, **options):  # type: ignore[no-untyped-def]
        self.begun.release()
        assert self.go.wait(60)
        return super().segment(*arguments, **options)


def test_a_full_line_is_503_at_once(start: Start, segmenter: Segmenter) -> None:
    held = Held(segmenter)
    live = start(model=held, workers=1, queue=2)
    with ThreadPoolExecutor(3) as clients:
        waiting = [clients.submit(live.ask, "/v1/segment", png_of(photo(i)), PNG) for i in range(3)]
        assert held.begun.acquire(timeout=60)
        while live.server.engine.taken < 3:
            threading.Event().wait(0.01)
        for path, body in (("/v1/segment", png_of(photo(3))), ("/predict", b"{}")):
            refused = live.ask(path, body)
            assert (refused.status, refused.headers["retry-after"]) == (503, "2")
            assert "3 photos are in work or wait" in refused.json()["detail"]
        # Asking how it is never waits for the photos.
        assert live.ask("/ready").status == 200
        assert "milseg_photos_taken 3" in live.ask("/metrics").data.decode()
        held.go.set()
        assert [one.result().status for one in waiting] == [200, 200, 200]
    assert live.ask("/v1/segment", png_of(photo(3))).status == 200


def test_photos_wait_for_the_worker_one_by_one(start: Start, segmenter: Segmenter) -> None:
    """One worker: the second photo is not begun before the first is done."""
    held = Held(segmenter)
    live = start(model=held, workers=1, queue=2)
    with ThreadPoolExecutor(2) as clients:
        waiting = [clients.submit(live.ask, "/v1/segment", png_of(photo(i)), PNG) for i in range(2)]
        assert held.begun.acquire(timeout=60)
        assert not held.begun.acquire(timeout=0.3)
        held.go.set()
        assert [one.result().status for one in waiting] == [200, 200]


def damaged(count: int) -> list[bytes]:
    """JPEGs cut short or with bytes changed at random, none of which still opens."""
    out = io.BytesIO()
    Image.fromarray(photo(0, (64, 64))).save(out, format="JPEG")
    whole, random = out.getvalue(), np.random.default_rng(0)
    found: list[bytes] = []
    while len(found) < count:
        data = bytearray(whole[: random.integers(20, len(whole) - 60)])
        for at in random.integers(2, len(data), 3):
            data[at] = random.integers(256)
        found.append(bytes(data))
    return found


def resident() -> int:
    """Memory of this process, KiB."""
    return int(
        next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line).split()[
            1
        ]
    )


@pytest.mark.parametrize(
    "count", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read as Linux tells it")
def test_damaged_photos_cost_no_memory(live: Live, count: int) -> None:
    photos = damaged(100)

    def statuses(number: int) -> Counter[int]:
        return Counter(live.ask("/v1/segment", photos[i % len(photos)]).status for i in range(number))

    assert statuses(100) == {422: 100}  # caches and pools fill
    before = resident()
    assert statuses(count) == {422: count}
    assert resident() - before < 20 * 1024
