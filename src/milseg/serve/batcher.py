"""Photos that come at the same time go through the network together."""

from __future__ import annotations

import threading
from collections import deque

import torch
from torch import nn

from milseg.inference.tiling import Network


class _Call:
    """One photo on its way through the network."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images
        self.taken = False
        self.scores: torch.Tensor | None = None
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.scores is not None or self.error is not None


class DynamicBatcher(nn.Module):
    """A network for several threads at once.

    At most `workers` of them compute. While they do, the others' photos gather, and whoever gets a lane next takes up
    to `most` waiting photos of its own photo's size along. Nothing ever waits for a batch to fill, and each photo's
    scores are those it has alone, to the rounding of the network's own batches.

    Args:
        network: what computes.
        workers: calls of it at the same time.
        most: photos in one call.
    """

    def __init__(self, network: Network, *, workers: int, most: int) -> None:
        super().__init__()
        self.network = network
        self.stride, self.offset, self.field = network.stride, network.offset, network.field
        self.most, self._free = most, workers
        self._waiting: deque[_Call] = deque()
        self._changed = threading.Condition()

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        return self.network.map_size(height, width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[1, 3, H, W] to [1, C, h, w]."""
        call = _Call(images)
        with self._changed:
            self._waiting.append(call)
            self._changed.wait_for(lambda: call.done or (self._free and not call.taken))
            calls = [] if call.done else self._take(call)
        if calls:
            self._compute(calls)
        if call.error is not None:
            raise call.error
        assert call.scores is not None
        return call.scores

    def _take(self, call: _Call) -> list[_Call]:
        """A lane, and the calls that go through it; with the lock held."""
        alike = [
            other for other in self._waiting if other is not call and other.images.shape == call.images.shape
        ]
        calls = [call, *alike[: self.most - 1]]
        for one in calls:
            one.taken = True
            self._waiting.remove(one)
        self._free -= 1
        return calls

    def _compute(self, calls: list[_Call]) -> None:
        try:
            images = torch.cat([one.images for one in calls]) if len(calls) > 1 else calls[0].images
            scores = self.network(images)
            for i, one in enumerate(calls):
                one.scores = scores[i : i + 1]
        except BaseException as error:
            for one in calls:
                one.error = error
        finally:
            with self._changed:
                self._free += 1
                self._changed.notify_all()
