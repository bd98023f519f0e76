from __future__ import annotations

import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from milseg.data.image import fit_size, normalise, open_mask, open_photo, resize_mask, resize_photo
from milseg.errors import UserError

COLOURS = np.array(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [0, 0, 0], [255, 255, 255]]], dtype=np.uint8
)
GREY = np.array([[0, 128, 255]], dtype=np.uint8)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def grey(*values: int) -> list[list[list[int]]]:
    return [[[v, v, v] for v in values]]


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    photo = open_photo(save(tmp_path / "x.png", Image.fromarray(COLOURS)))
    assert photo.dtype == np.uint8
    np.testing.assert_array_equal(photo, COLOURS)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    path = save(tmp_path / f"x.{suffix}", Image.fromarray(values))
    # 256 / 257 = 0.996, 32768 / 257 = 127.502
    assert open_photo(path).tolist() == grey(0, 1, 128, 255)


def test_32_bit_and_float_grey(tmp_path: Path) -> None:
    deep = Image.fromarray(np.array([[0, 257, 65535]], dtype=np.int32))
    assert open_photo(save(tmp_path / "deep.tif", deep)).tolist() == grey(0, 1, 255)
    shallow = Image.fromarray(np.array([[0, 7, 255]], dtype=np.int32))
    assert open_photo(save(tmp_path / "shallow.tif", shallow)).tolist() == grey(0, 7, 255)
    real = Image.fromarray(np.array([[0, 7.4, 255]], dtype=np.float32))
    assert open_photo(save(tmp_path / "real.tif", real)).tolist() == grey(0, 7, 255)


def test_cmyk(tmp_path: Path) -> None:
    ink = np.array([[[255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 0, 255], [0, 0, 0, 0]]], dtype=np.uint8)
    path = save(tmp_path / "x.tif", Image.fromarray(ink, "CMYK"))
    assert open_photo(path).tolist() == [[[0, 255, 255], [255, 0, 255], [0, 0, 0], [255, 255, 255]]]
    flat = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = open_photo(save(tmp_path / "x.jpg", flat, quality=100))
    assert np.abs(red.astype(int) - [255, 0, 0]).max() <= 3


def test_palette(tmp_path: Path) -> None:
    image = Image.frombytes("P", (3, 1), bytes([2, 0, 1]))
    image.putpalette([1, 2, 3, 40, 50, 60, 255, 0, 7])
    assert open_photo(save(tmp_path / "x.png", image)).tolist() == [[[255, 0, 7], [1, 2, 3], [40, 50, 60]]]
    # Index 0 is transparent: white shows.
    path = save(tmp_path / "clear.png", image, transparency=0)
    assert open_photo(path).tolist() == [[[255, 0, 7], [255, 255, 255], [40, 50, 60]]]


def test_transparency_goes_on_white(tmp_path: Path) -> None:
    rgba = np.array([[[255, 0, 0, 255], [0, 0, 0, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    # 51 of 255 is a fifth of black on white: 204.
    expected = [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]]
    assert open_photo(save(tmp_path / "rgba.png", Image.fromarray(rgba))).tolist() == expected
    keyed = save(tmp_path / "keyed.png", Image.fromarray(COLOURS[1:]), transparency=(0, 0, 0))
    assert open_photo(keyed).tolist() == [[[10, 20, 30], [255, 255, 255], [255, 255, 255]]]
    la = np.array([[[9, 255], [9, 0], [0, 51]]], dtype=np.uint8)
    assert open_photo(save(tmp_path / "la.png", Image.fromarray(la, "LA"))).tolist() == grey(9, 255, 204)


def test_one_bit_and_grey(tmp_path: Path) -> None:
    bits = Image.fromarray(np.array([[0, 255, 0]], dtype=np.uint8)).convert("1")
    assert open_photo(save(tmp_path / "bits.png", bits)).tolist() == grey(0, 255, 0)
    assert open_photo(save(tmp_path / "grey.png", Image.fromarray(GREY))).tolist() == grey(0, 128, 255)


def test_an_animation_shows_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (2, 1), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    path = save(tmp_path / "x.gif", frames[0], save_all=True, append_images=frames[1:])
    assert Image.open(path).n_frames == 2
    assert open_photo(path).tolist() == [[[255, 0, 0], [255, 0, 0]]]


UPRIGHT = [[1, 2, 3], [4, 5, 6]]
# How the upright picture lies in the file for each value of the EXIF tag (Exif 2.3, 4.6.4, Orientation).
STORED = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[3, 6], [2, 5], [1, 4]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[4, 1], [5, 2], [6, 3]],
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "webp", "jpg"])
def test_exif_orientation(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Blocks of 16 pixels of one grey keep their value through JPEG.
    stored = np.kron(np.array(STORED[orientation]) * 40, np.ones((16, 16))).astype(np.uint8)
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"x.{suffix}", Image.fromarray(stored).convert("RGB"), exif=exif, **options)
    before = path.read_bytes()
    photo = open_photo(path)
    assert photo.shape == (32, 48, 3)
    assert np.rint(photo[8::16, 8::16, 0] / 40).tolist() == UPRIGHT
    assert path.read_bytes() == before


def noise(suffix: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, suffix)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "GIF", "WEBP"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_cut_short(tmp_path: Path, suffix: str, part: float) -> None:
    path = tmp_path / f"cut.{suffix}"
    data = noise(suffix)
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(UserError, match=r"cut\.\w+: (damaged or cut short|not an image)"):
        open_photo(path)


def test_files_that_are_no_photos(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_bytes(b"hello")
    (tmp_path / "page.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    for name, words in (
        ("empty.jpg", "an empty file, not a photo; copy it again"),
        ("text.jpg", "a text file, not a photo"),
        ("page.jpg", "a PostScript document, not a photo; export it as PNG"),
        ("none.jpg", "no such photo"),
        (".", "a folder, not a photo"),
    ):
        with pytest.raises(UserError, match=words) as error:
            open_photo(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))


def png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size and whose pixels are missing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_a_bomb_is_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(10_001, 10_000))
    with pytest.raises(
        UserError, match=r"10001 x 10000 = 100,010,000 pixels.*limit of 100,000,000; not decoded"
    ):
        open_photo(path)
    with pytest.raises(UserError, match="not decoded"):
        open_mask(path)
    path.write_bytes(png(60_000, 60_000))
    with pytest.raises(UserError, match=r"bomb\.png: "):
        open_photo(path)
    small = save(tmp_path / "small.png", Image.fromarray(COLOURS))
    assert open_photo(small, max_pixels=6).shape == (2, 3, 3)
    with pytest.raises(UserError, match="6 pixels, more than the limit of 5"):
        open_photo(small, max_pixels=5)


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "AVIF", "JPEG2000", "PPM"])
def test_damaged_photos_end_in_the_documented_error(tmp_path: Path, suffix: str) -> None:
    if suffix not in Image.SAVE:
        pytest.skip(f"Pillow was built without {suffix}")
    whole, rng, refused = noise(suffix), random.Random(0), 0
    path = tmp_path / "x"
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 4])):
            data[rng.randrange(min(len(data), rng.choice([60, 400, len(data)])))] = rng.randrange(256)
        path.write_bytes(data)
        try:
            open_photo(path, max_pixels=10**6)
        except UserError:
            refused += 1
    assert refused > 5


def test_mask_keeps_palette_indices(tmp_path: Path) -> None:
    values = np.array([[0, 1, 20], [255, 15, 0]], dtype=np.uint8)
    image = Image.frombytes("P", (3, 2), values.tobytes())
    image.putpalette([(91 * i) % 256 for i in range(768)])
    mask = open_mask(save(tmp_path / "x.png", image))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, values)
    np.testing.assert_array_equal(open_mask(save(tmp_path / "grey.png", Image.fromarray(values))), values)
    bits = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert open_mask(save(tmp_path / "bits.png", bits)).tolist() == [[0, 1]]


def test_mask_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"x\.png: a mask with RGB pixels in colours; expected a palette or grey PNG"
    ):
        open_mask(save(tmp_path / "x.png", Image.fromarray(COLOURS)))
    with pytest.raises(UserError, match="a JPEG, which changes class numbers"):
        open_mask(save(tmp_path / "x.jpg", Image.fromarray(GREY)))
    with pytest.raises(UserError, match="no such mask"):
        open_mask(tmp_path / "none.png")


def test_resizing(tmp_path: Path) -> None:
    mask = np.array([[1, 255], [20, 0]], dtype=np.uint8)
    assert resize_mask(mask, (4, 4)).tolist() == np.kron(mask, np.ones((2, 2))).tolist()
    assert set(np.unique(resize_mask(mask, (7, 5)))) == {0, 1, 20, 255}
    assert resize_photo(COLOURS, (4, 9)).shape == (4, 9, 3)
    assert resize_photo(COLOURS, (2, 3)) is COLOURS


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((375, 500), 320, (240, 320)),
        ((500, 375), 320, (320, 240)),
        ((100, 90), 320, (100, 90)),
        ((100, 90), None, (100, 90)),
        ((1, 5000), 50, (1, 50)),
    ],
)
def test_fit_size(size: tuple[int, int], longest: int | None, expected: tuple[int, int]) -> None:
    assert fit_size(*size, longest) == expected


def test_normalise() -> None:
    values = normalise(np.array([[[0, 255, 51]]], dtype=np.uint8))
    assert values.shape == (3, 1, 1)
    assert values.dtype == torch.float32
    expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    torch.testing.assert_close(values.flatten(), torch.tensor(expected))
