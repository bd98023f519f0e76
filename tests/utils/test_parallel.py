from __future__ import annotations

import threading
import time

import pytest

from milseg.utils.parallel import prefetch_map


def test_results_come_in_order_whatever_finishes_first() -> None:
    def slow_first(number: int) -> int:
        time.sleep(0.02 if number % 3 == 0 else 0)
        return -number

    assert list(prefetch_map(slow_first, range(20), workers=3)) == [(number, -number) for number in range(20)]


def test_no_more_is_begun_than_was_asked_for() -> None:
    taken: list[int] = []

    def numbers() -> object:
        for number in range(50):
            taken.append(number)
            yield number

    for read, _ in enumerate(prefetch_map(abs, numbers(), workers=2, waiting=1)):  # type: ignore[arg-type]
        assert len(taken) <= read + 4


def test_costly_items_go_alone() -> None:
    lock, together, most = threading.Lock(), [0], [0]

    def work(cost: int) -> int:
        with lock:
            together[0] += cost
            most[0] = max(most[0], together[0])
        time.sleep(0.005)
        with lock:
            together[0] -= cost
        return cost

    costs = [1, 1, 9, 2, 30, 3, 3, 3, 3]
    assert [found for _, found in prefetch_map(work, costs, workers=4, cost=lambda c: c, most=10)] == costs
    assert most[0] == 30


def test_a_mistake_comes_out_at_its_turn_and_closing_ends_the_work() -> None:
    started: list[int] = []

    def work(number: int) -> float:
        started.append(number)
        return 1 / (number - 3)

    results = prefetch_map(work, range(100), workers=2, waiting=0)
    assert [next(results)[0] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        next(results)
    before = threading.active_count()
    results = prefetch_map(abs, range(100), workers=2)
    next(results)
    results.close()
    assert threading.active_count() == before
    assert len(started) < 10
