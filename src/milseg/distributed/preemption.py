"""Clean stops: a signal asks, and the training loop leaves at the end of its step with a checkpoint.

Schedulers announce the end of a job by a signal (SIGTERM; SIGUSR1 by Slurm's --signal). Imports nothing heavy: the
command line knows these names before a command runs.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

# EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command with --resume goes on.
STOPPED_STATUS = 75
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Stopped(Exception):
    """A signal asked for a stop, and everything is where --resume finds it; the message says so."""


_state = {"asked": False, "deferred": False}


@contextmanager
def heeding() -> Iterator[None]:
    """In this block SIGTERM and SIGUSR1 ask for a stop: at once, or when a `deferred` block says so.

    Elsewhere than in the main thread, where Python allows no handler, nothing changes.

    Raises:
        Stopped: asked outside a `deferred` block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.update(asked=False, deferred=False)
    before = {number: signal.signal(number, _ask) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _state["asked"] = False


def _ask(number: int, frame: FrameType | None) -> None:
    _state["asked"] = True
    if not _state["deferred"]:
        name = signal.Signals(number).name
        raise Stopped(f"stopped by {name} between steps of training; the same command with --resume goes on")


@contextmanager
def deferred() -> Iterator[None]:
    """In this block a signal only leaves its mark, for `asked`; the block looks there where it can stop."""
    before, _state["deferred"] = _state["deferred"], True
    try:
        yield
    finally:
        _state["deferred"] = before


def asked() -> bool:
    """Whether a signal has asked for a stop."""
    return _state["asked"]


def stopped_after(done: int, steps: int, checkpoint: Path | None) -> Stopped:
    """What training raises when it stops: how far it came, and where that is kept."""
    where = "nothing was kept, as there is no folder for it"
    if checkpoint is not None:
        where = f"they are in {checkpoint}, and the same command with --resume goes on"
    return Stopped(f"stopped by a signal after {done} of {steps} steps; {where}")
