"""What can be said of photos by reading each once: do they open, how large, what is odd, which are equal."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from milseg.data.bags import Bag
from milseg.data.image import DECODING_ERRORS, FORMATS, MAX_PIXELS, PackedPhoto, following, open_photo
from milseg.errors import UserError
from milseg.utils.parallel import processors

TINY, LONG = 64, 4.0  # pixels of the shorter side; longer side over shorter


@dataclass(frozen=True, kw_only=True)
class PhotoFacts:
    """One photo, read.

    Attributes:
        size: (height, width) upright; None where it could not be read, and
        reason: why.
        odd: what is unusual, each a few words.
        digest: of the file's bytes, where another file has as many.
    """

    size: tuple[int, int] | None
    reason: str = ""
    odd: tuple[str, ...] = ()
    digest: str = ""


def read_photos(
    bags: Sequence[Bag], *, workers: int | None = None, max_pixels: int = MAX_PIXELS, progress: bool = True
) -> list[PhotoFacts]:
    """Facts of every photo, in order; decoded once each, `workers` at a time."""
    lengths = [_length(bag) for bag in bags]
    counts = Counter(lengths)
    ahead = following([bag.photo for bag in bags])

    def read(i: int) -> PhotoFacts:
        if i in ahead:
            ahead[i].soon()
        # Only files of equal length can be the same: the others need no second reading.
        return photo_facts(bags[i], max_pixels=max_pixels, with_digest=counts[lengths[i]] > 1)

    # Decoding runs outside the interpreter's lock, so threads are enough.
    with ThreadPoolExecutor(max_workers=workers or processors()) as pool:
        found = pool.map(read, range(len(bags)))
        return list(tqdm(found, total=len(bags), desc="photos", unit=" photos", disable=not progress))


def _length(bag: Bag) -> int:
    if isinstance(bag.photo, PackedPhoto):
        return bag.photo.length
    if not isinstance(bag.photo, Path):
        return -bag.photo.size
    try:
        return bag.photo.stat().st_size
    except (OSError, ValueError):
        return 0


def photo_facts(bag: Bag, *, max_pixels: int = MAX_PIXELS, with_digest: bool = False) -> PhotoFacts:
    """Decode one photo and say what it is; a photo that cannot be read is a fact too."""
    odd: list[str] = []
    digest = ""
    if isinstance(bag.photo, Path | PackedPhoto):
        try:
            photo = open_photo(bag.photo, max_pixels=max_pixels)
            odd += _file_oddities(bag.photo)
            if with_digest:
                digest = hashlib.sha256(_bytes(bag.photo)).hexdigest()
        except (UserError, OSError) as error:
            return PhotoFacts(size=None, reason=str(error).removeprefix(f"{bag.photo}: "))
    else:
        photo = bag.photo
        digest = hashlib.sha256(photo.tobytes() + repr(photo.shape).encode()).hexdigest()
    height, width = photo.shape[:2]
    if min(height, width) < TINY:
        odd.append(f"tiny ({width} x {height})")
    if max(height, width) > LONG * min(height, width):
        odd.append(f"long and narrow ({width} x {height})")
    # A few rows settle it for nearly every photo.
    if (photo[::16] == photo[0, 0]).all() and (photo == photo[0, 0]).all():
        odd.append("one colour only")
    return PhotoFacts(size=(height, width), odd=tuple(odd), digest=digest)


def _bytes(photo: Path | PackedPhoto) -> bytes:
    return photo.read() if isinstance(photo, PackedPhoto) else photo.read_bytes()


def _file_oddities(path: Path | PackedPhoto) -> list[str]:
    """What the file's header tells; nothing is decoded."""
    try:
        file = io.BytesIO(path.read()) if isinstance(path, PackedPhoto) else path
        with Image.open(file, formats=tuple(name for name in FORMATS if name in Image.OPEN)) as image:
            odd = []
            if getattr(image, "is_animated", False) and image.format != "MPO":
                odd.append("several frames, of which the first is taken")
            if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
                odd.append(f"{image.mode} colours")
            if image.mode.startswith("I") or image.mode == "F":
                odd.append("more than 8 bits, scaled")
            if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
                odd.append("transparency, put on white")
            expected = Image.EXTENSION.get(path.suffix.lower())
            if expected not in (None, image.format) and {expected, image.format} != {"JPEG", "MPO"}:
                odd.append(f"holds {image.format}, called {path.suffix}")
            return odd
    except DECODING_ERRORS:  # it was decoded a moment ago, so this tells nothing
        return []


def same_bytes(facts: Sequence[PhotoFacts]) -> list[list[int]]:
    """Groups of photos with equal bytes."""
    groups: dict[str, list[int]] = {}
    for i, fact in enumerate(facts):
        if fact.digest:
            groups.setdefault(fact.digest, []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def size_ranges(facts: Iterable[PhotoFacts]) -> dict[str, tuple[float, float, float]]:
    """Least, median and largest height, width and megapixels of the photos that could be read."""
    sizes = np.array([fact.size for fact in facts if fact.size is not None], dtype=np.float64).reshape(-1, 2)
    if not len(sizes):
        return {}
    columns = {"height": sizes[:, 0], "width": sizes[:, 1], "megapixels": sizes.prod(1) / 1e6}
    return {
        name: (float(values.min()), float(np.median(values)), float(values.max()))
        for name, values in columns.items()
    }
