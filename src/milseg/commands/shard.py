"""`milseg shard`."""

from __future__ import annotations

from milseg.config import ShardOptions
from milseg.data.shards.write import shard_run


def shard(options: ShardOptions) -> None:
    """`milseg shard`."""
    made = shard_run(options)
    left_out = f", {len(made['left_out']):,} left out" * bool(made["left_out"])
    print(
        f"{made['photos']:,} photos in {len(made['shards']):,} shards, {made['bytes'] / 1e6:,.1f} MB, in {options.out}"
        f"{left_out}. Look at {options.out / 'shards.json'}, then: milseg train {options.out}"
    )
