"""The order of an epoch: a permutation, the same one for ever, and near each other what lies in one shard."""

from __future__ import annotations

import re
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from milseg.data.bags import Bag, BagSet
from milseg.data.image import PackedPhoto
from milseg.data.sampler import batch_at, epoch_order, epoch_windows, mixed
from milseg.data.split import hold_out
from milseg.errors import UserError

lengths = st.lists(st.integers(0, 7), min_size=1, max_size=12)
seeds = st.integers(0, 2**32 - 1)


class Stored(PackedPhoto):
    """A photo that is never read."""

    length, suffix = 0, ".jpg"

    def __init__(self, group: str) -> None:
        self.group = group

    def read(self) -> bytes:
        raise AssertionError("no photo is opened to put bags in order")


def packed(shards: str) -> BagSet:
    bags = tuple(Bag(name=f"{i}", photo=Stored(s), tags=(1,)) for i, s in enumerate(shards))
    return BagSet(name="set", classes=("background",), bags=bags, tags_from="tag file")


def test_without_groups_it_is_what_it_has_always_been() -> None:
    # Numbers of the first release: a run that was begun with it goes on with this order.
    assert mixed(0, 0, 0) == 5729735059413140107
    assert epoch_order(6, seed=1, epoch=0) == [4, 0, 1, 3, 5, 2]
    assert epoch_order(6, seed=1, epoch=1) == [4, 3, 1, 2, 0, 5]


@given(groups=lengths, seed=seeds, epoch=st.integers(0, 9), window=st.integers(1, 5))
def test_each_bag_comes_once_and_shards_come_in_windows(
    groups: list[int], seed: int, epoch: int, window: int
) -> None:
    count = sum(groups)
    order = epoch_order(count, seed=seed, epoch=epoch, groups=groups, window=window)
    assert sorted(order) == list(range(count))
    assert order == epoch_order(count, seed=seed, epoch=epoch, groups=tuple(groups), window=window)
    if len(groups) <= window:
        assert order == epoch_order(count, seed=seed, epoch=epoch)
        return
    starts = [0, *accumulate(groups)]
    at = 0
    met = []
    for together in epoch_windows(groups, seed=seed, epoch=epoch, window=window):
        assert 1 <= len(together) <= window
        size = sum(groups[g] for g in together)
        expected = {place for g in together for place in range(starts[g], starts[g + 1])}
        assert set(order[at : at + size]) == expected
        at += size
        met += together
    assert sorted(met) == list(range(len(groups)))


def test_epochs_seeds_and_shards_differ() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return epoch_order(60, seed=seed, epoch=epoch, groups=(10,) * 6, window=2)

    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4
    # Within a window the two shards are mixed, not one after the other.
    first = [place // 10 for place in order(0, 0)[:20]]
    assert len(set(first)) == 2
    assert first not in (sorted(first), sorted(first, reverse=True))


def test_groups_that_do_not_add_up() -> None:
    with pytest.raises(UserError, match=re.escape("groups of 5 bags in all for 6 bags")):
        epoch_order(6, seed=0, epoch=0, groups=(2, 3))


def test_any_step_can_be_found_by_itself_and_ranks_split_it() -> None:
    groups = (3, 4, 5, 3, 4, 2)
    steps = [batch_at(step, 21, 6, seed=5, groups=groups) for step in range(7)]  # two epochs
    assert [batch_at(step, 21, 6, seed=5, groups=groups) for step in reversed(range(7))] == steps[::-1]
    seen = [place for step in steps for place in step]
    assert seen[:21] == epoch_order(21, seed=5, epoch=0, groups=groups)
    assert seen[21:42] == epoch_order(21, seed=5, epoch=1, groups=groups)
    halves = [place for rank in (0, 1) for step in steps for place in step[rank * 3 : rank * 3 + 3]]
    assert sorted(halves) == sorted([*range(21), *range(21)])


def test_a_set_knows_its_shards_and_what_is_left_of_them() -> None:
    bags = packed("aaabbbbcc")
    assert bags.groups == (3, 4, 2)
    assert bags.take([0, 2, 4, 8]).groups == (2, 1, 1)
    assert bags.take([3, 4]).groups == (2,)
    # Mixed on purpose: shards of one bag each would be shuffled four bags at a time.
    assert bags.take([0, 8, 1]).groups is None
    train, held = hold_out(packed("a" * 10 + "b" * 10), 0.2, 0)
    assert train.groups is not None
    assert held.groups is not None
    assert len(held) == 4
    assert [a + b for a, b in zip(train.groups, held.groups, strict=True)] == [10, 10]


def test_loose_photos_have_no_shards() -> None:
    bag = Bag(name="a", photo=np.zeros((2, 2, 3), np.uint8), tags=(1,))
    loose = BagSet(name="set", classes=("background",), bags=(bag,), tags_from="tag file")
    assert loose.groups is None
