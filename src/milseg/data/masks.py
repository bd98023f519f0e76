"""Write masks: palette PNGs in PASCAL VOC's colours, and VOC test results."""

from __future__ import annotations

import gzip
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from milseg.data.image import UInt8
from milseg.data.sources.voc import VOC_CLASSES
from milseg.errors import UserError, unknown_name
from milseg.utils.files import atomic_path

# Pixels of a large mask that are worked on together.
BLOCK = 2**20
# Of zlib, 1 to 9. A mask has few edges: 6, the usual one, saves little and takes several times as long.
COMPRESSION = 1


def palette() -> UInt8:
    """VOC's colours, uint8 [256, 3]: the bits of a number are dealt in turn to red, green and blue.

    Bit 3j of the number is bit 7-j of red, bit 3j+1 of green, bit 3j+2 of blue (VOC development kit).

    >>> palette()[[1, 2, 15, 255]].tolist()
    [[128, 0, 0], [0, 128, 0], [192, 128, 128], [224, 224, 192]]
    """
    numbers = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for j in range(3):
        for channel in range(3):
            bit = (numbers >> (3 * j + channel)) & 1
            colours[:, channel] |= (bit << (7 - j)).astype(np.uint8)
    return colours


def write_mask(path: Path, mask: UInt8, *, sync: bool = False) -> None:
    """Write class numbers as an 8-bit palette PNG, atomically; the same mask gives the same bytes.

    Args:
        mask: uint8 [H, W], class numbers and 255 for void.
        sync: also survive a power cut; off, as masks are many and can be made again.

    Raises:
        ValueError: not uint8 [H, W], or empty.
        UserError: the disk is full or the folder cannot be written.
    """
    image = mask_image(mask)
    with atomic_path(path, sync=sync) as temporary:
        image.save(temporary, format="PNG", optimize=False, compress_level=COMPRESSION)


def mask_image(mask: UInt8) -> Image.Image:
    """Class numbers uint8 [H, W] as a palette picture in VOC's colours.

    Raises:
        ValueError: not uint8 [H, W], or empty.
    """
    if mask.dtype != np.uint8 or mask.ndim != 2 or mask.size == 0:
        raise ValueError(f"expected a mask uint8 [H, W], got {mask.dtype} {list(mask.shape)}")
    image = Image.fromarray(mask)
    image.putpalette(palette().tobytes())  # L becomes P; the values stay
    return image


def class_counts(mask: UInt8) -> NDArray[np.int64]:
    """How many pixels have each number, [256].

    >>> class_counts(np.array([[0, 2, 2]], dtype=np.uint8))[:4].tolist()
    [1, 0, 2, 0]
    """
    flat = mask.ravel()
    counts = np.zeros(256, dtype=np.int64)
    for start in range(0, flat.size, BLOCK):
        counts += np.bincount(flat[start : start + BLOCK], minlength=256)
    return counts


def voc_results(
    masks: Iterable[tuple[str, UInt8]],
    out: Path,
    *,
    ids: Sequence[str],
    classes: Sequence[str],
    competition: str = "comp6",
    split: str = "test",
) -> Path:
    """Write VOC 2012 segmentation results as the evaluation server takes them.

    `out/results/VOC2012/Segmentation/{competition}_{split}_cls/ID.png` are palette PNGs with VOC's own class
    numbers, 0 to 20; `out/results.tgz` holds the folder `results`, the same bytes for the same masks.

    Args:
        masks: (photo id, mask uint8 [H, W] in the numbers of `classes`), read one at a time.
        ids: every photo of the image set (`ImageSets/Segmentation/test.txt`); photo sizes are not known here.
        classes: VOC class names, "background" among them; a subset is renumbered to VOC's numbers.
        competition: "comp6" for training on any data, which ImageNet weights are; "comp5" for VOC's own data
            only.
        split: the image set's name.

    Returns:
        The path of the archive.

    Raises:
        UserError: an id that is not in the list, comes twice or never; a class that VOC lacks; a mask with
            void or another number that is no class. The archive is written only when everything is there.
    """
    if competition not in ("comp5", "comp6"):
        raise unknown_name("VOC competition", competition, ("comp5", "comp6"))
    wanted = _checked_ids(ids)
    table = _voc_numbers(classes)
    folder = out / "results" / "VOC2012" / "Segmentation" / f"{competition}_{split}_cls"
    folder.mkdir(parents=True, exist_ok=True)
    written: dict[str, Path] = {}
    for name, mask in masks:
        if name not in wanted:
            raise UserError(f"{name}: not in the image set's list of {len(wanted)} photos; leave it out")
        if name in written:
            raise UserError(f"{name}: comes twice; give each photo one mask")
        if mask.size and int(mask.max()) >= len(classes):
            raise UserError(
                f"{name}: holds the value {int(mask.max())}; results need a class for every pixel, "
                f"0 to {len(classes) - 1}, without void"
            )
        written[name] = folder / f"{name}.png"
        write_mask(written[name], table[mask])
    missing = [name for name in ids if name not in written]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(wanted)} photos of the image set have no mask, the first is "
            f"{missing[0]}; the server takes complete results only"
        )
    strays = sorted(p.name for p in folder.iterdir() if p not in set(written.values()))
    if strays:
        raise UserError(
            f"{folder}: also holds {len(strays)} other files ({strays[0]}, ...); use an empty folder"
        )
    archive = out / "results.tgz"
    with atomic_path(archive) as temporary:
        _write_tgz(temporary, out, [written[name] for name in sorted(written)])
    return archive


def _checked_ids(ids: Sequence[str]) -> set[str]:
    if not ids:
        raise UserError("the image set's list is empty; give the ids of ImageSets/Segmentation/test.txt")
    for name in ids:
        # An id becomes a file name: nothing that could leave the folder.
        if not re.fullmatch(r"\w[\w-]*", name, flags=re.ASCII):
            raise UserError(
                f"{name!r}: not a VOC photo id; expected letters, digits and _ such as 2008_000006"
            )
    if len(set(ids)) != len(ids):
        raise UserError(f"the image set's list names {len(ids) - len(set(ids))} photos twice; list each once")
    return set(ids)


def _voc_numbers(classes: Sequence[str]) -> UInt8:
    for name in classes:
        if name not in VOC_CLASSES:
            raise unknown_name("VOC class", name, VOC_CLASSES)
    return np.array([VOC_CLASSES.index(name) for name in classes], dtype=np.uint8)


def _parents(path: Path) -> Iterator[Path]:
    # From the top down, without "." itself.
    yield from reversed([p for p in path.parents if p.name])


def _write_tgz(target: Path, root: Path, files: Sequence[Path]) -> None:
    folders = {folder for file in files for folder in _parents(file.relative_to(root))}
    # No times, owners or file name: equal masks give equal archives.
    with (
        target.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder.as_posix())
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for file in files:
            entry = tarfile.TarInfo(file.relative_to(root).as_posix())
            entry.size, entry.mode = file.stat().st_size, 0o644
            with file.open("rb") as content:
                archive.addfile(entry, content)
