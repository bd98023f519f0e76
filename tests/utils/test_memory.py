from __future__ import annotations

import pytest

from milseg.utils import memory
from milseg.utils.memory import MemoryBound


def test_memory_goes_back_once_it_has_grown_past_what_a_step_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([100, 115, 119, 121, 110, 125, 133])
    monkeypatch.setattr(memory, "resident_bytes", lambda: next(sizes))
    monkeypatch.setattr(memory, "return_freed_memory", lambda: True)
    bound = MemoryBound()
    returned = []
    for _ in range(7):
        bound.after_step()
        returned.append(bound.returned)
    # The first step after memory went back shows the need anew: 110, so that 132 is the next bound.
    assert returned == [0, 0, 0, 1, 1, 1, 2]
    assert bound.needed == 110


def test_without_a_c_library_that_can_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "return_freed_memory", lambda: False)
    bound = MemoryBound()
    bound.after_step()
    bound.after_step()
    assert bound.returned == 0
