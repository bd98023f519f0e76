"""Open a photo or a mask safely: orientation, pixel modes, huge files, files cut short."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from milseg.data.mask_pixels import class_numbers
from milseg.errors import UserError
from milseg.utils.files import PathLike, as_path

MAX_PIXELS = 100_000_000
# ImageNet statistics of RGB in [0, 1], as torchvision's classifiers expect.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# Plain raster formats only: Pillow would hand others (EPS) to an outside program.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF", "HEIF", "TGA")
# What Pillow's decoders raise on damaged data (RuntimeError: AVIF); found by changing bytes at random.
DECODING_ERRORS = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, RuntimeError, OverflowError),
    *(struct.error, zlib.error),
)

UInt8 = NDArray[np.uint8]


def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


class PackedPhoto(ABC):
    """A photo inside another file, as in a tar shard. `str` of it names both, for messages; it can be pickled.

    Attributes:
        length: of the photo's own bytes.
        suffix: as a file of its own would end, such as ".jpg".
        group: what the photos share that lie together, in the order they lie in.
    """

    length: int
    suffix: str
    group: str

    @abstractmethod
    def read(self) -> bytes:
        """The bytes of the photo's file.

        Raises:
            UserError: they cannot be read.
        """

    def soon(self) -> None:  # noqa: B027
        """Begin to fetch it, where it is elsewhere: it will be read soon."""


def following(photos: Sequence[object]) -> dict[int, PackedPhoto]:
    """By the place of each shard's first photo the first photo of the next shard, for photos that are read in order."""
    groups = [photo.group if isinstance(photo, PackedPhoto) else None for photo in photos]
    firsts = [i for i, group in enumerate(groups) if group and (i == 0 or groups[i - 1] != group)]
    found = {here: photos[there] for here, there in pairwise(firsts)}
    return {here: photo for here, photo in found.items() if isinstance(photo, PackedPhoto)}


@contextmanager
def _opened(path: Path | PackedPhoto, kind: str, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image file, check its size before decoding, and turn a decoding failure into a UserError."""
    try:
        with warnings.catch_warnings():
            # Pillow only warns between one and two times its own limit; the limit here is ours and is exact.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            file = path if isinstance(path, Path) else io.BytesIO(path.read())
            with Image.open(file, formats=_formats()) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise UserError(
                        f"{path}: {width} x {height} = {width * height:,} pixels, more than the limit of "
                        f"{max_pixels:,}; not decoded. Make it smaller, or raise --max-pixels if you trust "
                        "the file"
                    )
                yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such {kind}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, not a {kind}") from None
    except PermissionError:
        raise UserError(f"{path}: permission denied; make the {kind} readable") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"{path}: {error}. Make the {kind} smaller") from None
    except UnidentifiedImageError:
        raise UserError(
            f"{path}: not an image that can be read; expected a {kind} (JPEG, PNG, WebP, TIFF, ...)"
        ) from None
    except DECODING_ERRORS as error:
        raise UserError(f"{path}: damaged or cut short ({error}); replace the file or leave it out") from None


def open_photo(path: PathLike | PackedPhoto, *, max_pixels: int = MAX_PIXELS) -> UInt8:
    """Read a photo as RGB, upright.

    Applies the EXIF orientation, scales 16-bit grey to 8 bits, puts transparency on white, takes the first
    frame of an animation. The file itself is never rewritten.

    Returns:
        uint8 [H, W, 3].

    Raises:
        UserError: missing, not an image, cut short, or more than `max_pixels` pixels (refused before
            decoding).
    """
    path = path if isinstance(path, PackedPhoto) else as_path(path)
    with _opened(path, "photo", max_pixels) as image:
        image.load()
        return as_rgb(image)


def photo_pixels(path: Path | PackedPhoto) -> int:
    """How many pixels a photo has, by its header; 0 where it cannot be read, which reading it will tell.

    Of a photo inside another file a guess from its length, which costs no reading.
    """
    if isinstance(path, PackedPhoto):
        return 12 * path.length
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=_formats()) as image:
                return math.prod(image.size)
    except (*DECODING_ERRORS, Image.DecompressionBombError):
        return 0


def as_rgb(image: Image.Image) -> UInt8:
    """A Pillow image upright, in RGB, uint8 [H, W, 3]."""
    return np.asarray(_to_rgb(ImageOps.exif_transpose(image) or image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not isinstance(image.info.get("transparency"), tuple):
        return image
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        # 16-bit files say so by their mode or by their values; Pillow alone would clip them to white.
        deep = image.mode.startswith("I") and (";16" in image.mode or values.max(initial=0) > 255)
        grey = np.clip(np.rint(values * (255.0 / 65535.0 if deep else 1.0)), 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def open_mask(path: Path, *, max_pixels: int = MAX_PIXELS) -> UInt8:
    """Read a mask as the numbers stored in it: palette indices or grey values, never colours.

    A `.mat` file is read as SBD's (field `Segmentation` of `GTcls`).

    Returns:
        uint8 [H, W].

    Raises:
        UserError: missing, damaged, or not of class numbers (see `milseg.data.mask_pixels`).
    """
    if path.suffix.lower() == ".mat":
        return _open_mat(path, max_pixels)
    with _opened(path, "mask", max_pixels) as image:
        return class_numbers(image, path)


def _open_mat(path: Path, max_pixels: int) -> UInt8:
    try:
        return read_segmentation(path.read_bytes(), max_pixels)
    except FileNotFoundError:
        raise UserError(f"{path}: no such mask") from None
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise UserError(
            f"{path}: damaged, or not an SBD mask ({error}); expected a MATLAB 5 file with GTcls.Segmentation"
        ) from None


def read_segmentation(data: bytes, max_pixels: int = MAX_PIXELS) -> UInt8:
    """`GTcls.Segmentation` of a MATLAB 5 file, uint8 [H, W]; nothing else in the file is decoded.

    Written here because a damaged file can end the whole process inside `scipy.io.loadmat`.

    Source: MathWorks, "MAT-File Level 5 File Format": a 128-byte header, then elements of type, length,
    content.

    Raises:
        ValueError, struct.error, zlib.error: damaged, of another kind, or more than `max_pixels` pixels.
    """
    if data[124:128] not in (b"\x00\x01IM", b"\x01\x00MI"):
        raise ValueError("no MATLAB 5 header")
    order = "<" if data[126:128] == b"IM" else ">"
    # What lies beside the mask is small: a file that inflates far beyond it is refused, not unpacked.
    limit = max_pixels + 2**26
    for kind, content in _mat_elements(data[128:], order):
        if kind == MAT_COMPRESSED:
            inflate = zlib.decompressobj()
            content = inflate.decompress(content, limit)
            if not inflate.eof:
                raise ValueError("compressed data cut short or too large")
            kind, content = next(_mat_elements(content, order), (0, b""))
        if kind != MAT_MATRIX:
            continue
        flags, _, name, *rest = _mat_elements(content, order)
        if name[1] == b"GTcls" and struct.unpack_from(order + "I", flags[1])[0] & 255 == MAT_STRUCT:
            return _mat_field(rest, b"Segmentation", order, max_pixels)
    raise ValueError("no struct GTcls")


MAT_MATRIX, MAT_COMPRESSED, MAT_STRUCT, MAT_UINT8 = 14, 15, 2, 9


def _mat_elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Each element's (type, content)."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(order + "2I", data, at)
        if kind >> 16:
            # Up to four bytes lie in the tag itself: length in the upper half, content in the second word.
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            # Elements start at multiples of eight bytes, but for compressed ones.
            start, end = at + 8, at + 8 + (size if kind == MAT_COMPRESSED else -(-size // 8) * 8)
        if start + size > min(len(data), end):
            raise ValueError("cut short")
        yield kind, data[start : start + size]
        at = end


def _mat_field(parts: list[tuple[int, bytes]], field: bytes, order: str, max_pixels: int) -> UInt8:
    """The uint8 matrix in one field of a 1 x 1 struct; `parts` are its name length, names, and values."""
    (_, width), (_, names), *values = parts
    step = struct.unpack(order + "i", width)[0]
    if step <= 0:
        raise ValueError("field names of no length")
    fields = [names[i : i + step].split(b"\0")[0] for i in range(0, len(names), step)]
    if field not in fields[: len(values)]:
        raise ValueError(f"no field {field.decode()}")
    flags, shape, _, *content = _mat_elements(values[fields.index(field)][1], order)
    kind = struct.unpack_from(order + "I", flags[1])[0] & 255
    if kind != MAT_UINT8 or len(shape[1]) != 8 or len(content) != 1:
        raise ValueError(f"{field.decode()} is no two-dimensional uint8 matrix")
    height, length = struct.unpack(order + "2i", shape[1])
    pixels = np.frombuffer(content[0][1], dtype=np.uint8)
    if min(height, length) < 1 or height * length != pixels.size or pixels.size > max_pixels:
        raise ValueError(f"{pixels.size:,} pixels for {length} x {height}, limit {max_pixels:,}")
    # MATLAB stores column by column.
    return np.ascontiguousarray(pixels.reshape(length, height).T)


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
    values = torch.from_numpy(np.array(photo, copy=True)).permute(2, 0, 1).to(torch.float32).div_(255.0)
    return values.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])


def denormalise(image: torch.Tensor) -> UInt8:
    """Back from `normalise`: float32 [3, H, W] to uint8 [H, W, 3].

    >>> photo = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    >>> bool((denormalise(normalise(photo)) == photo).all())
    True
    """
    std, mean = (torch.tensor(v, device=image.device)[:, None, None] for v in (STD, MEAN))
    values = (image.float() * std + mean).mul_(255.0).round_().clamp_(0, 255)
    return np.asarray(values.permute(1, 2, 0).to("cpu", torch.uint8).numpy())
