"""Work on several things at once, and take the results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def processors() -> int:
    """How many processors this process may use; those of a machine are shared by the processes torchrun started there.

    >>> processors() >= 1
    True
    """
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def one_thread() -> None:
    """For `begin`: several things at once, each on one thread, rather than each layer on several; none waits."""
    torch.set_num_threads(1)


def prefetch_map(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    waiting: int = 2,
    cost: Callable[[Item], int] = lambda item: 0,
    most: int = 0,
    begin: Callable[[], None] | None = None,
) -> Generator[tuple[Item, Result], None, None]:
    """Each item with its result, in the items' order, worked on by threads ahead of the reader.

    While the reader uses one result, the next ones are made: at most `workers` + `waiting` items are begun and not yet
    read, and `items` is read no further than that. An exception of `work` comes out at its item's turn. When the
    generator is closed early, what was begun is waited for and dropped.

    Args:
        cost, most: what is begun and not yet read costs no more than `most` together, or is one item; for memory.
        begin: called once in each thread.

    >>> list(prefetch_map(lambda number: number**2, range(5), workers=2))
    [(0, 0), (1, 1), (2, 4), (3, 9), (4, 16)]
    """
    begun: deque[tuple[Item, Future[Result], int]] = deque()
    spent = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="milseg", initializer=begin)
    try:
        for item in items:
            amount = cost(item)
            while begun and (len(begun) >= workers + waiting or spent + amount > most > 0):
                done, future, paid = begun.popleft()
                yield done, future.result()
                del future  # and with it the result
                spent -= paid
            begun.append((item, pool.submit(work, item), amount))
            spent += amount
        while begun:
            done, future, _ = begun.popleft()
            yield done, future.result()
            del future
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
