"""`milseg serve` against plain FastAPI handlers around the same model; 1.5 times the requests a second is wanted.

    python benchmarks/bench_serve.py [--requests N] [--model RUN] [--photos FOLDER]

Needs `pip install "milseg[serve]"`. All sides run at once as processes of their own, and are asked in turn, --rounds
times each, by 16 clients that keep their connections. The rivals are what one would write first, one photo at a time.
"plain": `photo: UploadFile`, then Pillow, the network in PyTorch, bilinear interpolation, the top class and a PNG.
"plain, with milseg inside": `milseg.load(model).segment(photo).mask` in the middle, which has all that makes our
prediction quick and lacks the server alone. Both keep freed memory, and have of one and all cores for torch whichever a
trial shows to be quicker. `ratio` is to the first. A model of several views, or with walk, refiner or prior, has the
second alone, and `ratio` is to that. Without --model, a MobileNetV2 of seven classes with random weights sees photos of
375 x 500 at a longest side of 320.

Every answer is held against the same server's answer to the same photo asked for alone, byte for byte; how far those of
the sides agree is told (another number of threads rounds otherwise). Then: memory of our server after the
first round and after the last; and a server with a short line at overload, whose refusals must be 503 with Retry-After,
at once. Prints requests a second, median and 99th percentile, and one JSON line last.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from common import equal_pixels
from fastapi import FastAPI, Response, UploadFile
from PIL import Image
from plain import plain_scores, top_class

import milseg
from milseg.config import InferenceConfig
from milseg.data.image import UInt8
from milseg.data.masks import palette
from milseg.inference.model_folder import ModelSpec, load_model, save_model
from milseg.models.backbones import build_fcn
from milseg.utils.devices import keep_freed_memory

CLIENTS = 16
WANTED = 1.5
WITH_MILSEG = "plain, with milseg inside"
RIVALS = ("plain", WITH_MILSEG)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000, help="to each side, in all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--photos", type=Path, help="folder of JPEG photos; without it, photos made here")
    parser.add_argument("--batch", type=int, help="of our server, in place of its own")
    parser.add_argument("--workers", type=int, help="the same")
    parser.add_argument("--rival", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rival:
        name, folder, threads = options.rival
        serve_plainly(name, folder, int(threads))
        return
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or random_model(Path(folder) / "model")
        photos = photos_of(options.photos)
        more = [f"--{name}={value}" for name in ("batch", "workers") if (value := getattr(options, name))]
        result = compare(model, photos, options.requests, options.rounds, more)
        result["overload"] = overload(model, photos[0])
    print(json.dumps(result))


def compare(model: Path, photos: list[bytes], requests: int, rounds: int, more: list[str]) -> dict[str, Any]:
    """Ask all sides in turn; `more` are words for our server."""
    with ExitStack() as stack:
        sides = {"ours": stack.enter_context(ours(model, *more))}
        for name in RIVALS if is_plain(model) else [WITH_MILSEG]:
            sides[name] = stack.enter_context(rival(name, model, photos[0]))
        alone = {name: serial(side, photos) for name, side in sides.items()}
        same = {
            name: min(
                equal_pixels(io.BytesIO(a), io.BytesIO(b)) for a, b in zip(alone["ours"], masks, strict=True)
            )
            for name, masks in alone.items()
        }
        warm(sides["ours"], photos)
        each = max(1, requests // rounds)
        memory = []
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        rates: dict[str, list[float]] = {name: [] for name in sides}
        work = dict.fromkeys(sides, 0.0)
        wrong = 0
        for _ in range(rounds):
            for name, side in sides.items():
                began = side.processor()
                took, waits, bad = load(side, photos, alone[name], each)
                work[name] += side.processor() - began
                rates[name].append(each / took)
                seconds[name] += waits
                wrong += bad
            memory.append(sides["ours"].memory())
        # The first round fills every thread's own store of freed memory.
        grown = memory[-1] - memory[0]
    result: dict[str, Any] = {"benchmark": "serve", "wanted": WANTED}
    for name, waits in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates[name], strict=True))
        row: dict[str, Any] = {
            "requests_per_s": round(statistics.median(rates[name]), 2),
            "median_ms": round(1000 * statistics.median(waits), 1),
            "p99_ms": round(1000 * float(np.percentile(waits, 99)), 1),
            "processor_ms": round(1000 * work[name] / len(waits), 1),
        }
        if name != "ours":
            row |= {"ratio": round(ratio, 3), "equal_pixels": same[name], "about": sides[name].about}
            result.setdefault("ratio", row["ratio"])
        result[name] = row
        print(
            f"{name}: {row['requests_per_s']} requests/s, median {row['median_ms']} ms, p99 {row['p99_ms']} ms, "
            f"{row['processor_ms']} ms of the processor a request"
        )
    for name in list(sides)[1:]:
        print(
            f"ratio to {name}: {result[name]['ratio']:.2f} (median of {rounds} rounds; {sides[name].about}); of each "
            f"photo's pixels at least {100 * same[name]:.3f} % are equal"
        )
    asked = each * rounds
    print(
        f"{asked} requests to each by {CLIENTS} clients: {wrong} wrong or lost; our memory grew by {grown:.1f} MiB; "
        f"ratio {result['ratio']:.2f}, wanted: at least {WANTED}"
    )
    return result | {"requests": asked, "wrong": wrong, "memory_growth_mib": round(grown, 1)}


def is_plain(model: Path) -> bool:
    """Whether a mask is no more than the network's map, interpolated."""
    inference = load_model(model)[1].inference
    return inference == replace(InferenceConfig(), refine_side=inference.refine_side)


@dataclass
class Answer:
    status: int
    retry_after: str | None
    data: bytes


class Side:
    """A server to ask."""

    def __init__(self, process: subprocess.Popen[str], port: int, path: str, about: str = "") -> None:
        self.process, self.port, self.path, self.about = process, port, path, about
        self._mine = threading.local()

    def ask(self, photo: bytes) -> Answer:
        """The mask of a photo as PNG, over this thread's own connection."""
        if not hasattr(self._mine, "connection"):
            self._mine.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        head = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n'
        headers = {"Content-Type": "multipart/form-data; boundary=x", "Accept": "image/png"}
        self._mine.connection.request("POST", self.path, head + photo + b"\r\n--x--\r\n", headers)
        response = self._mine.connection.getresponse()
        return Answer(response.status, response.getheader("Retry-After"), response.read())

    def memory(self) -> float:
        """Resident memory, MiB; 0 where the system does not tell."""
        status = Path(f"/proc/{self.process.pid}/status")
        if not status.exists():
            return 0.0
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def processor(self) -> float:
        """Seconds that the server has had of the processor; 0 where the system does not tell."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        if not stat.exists():
            return 0.0
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def load(
    side: Side, photos: list[bytes], expected: list[bytes], count: int
) -> tuple[float, list[float], int]:
    """Seconds in all, each request's own, and how many answers were not the expected ones."""

    def one(number: int) -> tuple[float, bool]:
        which = number % len(photos)
        began = time.perf_counter()
        answer = side.ask(photos[which])
        return time.perf_counter() - began, answer.status == 200 and answer.data == expected[which]

    with ThreadPoolExecutor(CLIENTS) as clients:
        began = time.perf_counter()
        rows = list(clients.map(one, range(count)))
        took = time.perf_counter() - began
    return took, [seconds for seconds, _ in rows], sum(not good for _, good in rows)


def serial(side: Side, photos: list[bytes]) -> list[bytes]:
    """The answers to photos that are asked for one after the other."""
    answers = [side.ask(photo) for photo in photos]
    assert {answer.status for answer in answers} == {200}, answers[0]
    return [answer.data for answer in answers]


def warm(side: Side, photos: list[bytes]) -> None:
    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(side.ask, photos * 3))


def overload(model: Path, photo: bytes) -> dict[str, Any]:
    """64 requests at once to a line of 8 places: what they are answered, and how soon the refused ones."""
    with ours(model, "--workers", "1", "--batch", "1", "--queue", "7") as side:
        gate = threading.Barrier(64)

        def one(_: int) -> tuple[int, bool, float]:
            gate.wait()
            began = time.perf_counter()
            answer = side.ask(photo)
            return answer.status, answer.retry_after is not None, time.perf_counter() - began

        with ThreadPoolExecutor(64) as clients:
            rows = list(clients.map(one, range(64)))
    refused = [(told, seconds) for status, told, seconds in rows if status == 503]
    counts = dict(Counter(status for status, _, _ in rows))
    slowest = max((seconds for _, seconds in refused), default=0.0)
    print(
        f"overload: {counts}, every 503 with Retry-After: {all(told for told, _ in refused)}, within {slowest:.2f} s"
    )
    return {
        "statuses": counts,
        "retry_after": bool(refused) and all(told for told, _ in refused),
        "slowest_503_s": round(slowest, 3),
    }


@contextmanager
def ours(model: Path, *more: str) -> Iterator[Side]:
    """`milseg serve`."""
    command = ["-m", "milseg", "serve", "--model", str(model), "--port", "0", *more]
    with started(command) as (process, port):
        yield Side(process, port, "/v1/segment")


@contextmanager
def rival(name: str, model: Path, photo: bytes) -> Iterator[Side]:
    """A plain handler, with as many threads for torch as suit it."""
    choices = sorted({1, torch.get_num_threads()})
    speeds = {}
    for threads in choices if len(choices) > 1 else []:
        with started([__file__, "--rival", name, str(model), str(threads)]) as (process, port):
            side = Side(process, port, "/segment")
            warm(side, [photo])
            began = time.perf_counter()
            for _ in range(20):
                side.ask(photo)
            speeds[threads] = 20 / (time.perf_counter() - began)
    best = max(speeds, key=lambda n: speeds[n]) if speeds else choices[0]
    with started([__file__, "--rival", name, str(model), str(best)]) as (process, port):
        yield Side(process, port, "/segment", f"{best} of {choices[-1]} threads")


def mask_maker(name: str, folder: str) -> Callable[[Image.Image], UInt8]:
    """From an open photo to its mask, as the rival of that name does it."""
    if name == WITH_MILSEG:
        segmenter = milseg.load(folder)
        return lambda image: segmenter.segment(image).mask
    model, spec = load_model(Path(folder))
    model.to(memory_format=torch.channels_last)

    def make(image: Image.Image) -> UInt8:
        photo = np.asarray(image.convert("RGB"))
        scores = plain_scores(model, photo, longest_side=spec.longest_side, layout=torch.channels_last)
        return top_class(scores)

    return make


def serve_plainly(name: str, folder: str, threads: int) -> None:
    """A rival: FastAPI as in its tutorial, one photo at a time."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    make = mask_maker(name, folder)
    app = FastAPI()

    # `async`, so that one photo is computed at a time: from FastAPI's forty threads at once it is slower still.
    @app.post("/segment")
    async def segment(photo: UploadFile) -> Response:
        with Image.open(io.BytesIO(await photo.read())) as image:
            mask = Image.fromarray(make(image))
        mask.putpalette(palette().tobytes())
        out = io.BytesIO()
        mask.save(out, format="PNG")
        return Response(out.getvalue(), media_type="image/png")

    # As uvicorn's own, which sends without delay.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run([listener])


@contextmanager
def started(command: list[str]) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A Python process that prints its address, and that address's port."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        yield process, int(said.partition("127.0.0.1:")[2].partition("/")[0])
    finally:
        process.terminate()
        process.wait(60)


def random_model(folder: Path) -> Path:
    """A MobileNetV2 whose masks are of no use but have all seven classes."""
    torch.manual_seed(0)
    model = build_fcn("mobilenet_v2", 7, output_stride=16)
    torch.nn.init.normal_(model.score_layer.weight, std=0.1)
    classes = ("background", "cat", "cow", "dog", "horse", "person", "sheep")
    save_model(
        folder,
        model,
        ModelSpec(backbone="mobilenet_v2", classes=classes, output_stride=16, longest_side=320),
    )
    return folder


def photos_of(folder: Path | None, count: int = 32) -> list[bytes]:
    """JPEG files: of the folder, or blocks and slopes of colour with camera noise."""
    if folder is not None:
        return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))[:count]]
    photos = []
    for number in range(count):
        random = np.random.default_rng(number)
        blocks = Image.fromarray(random.integers(0, 255, (6, 8, 3)).astype(np.uint8))
        size = (500, 375) if number % 4 else (375, 500)
        pixels = np.asarray(blocks.resize(size, Image.Resampling.BICUBIC)).astype(float)
        noisy = np.clip(pixels + random.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
        out = io.BytesIO()
        Image.fromarray(noisy).save(out, format="JPEG", quality=90)
        photos.append(out.getvalue())
    return photos


if __name__ == "__main__":
    main()
