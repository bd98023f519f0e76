"""What training holds in memory for each photo of a source of tar shards; the same at any number of photos is wanted.

    python benchmarks/bench_index.py [--counts 5000 40000] [--quick]

Shards are made here in webdataset's layout (a tiny JPEG and its JSON of three tags of 20), 1,000 photos each. Counted
by tracemalloc for each photo: the opened set of bags; the most while it is opened, from indexes kept before; the
order of one epoch, of which `fit` keeps up to four; the record of each photo's size that a training run begins with.
Also seconds a photo to look through tars that have no index, and to open them again, without tracemalloc. `ratio` is
the bytes a bag of the larger set over that of the smaller; at most 1.1 is wanted. docs/scale.md reckons with these.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
from common import load
from PIL import Image

from milseg.config import ShardReading
from milseg.data.photo_statistics import PhotoFacts
from milseg.data.sampler import epoch_order
from milseg.data.sources.open import open_source

TAGS = tuple(f"tag{number:02}" for number in range(20))
PER_SHARD = 1000
WANTED = 1.1


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--counts", type=int, nargs=2, default=(5_000, 40_000))
    parser.add_argument("--quick", action="store_true", help="5,000 and 10,000 photos")
    options = parser.parse_args()
    rows = {}
    for count in (5_000, 10_000) if options.quick else options.counts:
        with tempfile.TemporaryDirectory() as folder:
            rows[count] = row = measure(Path(folder), count)
        print(
            f"{count:7,} photos: {row['bag_bytes']:.0f} bytes a bag, {row['peak_bytes']:.0f} at most while opening, "
            f"{row['order_bytes']:.0f} a place of an epoch's order, {row['facts_bytes']:.0f} a photo's record; "
            f"{row['scan_us']:.0f} us a photo to look through tars, {row['open_us']:.0f} to open them again",
            flush=True,
        )
    small, large = rows.values()
    ratio = large["bag_bytes"] / small["bag_bytes"]
    print(
        f"ratio {ratio:.3f} (bytes a bag, larger over smaller set; wanted: at most {WANTED}); load {load()}"
    )
    print(json.dumps({"benchmark": "index", "ratio": round(ratio, 4), "photos": rows, "load": load()}))


def measure(folder: Path, count: int) -> dict[str, float]:
    shards, reading = folder / "shards", ShardReading(cache=folder / "cache")
    write_shards(shards, count)
    began = time.process_time()
    open_source(shards, shards=reading)
    scanned = time.process_time()
    open_source(shards, shards=reading)
    opened = time.process_time()
    tracemalloc.start()
    bags = open_source(shards, shards=reading)
    held, peak = tracemalloc.get_traced_memory()
    assert len(bags) == count
    order = epoch_order(count, seed=0, epoch=0, groups=bags.groups)
    ordered, _ = tracemalloc.get_traced_memory()
    facts = [PhotoFacts(size=(375 + number % 500, 500)) for number in range(count)]
    noted, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(order) == len(facts) == count
    found = {
        "bag_bytes": held,
        "peak_bytes": peak,
        "order_bytes": ordered - held,
        "facts_bytes": noted - ordered,
        "scan_us": 1e6 * (scanned - began),
        "open_us": 1e6 * (opened - scanned),
    }
    return {name: round(value / count, 1) for name, value in found.items()}


def write_shards(folder: Path, count: int) -> None:
    """Tars without indexes; every photo is the same, its name and tags are its own."""
    folder.mkdir()
    photo = io.BytesIO()
    Image.new("RGB", (16, 12), (90, 120, 60)).save(photo, "JPEG")
    random = np.random.default_rng(0)
    for first in range(0, count, PER_SHARD):
        with tarfile.open(folder / f"shard-{first // PER_SHARD:06}.tar", "w") as tar:
            for number in range(first, min(first + PER_SHARD, count)):
                tags = [TAGS[i] for i in random.choice(len(TAGS), 3, replace=False)]
                about = json.dumps({"tags": tags}).encode()
                for suffix, data in ((".jpg", photo.getvalue()), (".json", about)):
                    member = tarfile.TarInfo(f"{number:09}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    main()
