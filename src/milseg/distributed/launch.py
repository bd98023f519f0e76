"""Whether this process is one of several; known before torch is imported."""

from __future__ import annotations

import os

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Whether this process was started as one of several, by torchrun or with its variables."""
    return all(name in os.environ for name in VARIABLES) and int(os.environ["WORLD_SIZE"]) > 1


def is_first() -> bool:
    """Whether this process tells of the run, also before it has met the others and after."""
    return not launched() or os.environ["RANK"] == "0"
