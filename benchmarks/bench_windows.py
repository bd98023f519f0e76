"""The FCN on a whole photo against its classifier on every window of it; 50 times as quick is wanted.

    python benchmarks/bench_windows.py [--quick]

SqueezeNet at stride 16 with 21 classes and random weights, on a photo of 375 x 500. The rival does what was done before
networks were cast: it cuts the window that each place sees (155 pixels; 159, so that it begins where the strides meet)
out of the photo with zeros around it, runs batches of windows through the classifier's layers, and takes the scores of
the window's middle. Its batch size, and each side's number of threads and memory layout, are the quickest of a trial.

Checked first: at every place whose window lies inside the photo both give the same scores. (Nearer to the border they
differ rightly: the FCN's layers pad their maps, the rival's photo is padded.) Prints medians and one JSON line last.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from common import HEIGHT, WIDTH, Times, in_turn, load, made_photo, median_wall, ratios, timed

from milseg.data.image import normalise
from milseg.models.backbones import build_fcn
from milseg.models.fcn import FCN
from milseg.utils.devices import keep_freed_memory
from milseg.utils.parallel import processors

CLASSES = 21
BATCHES = (1, 8, 32)
TRIED = 32  # windows of a trial
LAYOUTS = (torch.contiguous_format, torch.channels_last)
WANTED = 50
Key = TypeVar("Key")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, and a photo of half the size")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=sorted({1, processors()}), help="to be tried"
    )
    options = parser.parse_args()
    keep_freed_memory()
    height, width = (HEIGHT // 2, WIDTH // 2) if options.quick else (HEIGHT, WIDTH)
    model = build_fcn("squeezenet1_0", CLASSES, output_stride=16).eval()
    photo = normalise(made_photo(0, height, width))
    windows = Windows(model, photo)
    torch.set_num_threads(options.threads[0])
    same, places = check_equal(model, photo, windows)
    settings = [(threads, layout) for threads in options.threads for layout in LAYOUTS]
    models = {layout: copy.deepcopy(model).to(memory_format=layout) for layout in LAYOUTS}
    repeats = 4 if options.quick else 10  # of ours in a round, which is short

    def dense(threads: int, layout: torch.memory_format, times: int) -> Callable[[], None]:
        image = photo[None].contiguous(memory_format=layout)

        def run() -> None:
            torch.set_num_threads(threads)
            for _ in range(times):
                scores_of(models[layout], image)

        return run

    def cut(
        threads: int, layout: torch.memory_format, batch: int, most: int | None = None
    ) -> Callable[[], None]:
        def run() -> None:
            torch.set_num_threads(threads)
            windows.scores(models[layout], batch, layout, most)

        return run

    threads, layout = quickest({setting: dense(*setting, 2) for setting in settings})
    most = min(TRIED, len(windows))
    tried = {(*setting, batch): cut(*setting, batch, most) for setting in settings for batch in BATCHES}
    best = quickest(tried)
    times = in_turn(
        {"dense": dense(threads, layout, repeats), "windows": cut(*best)},
        3 if options.quick else options.rounds,
    )
    times["dense"] = [Times(*(seconds / repeats for seconds in time)) for time in times["dense"]]
    wall, processor = ratios(times["windows"], times["dense"])
    print(
        f"dense: {1000 * median_wall(times['dense']):.1f} ms a photo of {width} x {height}; {len(windows)} windows of "
        f"{windows.side} pixels in batches of {best[2]}: {median_wall(times['windows']):.2f} s\n"
        f"ratio {wall:.0f} on the wall, {processor:.0f} by processor time (median of {len(times['dense'])} pairs; "
        f"wanted: at least {WANTED}); load {load()}"
    )
    print(
        json.dumps(
            {
                "benchmark": "windows",
                "ratio": round(wall, 1),
                "ratio_processor": round(processor, 1),
                "dense_s": median_wall(times["dense"]),
                "windows_s": median_wall(times["windows"]),
                "windows": len(windows),
                "threads": [threads, best[0]],
                "batch": best[2],
                "difference": same,
                "places_compared": places,
                "load": load(),
            }
        )
    )


@torch.inference_mode()
def scores_of(model: FCN, images: torch.Tensor) -> torch.Tensor:
    scores: torch.Tensor = model(images)
    return scores


class Windows:
    """The windows of a photo float32 [3, H, W], one for each place of the network's map.

    Attributes:
        side: of a window, pixels: what a place sees, begun at a multiple of the stride, where all layers' places meet.
        middle: which place of a window's own map sees what the place of the photo's map sees.
        begin: where the window of place 0 begins, pixels; it is negative.
    """

    def __init__(self, model: FCN, photo: torch.Tensor) -> None:
        self.stride = model.stride
        reach = (model.field - 1) / 2
        self.begin = model.stride * math.floor((model.offset - reach) / model.stride)
        self.middle = -self.begin // model.stride
        self.side = int(model.offset + reach) + 1 - self.begin
        self.height, self.width = photo.shape[1:]
        self.rows, self.columns = model.map_size(self.height, self.width)
        down, right = (
            max(0, self.begin + (places - 1) * model.stride + self.side - pixels)
            for places, pixels in ((self.rows, self.height), (self.columns, self.width))
        )
        self.photo = torch.nn.functional.pad(photo, (-self.begin, right, -self.begin, down))

    def __len__(self) -> int:
        return self.rows * self.columns

    @torch.inference_mode()
    def scores(
        self, model: FCN, batch: int, layout: torch.memory_format, most: int | None = None
    ) -> torch.Tensor:
        """Scores of the places row by row, [places, classes]; of the first `most` places where that is given."""
        stride, side = self.stride, self.side
        corners = [(stride * i, stride * j) for i in range(self.rows) for j in range(self.columns)][:most]
        found = []
        for first in range(0, len(corners), batch):
            cut = [self.photo[:, y : y + side, x : x + side] for y, x in corners[first : first + batch]]
            images = torch.stack(cut).contiguous(memory_format=layout)
            found.append(model(images)[:, :, self.middle, self.middle])
        return torch.cat(found)

    def inside(self) -> torch.Tensor:
        """Which places' windows lie inside the photo, bool [rows, columns]."""
        starts = (self.begin + self.stride * torch.arange(places) for places in (self.rows, self.columns))
        rows, columns = (
            (start >= 0) & (start + self.side <= pixels)
            for start, pixels in zip(starts, (self.height, self.width), strict=True)
        )
        return rows[:, None] & columns[None]


def check_equal(model: FCN, photo: torch.Tensor, windows: Windows) -> tuple[float, int]:
    """The largest difference over the largest score, and how many places were compared."""
    dense = scores_of(model, photo[None])[0]
    cut = windows.scores(model, 32, torch.contiguous_format).T.reshape(dense.shape)
    inside = windows.inside()
    assert inside.any()
    apart = float((dense - cut)[:, inside].abs().max() / dense.abs().max())
    print(
        f"{int(inside.sum())} of {len(windows)} windows lie inside the photo; scores differ there by {apart:.1e}"
    )
    assert apart < 1e-4, "the two sides do not compute the same"
    return apart, int(inside.sum())


def quickest(sides: Mapping[Key, Callable[[], object]]) -> Key:
    """The side whose better run of two takes the least time on the wall."""
    times = {key: min(timed(work).wall for _ in range(2)) for key, work in sides.items()}
    return min(times, key=lambda key: times[key])


if __name__ == "__main__":
    main()
