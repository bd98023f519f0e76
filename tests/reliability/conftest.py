from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from milseg.cli import main

from .made import make_source


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Eight photos, their tags and their true masks."""
    return make_source(tmp_path)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], int]:
    """`milseg.cli.main` whose marks on this process are taken back."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    return main
