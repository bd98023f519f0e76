"""`milseg train`."""

from __future__ import annotations

from milseg.config import TrainOptions
from milseg.distributed.launch import is_first
from milseg.training.run import train_run
from milseg.utils.devices import keep_freed_memory


def train(options: TrainOptions) -> None:
    """`milseg train`."""
    keep_freed_memory()
    out = train_run(options)
    if not is_first():
        return
    print(f"\nThe model is in {out}. Look at {out / 'samples'} and {out / 'curves.png'}, then:")
    print(f"  milseg predict PHOTOS --model {out} --out MASKS")
