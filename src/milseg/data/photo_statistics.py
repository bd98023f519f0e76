"""What can be said of photos by reading each once: do they open, how large, what is odd, which are equal."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from milseg.data.bags import Bag, BagSet
from milseg.data.foreign_files import HEAD
from milseg.data.image import guarded, read_photo
from milseg.data.raster import Raster, to_rgb
from milseg.data.readers import may_be_deep
from milseg.data.types import MAX_PIXELS, PackedPhoto, following
from milseg.data.value_range import Span, ValueRanges, decide_ranges, range_words
from milseg.errors import UserError
from milseg.utils.parallel import processors

SAMPLED, SAMPLED_IN_SHARDS = 256, 64  # photos that decide a range where not all are read
HARDLY = 0.05  # share of the set's range
TINY, LONG = 64, 4.0  # pixels of the shorter side; longer side over shorter


@dataclass(frozen=True, kw_only=True)
class PhotoFacts:
    """One photo, read.

    Attributes:
        size: (height, width) upright; None where it could not be read, and
        reason: why.
        odd: what is unusual, each a few words.
        notes: those of them that say what of the file is left out.
        span: of its values, where they have more than 8 bits.
        digest: of the file's bytes, where another file has as many.
    """

    size: tuple[int, int] | None
    reason: str = ""
    odd: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    span: Span | None = None
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
    notes: tuple[str, ...] = ()
    span = None
    digest = ""
    if isinstance(bag.photo, Path | PackedPhoto):
        try:
            with guarded(bag.photo, "photo"):
                raster = read_photo(bag.photo, max_pixels=max_pixels)
                photo, span = to_rgb(raster, bag.ranges), raster.span
                if with_digest:
                    digest = hashlib.sha256(_bytes(bag.photo)).hexdigest()
        except UserError as error:
            return PhotoFacts(size=None, reason=str(error).removeprefix(f"{bag.photo}: "))
        odd += _oddities(raster, bag.photo.suffix)
        notes = tuple(note for note in raster.notes if "of which" in note)
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
    return PhotoFacts(size=(height, width), odd=tuple(odd), notes=notes, span=span, digest=digest)


def _bytes(photo: Path | PackedPhoto) -> bytes:
    return photo.read() if isinstance(photo, PackedPhoto) else photo.read_bytes()


def _oddities(raster: Raster, suffix: str) -> list[str]:
    """What the reader noted, and a name that says another format."""
    expected = Image.EXTENSION.get(suffix.lower())
    odd = list(raster.notes)
    if expected not in (None, raster.format) and {expected, raster.format} != {"JPEG", "MPO"}:
        odd.append(f"holds {raster.format}, called {suffix}")
    return odd


def readable_bags(
    bag_set: BagSet, facts: Sequence[PhotoFacts], *, ranges: ValueRanges | None = None
) -> tuple[BagSet, list[PhotoFacts], list[str]]:
    """The bags whose photos can be read, with one range of values for the whole set.

    Args:
        facts: of its photos, in order.
        ranges: of the model, where one is there already; None decides by the photos.

    Returns:
        The set, with notes of what is left out; its photos' facts; "name: reason" of each photo left out.
    """
    bad = [
        f"{bag.name}: {fact.reason}"
        for bag, fact in zip(bag_set.bags, facts, strict=True)
        if fact.size is None
    ]
    good = [i for i, fact in enumerate(facts) if fact.size is not None]
    kept = [facts[i] for i in good]
    if ranges is None:
        ranges = decide_ranges(fact.span for fact in kept)
    notes = reading_notes(kept, ranges)
    if bad:
        notes.insert(0, f"{len(bad)} photos that cannot be read left out, such as {bad[0].partition(':')[0]}")
    bag_set = replace(bag_set, notes=(*bag_set.notes, *notes))
    return bag_set.take(good).with_ranges(ranges), kept, bad


def reading_notes(facts: Sequence[PhotoFacts], ranges: ValueRanges) -> list[str]:
    """What is told of a set's photos once: what of their files is left out, and how deep values are read."""
    counts = Counter(note for fact in facts for note in fact.notes)
    told = [f"{count:,} photos: {note}" for note, count in sorted(counts.items())]
    deep = sum(fact.span is not None for fact in facts)
    if deep:
        told.append(
            f"{deep:,} photos of more than 8 bits: black to white is {range_words(ranges)}, for the whole set; NaN and "
            "infinity are black"
        )
    return told


def outside_range(fact: PhotoFacts, ranges: ValueRanges) -> str:
    """Says so where a photo is next to invisible by the set's range; "" for all others.

    >>> span = Span(kind="float", low=0.0, high=1.0)
    >>> outside_range(PhotoFacts(size=(8, 8), span=span), {"float": (0.0, 255.0)})
    'its values, 0 to 1, are next to one colour in the range of the set, 0 to 255'
    """
    if fact.span is None or fact.span.kind not in ranges or fact.span.low == fact.span.high:
        return ""
    low, high = ranges[fact.span.kind]
    if min(high, fact.span.high) - max(low, fact.span.low) >= HARDLY * (high - low):
        return ""
    return (
        f"its values, {fact.span.low:,.6g} to {fact.span.high:,.6g}, are next to one colour in the range of the set, "
        f"{low:,.6g} to {high:,.6g}"
    )


def sample_ranges(
    photos: Sequence[Path | PackedPhoto], *, max_pixels: int = MAX_PIXELS
) -> dict[str, tuple[float, float]]:
    """The ranges of a set of which not all photos are read: from up to 256 of them, evenly spread.

    Photos that cannot be read decide nothing. Of shards, which may be elsewhere, the first 64 photos are taken.
    """
    chosen: Sequence[Path | PackedPhoto]
    if photos and isinstance(photos[0], PackedPhoto):
        chosen = photos[:SAMPLED_IN_SHARDS]
    else:
        count = min(SAMPLED, len(photos))
        chosen = [photos[i * len(photos) // count] for i in range(count)]
    spans = []
    for photo in chosen:
        try:
            with guarded(photo, "photo"):
                if may_be_deep(_head(photo)):
                    spans.append(read_photo(photo, max_pixels=max_pixels).span)
        except UserError:  # told when its turn comes
            continue
    return decide_ranges(spans)


def _head(photo: Path | PackedPhoto) -> bytes:
    if isinstance(photo, PackedPhoto):
        return photo.read()[:HEAD]
    with photo.open("rb") as file:
        return file.read(HEAD)


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
