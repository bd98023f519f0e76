"""The fuzzed readers on their seeds, on what once escaped, and on changes of both; `make fuzz` looks far longer."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[2] / "fuzz"
sys.path.insert(0, str(FUZZ))

import targets

CHANGES = 40


@pytest.fixture(scope="module", autouse=True)
def folder() -> Iterator[None]:
    yield
    targets.remove_place()


def changed(data: bytes, draws: random.Random) -> bytes:
    """Some bytes changed, removed, doubled or moved."""
    found = bytearray(data)
    for _ in range(draws.randint(1, 4)):
        at = draws.randrange(len(found) + 1)
        length = draws.randint(1, 8)
        what = draws.randrange(5)
        if what == 0 and at < len(found):
            found[at] = draws.randrange(256)
        elif what == 1:
            del found[at : at + length]
        elif what == 2:
            found[at:at] = found[at : at + length]
        elif what == 3:
            found[at:at] = draws.choice(
                [b"\0", b"\xff\xfe", b'"', b"[", b"{", b"../", b"-1", b"1e999", b"!!bool x"]
            )
        else:
            del found[at:]
    return bytes(found)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_only_a_user_error_escapes(name: str) -> None:
    seeds = sorted((FUZZ / "seeds" / name).iterdir())
    assert seeds
    for seed in seeds:
        targets.TARGETS[name](seed.read_bytes())
    draws = random.Random(name)
    for number in range(CHANGES):
        data = changed(seeds[number % len(seeds)].read_bytes(), draws)
        try:
            targets.TARGETS[name](data)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__} escapes from {data[:2000]!r}") from error


def test_another_error_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("tags")

    monkeypatch.setattr(targets, "open_source", broken)
    with pytest.raises(KeyError):
        targets.TARGETS["tags_csv"](b"image,tags\na.png,cat\n")
