"""`milseg predict`."""

from __future__ import annotations

from milseg.config import PredictOptions
from milseg.distributed.launch import is_first
from milseg.inference.prediction_run import predict_run
from milseg.utils.devices import keep_freed_memory


def predict(options: PredictOptions) -> None:
    """`milseg predict`."""
    keep_freed_memory()
    counts = predict_run(options)
    if not is_first():
        return
    if options.shard:
        print(
            f"{counts['done']} photos of shard {options.shard} segmented, {counts['earlier']} were there before, "
            f"{counts['failed']} left out. When all shards are: milseg merge {options.out}"
        )
        return
    print(
        f"{counts['done']} photos segmented into {options.out}, {counts['earlier']} were there before, "
        f"{counts['failed']} left out."
    )
    print(
        f"Look at {options.out / 'overlays'}; {options.out / 'predictions.csv'} lists what to review first."
    )
