"""Several processes that train as one: who does what, and what they tell each other.

Started by torchrun, or by anything that sets its variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT; LOCAL_RANK for
GPUs). Without them there is one process, for which every function here is the obvious one and costs nothing.
docs/clusters.md says what is equal to one process and what is not.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from milseg.distributed.launch import launched
from milseg.distributed.preemption import SIGNALS, STOPPED_STATUS, Stopped
from milseg.errors import UserError
from milseg.utils.devices import pick_device

# To find each other; and for the others to wait while the first scores, calibrates or draws.
MEETING, WAITING = timedelta(minutes=10), timedelta(hours=2)
SEEN_WITHIN = 90  # seconds in which a network's folder shows the files of other machines
BUCKET = 6_000_000  # numbers that are sent at once, 24 MB

T = TypeVar("T")


class SharedError(UserError):
    """A mistake that one process met and all were told."""


class Lost(Exception):
    """Another process ended, or could not be reached."""


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and talks."""
    return rank() == 0


@contextmanager
def process_group(device: str) -> Iterator[torch.device]:
    """Meet the other processes, where there are any; gives the device of this one.

    On the way out by an exception one process tells the reason: the first where all were told, else the one that met
    it. The others leave with the same status and without a word.

    Args:
        device: as `pick_device` takes it; with CUDA each process takes the GPU of its LOCAL_RANK.

    Raises:
        UserError: the others cannot be reached, or the machine has too few GPUs.
    """
    if not launched():
        yield pick_device(device)
        return
    own = _own_device(pick_device(device))
    _meet(own)
    try:
        yield own
    except BaseException as error:
        # The launcher ends the others by SIGTERM once the first has left; all that they still do is to tell why.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if isinstance(error, Lost):
            if is_main():
                print(f"milseg: {error}", file=sys.stderr)
            sys.stdout.flush()
            sys.stderr.flush()
            # Everything is closed by now but gloo's threads, which may abort an interpreter that waits for them.
            os._exit(1)
        status = {SharedError: 2, Stopped: STOPPED_STATUS, KeyboardInterrupt: 130}.get(type(error))
        if status is not None and not is_main():
            raise SystemExit(status) from None
        raise
    else:
        dist.destroy_process_group()


def _own_device(device: torch.device) -> torch.device:
    if device.type != "cuda":
        return device
    number, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number >= there:
        raise UserError(
            f"process {number} of this machine has no GPU: there are {there}; start {there} processes a node"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _meet(device: torch.device) -> None:
    # What the processes tell each other lies on the CPU and goes by gloo; only gradients on a GPU take NCCL.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, number, count = next(rendezvous("env://", timeout=MEETING))
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=WAITING)
        dist.barrier() if device.type == "cpu" else dist.all_reduce(torch.zeros(1))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        first = str(error).partition("\n")[0]
        raise UserError(
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']} cannot meet the others at {where} ({first}); "
            "see that all were started, and that MASTER_ADDR can be reached at that port"
        ) from None


@contextmanager
def _peer_errors() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # Of gloo's "[file:line] Connection closed by peer [address]. Check the logs ..." the sentence in the middle.
        why = re.sub(r"^\[[^]]*\] ", "", str(error)).partition(". ")[0].partition("\n")[0]
        raise Lost(
            f"another process of the run has ended ({why}); --resume goes on from the last checkpoint"
        ) from None


@contextmanager
def errors_on_all_ranks() -> Iterator[None]:
    """All processes leave this block, or none: a mistake that one of them meets in it is raised in all.

    Also a barrier. No process may be inside another exchange while it waits here, so a block holds either work of
    its own or exchanges that all take part in.

    Raises:
        SharedError: the first process's mistake; the mistake itself in a run of one process.
    """
    mistake: UserError | None = None
    try:
        yield
    except UserError as error:
        if size() == 1:
            raise
        mistake = error
    if any_of(mistake is not None):
        raise_on_all_ranks(mistake)


def raise_on_all_ranks(mistake: UserError | None) -> NoReturn:
    """Called by every process once it is known that one has failed: raises the first mistake in all of them.

    Args:
        mistake: this process's own, or None.

    Raises:
        SharedError: always; the mistake itself in a run of one process.
    """
    if size() == 1 and mistake is not None:
        raise mistake
    texts = gathered(None if mistake is None else str(mistake))
    raise SharedError(next(text for text in texts if text is not None)) from mistake


def any_of(flag: bool) -> bool:
    """Whether it holds in some process."""
    return bool(highest([int(flag)])[0])


def highest(numbers: Sequence[int]) -> list[int]:
    """The highest of all processes, number by number."""
    return _exchanged(torch.tensor(numbers, dtype=torch.int64), dist.ReduceOp.MAX if size() > 1 else None)


def slowest(seconds: float) -> float:
    """The highest of all processes."""
    by = dist.ReduceOp.MAX if size() > 1 else None
    return float(_exchanged(torch.tensor([seconds], dtype=torch.float64), by)[0])


def total(number: float) -> float:
    """The sum over all processes."""
    by = dist.ReduceOp.SUM if size() > 1 else None
    return float(_exchanged(torch.tensor([number], dtype=torch.float64), by)[0])


def all_gather_vector(numbers: Sequence[float]) -> list[list[float]]:
    """Every process's numbers, by rank; as many in each."""
    own = torch.tensor(numbers, dtype=torch.float64)
    rows = [own]
    if size() > 1:
        rows = [torch.empty_like(own) for _ in range(size())]
        with _peer_errors():
            dist.all_gather(rows, own)
    return [row.tolist() for row in rows]


def _exchanged(values: torch.Tensor, by: Any) -> list[Any]:
    if by is not None:
        with _peer_errors():
            dist.all_reduce(values, op=by)
    found: list[Any] = values.tolist()
    return found


def gathered(value: T) -> list[T]:
    """Every process's value, by rank."""
    found: list[Any] = [value]
    if size() > 1:
        found = [None] * size()
        with _peer_errors():
            dist.all_gather_object(found, value)
    return found


@contextmanager
def main_first() -> Iterator[None]:
    """The block runs in the first process, then in the others: what it downloads is there for them."""
    if not is_main():
        any_of(False)
    try:
        yield
    finally:
        if is_main():
            any_of(False)


def same_everywhere(value: str, what: str) -> None:
    """Stop where the processes would train on different things.

    Raises:
        SharedError: a process has another value.
    """
    values = gathered(value)
    others = [number for number, found in enumerate(values) if found != values[0]]
    if others:
        raise SharedError(
            f"process {others[0]} finds other {what} than process 0; every machine needs the same ones"
        )


def seen_by_all(path: Path) -> None:
    """Wait until every process sees the file that the first has written before it came here.

    Raises:
        SharedError: one does not, after `SEEN_WITHIN` seconds.
    """
    any_of(False)  # until it is written
    with errors_on_all_ranks():
        until = time.monotonic() + SEEN_WITHIN
        while not path.exists():
            if time.monotonic() > until:
                raise UserError(
                    f"{path}: process {rank()} does not see what process 0 has written there; give a folder that every "
                    "machine shares"
                )
            time.sleep(0.5)


def rank_slice(count: int) -> slice:
    """Which of `count` things in a row are this process's; the shares differ by one at most.

    >>> rank_slice(5)
    slice(0, 5, None)
    """
    return slice(rank() * count // size(), (rank() + 1) * count // size())


def same_start(tensors: Iterable[torch.Tensor]) -> None:
    """Every process takes over the first one's values."""
    if size() > 1:
        with _peer_errors(), torch.no_grad():
            for tensor in tensors:
                dist.broadcast(tensor, src=0)


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Each parameter's gradient becomes the sum over the processes, the same bits in all of them."""
    if size() == 1:
        return
    sent = []
    with _peer_errors():
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            sent.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in sent:
            work.wait()
            for gradient, part in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view(gradient.shape))


def _buckets(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    for gradient in gradients:
        if bucket and sum(g.numel() for g in bucket) + gradient.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


def all_gather_rows(own: torch.Tensor, count: int) -> torch.Tensor:
    """The rows of all processes, [count, ...], from this one's `rank_slice(count)` of them.

    Gradients flow only to this rank's rows. That suffices: every rank computes the same loss on the whole batch.
    """
    if size() == 1:
        return own
    rows = rank_slice(count)
    whole = own.new_zeros(count, *own.shape[1:])
    whole[rows] = own.detach()
    with _peer_errors():
        dist.all_reduce(whole)
    return torch.cat([whole[: rows.start], own, whole[rows.stop :]])
