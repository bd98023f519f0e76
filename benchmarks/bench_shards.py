"""Photos and tags from tar shards: milseg's reader against loose files, and against webdataset's.

    python benchmarks/bench_shards.py
    python benchmarks/bench_shards.py --photos 20000 --side 64

Makes small JPEG photos of noise, packs them with `milseg shard`'s own code, and reads every photo, decoded to RGB, with
its tags, three ways in turn, several times over:

- shards: milseg's bags, in the order of an epoch of training, with threads that decode;
- files: the same bags from a folder and a table, shuffled as milseg does;
- webdataset: its WebDataset and WebLoader with a shuffle buffer, in as many worker processes as threads here, decoding
  with its "rgb8" handler; the number of workers (0, 1, the cores) and the shuffle buffer (100, 1000) that are quickest
  in a first round are taken.

Each side is timed from opening the source to the last photo. Files are in the page cache: what is compared is the work,
not the disk. Prints photos a second, medians, and one JSON line last; "ratio" is shards over webdataset.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from milseg.config import ShardOptions, ShardReading
from milseg.data.bags import Bag, BagSet, load_photo
from milseg.data.sampler import epoch_order
from milseg.data.shards.write import shard_run
from milseg.data.sources.open import open_source
from milseg.utils.parallel import processors

CORES = processors()


def make_photos(root: Path, count: int, side: int) -> None:
    random = np.random.default_rng(0)
    (root / "photos").mkdir(parents=True)
    with open(root / "tags.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "tags"])
        for number in range(count):
            pixels = random.integers(0, 256, (side // 4, side // 4, 3), np.uint8)
            photo = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
            photo.save(root / "photos" / f"{number:06}.jpg", quality=90)
            table.writerow(
                [f"{number:06}.jpg", " ".join(f"tag{i}" for i in range(10) if number % (i + 2) == 0)]
            )


def read_bags(bags: BagSet, threads: int) -> int:
    """Every photo once, in an epoch's order; the sum of pixels and tags, so that nothing can be left out."""
    order = epoch_order(len(bags), seed=0, epoch=0, groups=bags.groups)

    def one(bag: Bag) -> int:
        return int(load_photo(bag)[0, 0, 0]) + sum(bag.tags[1:])

    if threads == 1:
        return sum(one(bags.bags[i]) for i in order)
    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(one, [bags.bags[i] for i in order], chunksize=1))


def read_webdataset(paths: list[str], workers: int, buffer: int) -> int:
    import webdataset

    def one(sample: dict[str, Any]) -> int:
        return int(sample["jpg"][0, 0, 0]) + len(sample["json"]["tags"])

    samples = webdataset.WebDataset(paths, shardshuffle=len(paths), empty_check=False)
    samples = samples.shuffle(buffer).decode("rgb8").map(one)
    loader = webdataset.WebLoader(samples, batch_size=None if workers == 0 else 64, num_workers=workers)
    return sum(int(value.sum()) if hasattr(value, "sum") else int(value) for value in loader)


def timed(read: Callable[[], int]) -> tuple[float, int]:
    began = time.perf_counter()
    total = read()
    return time.perf_counter() - began, total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=int, default=4000)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--per-shard", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_photos(root, options.photos, options.side)
        photos, tags = root / "photos", root / "tags.csv"
        shards = root / "shards"
        shard_run(
            ShardOptions(source=photos, tags=tags, out=shards, photos_per_shard=options.per_shard),
            progress=False,
        )
        paths = sorted(map(str, shards.glob("*.tar")))
        reading = ShardReading(cache=root / "cache")

        def of_shards(threads: int) -> int:
            return read_bags(open_source(shards, shards=reading), threads)

        def of_files(threads: int) -> int:
            return read_bags(open_source(photos, tags=tags), threads)

        # Each side at its own best number of threads or workers; the first round also warms the page cache.
        settings = sorted({1, CORES})
        threads = {
            name: min(settings, key=lambda n: timed(lambda: read(n))[0])  # noqa: B023
            for name, read in (("shards", of_shards), ("files", of_files))
        }
        tried = {
            (workers, buffer): timed(lambda: read_webdataset(paths, workers, buffer))[0]  # noqa: B023
            for workers in sorted({0, 1, CORES})
            for buffer in (100, 1000)
        }
        workers, buffer = min(tried, key=lambda key: tried[key])
        sides = {
            "shards": lambda: of_shards(threads["shards"]),
            "files": lambda: of_files(threads["files"]),
            "webdataset": lambda: read_webdataset(paths, workers, buffer),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.repeats):
            totals = {}
            for name, read in sides.items():
                spent, totals[name] = timed(read)
                seconds[name].append(spent)
            assert len(set(totals.values())) == 1, totals
    median = {name: statistics.median(values) for name, values in seconds.items()}
    about = {
        "shards": f"{threads['shards']} threads",
        "files": f"{threads['files']} threads",
        "webdataset": f"{workers} workers, shuffle {buffer}",
    }
    print(
        f"{options.photos:,} JPEG photos of {options.side} x {options.side} in {len(paths)} shards, {CORES} cores"
    )
    for name, value in median.items():
        spread = f"{min(seconds[name]):.2f} to {max(seconds[name]):.2f}"
        print(f"{name:12} {options.photos / value:8,.0f} photos/s   {value:.2f} s ({spread}; {about[name]})")
    ratios = {
        name: statistics.median(b / a for a, b in zip(seconds["shards"], seconds[name], strict=True))
        for name in ("files", "webdataset")
    }
    print(f"shards are {ratios['webdataset']:.2f} times webdataset, {ratios['files']:.2f} times loose files")
    record = {
        "benchmark": "shards",
        "ratio": round(ratios["webdataset"], 3),
        "ratio_files": round(ratios["files"], 3),
        **{f"{name}_photos_per_s": round(options.photos / value, 1) for name, value in median.items()},
        "settings": about,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
