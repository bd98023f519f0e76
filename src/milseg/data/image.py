"""Open a photo or a mask safely: one guard around every decoder, whatever it raises."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image

from milseg.data.foreign_files import HEAD, foreign_words, unknown_words
from milseg.data.mask_pixels import class_numbers
from milseg.data.mat_file import open_mat
from milseg.data.pillow_reader import open_image, raster_of
from milseg.data.raster import CheckSize, NotAnImage, Raster, Refused, to_rgb
from milseg.data.readers import READERS
from milseg.data.types import MAX_PIXELS, PackedPhoto, UInt8
from milseg.data.value_range import ValueRanges
from milseg.errors import UserError
from milseg.utils.files import PathLike, as_path

# Torch alone takes seconds to load: what only decodes photos does without.
if TYPE_CHECKING:
    import torch

__all__ = [
    "MAX_PIXELS",
    "MEAN",
    "STD",
    "PackedPhoto",
    "UInt8",
    "as_rgb",
    "denormalise",
    "fit_size",
    "guarded",
    "normalise",
    "open_mask",
    "open_photo",
    "photo_pixels",
    "read_photo",
    "resize_mask",
    "resize_photo",
]

# ImageNet statistics of RGB in [0, 1], as torchvision's classifiers expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@contextmanager
def guarded(path: Path | PackedPhoto, kind: str) -> Iterator[None]:
    """Whatever reading a photo or mask raises in the block becomes one message that names it.

    Raises:
        UserError: in place of any other exception.
    """
    try:
        yield
    except UserError:
        raise
    except Refused as error:
        raise UserError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such {kind}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, not a {kind}") from None
    except PermissionError:
        raise UserError(f"{path}: permission denied; make the {kind} readable") from None
    except MemoryError:
        raise UserError(f"{path}: needs more memory than there is; make the {kind} smaller") from None
    except Exception as error:
        # Decoders raise what they like: OSError, SyntaxError, struct.error, ZeroDivisionError, OverflowError, ...
        words = str(error) or type(error).__name__
        raise UserError(f"{path}: damaged or cut short ({words}); replace the file or leave it out") from None


def _file_of(path: Path | PackedPhoto) -> BinaryIO:
    return path.open("rb") if isinstance(path, Path) else io.BytesIO(path.read())


def _limit(max_pixels: int) -> CheckSize:
    def check(width: int, height: int, weight: int = 1, /) -> None:
        if width * height * weight > max_pixels:
            counted = f" (counted {weight} times, as its values are large)" * (weight > 1)
            raise Refused(
                f"{width} x {height} = {width * height:,} pixels{counted}, more than the limit of {max_pixels:,}; "
                "not decoded. Make it smaller, or raise --max-pixels if you trust the file"
            )

    return check


def read_photo(path: PathLike | PackedPhoto, *, max_pixels: int = MAX_PIXELS) -> Raster:
    """Read a photo by the reader that its first bytes ask for, whatever its name ends in.

    Applies the EXIF orientation, takes the first frame or page, at most three bands. The file is never rewritten.

    Returns:
        Its values as they are in the file, upright; those of 8 bits in RGB with transparency on white.

    Raises:
        UserError: missing, not an image, cut short, or more than `max_pixels` pixels (refused before
            decoding).
    """
    path = path if isinstance(path, PackedPhoto) else as_path(path)
    with guarded(path, "photo"), _file_of(path) as file:
        head = file.read(HEAD)
        foreign = foreign_words(head)
        if foreign is not None:
            raise Refused(foreign)
        reader = next(row for row in READERS.values() if row.matches(head))
        try:
            return reader.read(file, _limit(max_pixels))
        except NotAnImage:
            raise Refused(unknown_words(head)) from None


def open_photo(
    path: PathLike | PackedPhoto, *, max_pixels: int = MAX_PIXELS, ranges: ValueRanges | None = None
) -> UInt8:
    """Read a photo as RGB of 8 bits, upright (see `read_photo`).

    Args:
        ranges: for values of more than 8 bits, of the set that the photo is in; without one the photo's own values
            decide.

    Returns:
        uint8 [H, W, 3].

    Raises:
        UserError: as `read_photo`.
    """
    path = path if isinstance(path, PackedPhoto) else as_path(path)
    with guarded(path, "photo"):
        return to_rgb(read_photo(path, max_pixels=max_pixels), ranges)


def photo_pixels(path: Path | PackedPhoto) -> int:
    """How many pixels a photo has, by its header; 0 where it cannot be read, which reading it will tell.

    Of a photo inside another file a guess from its length, which costs no reading.
    """
    if isinstance(path, PackedPhoto):
        return 12 * path.length
    try:
        with path.open("rb") as file:
            return math.prod(open_image(file).size)
    except Exception:  # reading it tells what is wrong
        return 0


def as_rgb(image: Image.Image, ranges: ValueRanges | None = None) -> UInt8:
    """A Pillow image upright, in RGB, uint8 [H, W, 3]."""
    image.load()
    return to_rgb(raster_of(image), ranges)


def open_mask(path: Path, *, max_pixels: int = MAX_PIXELS) -> UInt8:
    """Read a mask as the numbers stored in it: palette indices or grey values, never colours.

    A `.mat` file is read as SBD's (field `Segmentation` of `GTcls`).

    Returns:
        uint8 [H, W].

    Raises:
        UserError: missing, damaged, or not of class numbers (see `milseg.data.mask_pixels`).
    """
    if path.suffix.lower() == ".mat":
        return open_mat(path, max_pixels)
    with guarded(path, "mask"), path.open("rb") as file:
        try:
            image = open_image(file)
        except NotAnImage:
            raise Refused("not an image that can be read; expected a palette or 8-bit grey PNG") from None
        _limit(max_pixels)(*image.size)
        return class_numbers(image, path)


def resize_photo(photo: UInt8, size: tuple[int, int]) -> UInt8:
    """Resize uint8 [H, W, 3] to `size` (height, width), bilinear with antialiasing."""
    if photo.shape[:2] == tuple(size):
        return photo
    return np.asarray(Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_mask(mask: UInt8, size: tuple[int, int]) -> UInt8:
    """Resize uint8 [H, W] to `size` (height, width) by nearest neighbour, so that class numbers survive."""
    if mask.shape == tuple(size):
        return mask
    return np.asarray(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def fit_size(height: int, width: int, longest: int | None) -> tuple[int, int]:
    """The size (height, width) whose longest side is at most `longest`; never larger than the photo.

    >>> fit_size(375, 500, 320)
    (240, 320)
    """
    if longest is None or max(height, width) <= longest:
        return height, width
    scale = longest / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def normalise(photo: UInt8) -> torch.Tensor:
    """uint8 [H, W, 3] to float32 [3, H, W]: RGB in [0, 1], less ImageNet's mean, over its deviation."""
    import torch

    values = torch.from_numpy(np.array(photo, copy=True)).permute(2, 0, 1).to(torch.float32).div_(255.0)
    return values.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])


def denormalise(image: torch.Tensor) -> UInt8:
    """Back from `normalise`: float32 [3, H, W] to uint8 [H, W, 3].

    >>> photo = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    >>> bool((denormalise(normalise(photo)) == photo).all())
    True
    """
    import torch

    std, mean = (torch.tensor(v, device=image.device)[:, None, None] for v in (STD, MEAN))
    values = (image.float() * std + mean).mul_(255.0).round_().clamp_(0, 255)
    return np.asarray(values.permute(1, 2, 0).to("cpu", torch.uint8).numpy())
