"""Files under a photo's name that are none: what they are, by their first bytes, and the way out."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

HEAD = 1024  # bytes that are looked at

HEIC_BRANDS = (
    b"heic",
    b"heix",
    b"heim",
    b"heis",
    b"hevc",
    b"hevx",
    b"hevm",
    b"hevs",
    b"mif1",
    b"msf1",
    b"mif2",
)
AVIF_BRANDS = (b"avif", b"avis")


def brands(head: bytes) -> set[bytes]:
    """The brands of an ISO media file (HEIC, AVIF, MP4, ...); none for any other file.

    >>> sorted(brands(bytes([0, 0, 0, 24]) + b"ftypheic" + bytes(4) + b"mif1heic"))
    [b'heic', b'mif1']
    """
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12]} | {head[i : i + 4] for i in range(16, end - 3, 4)}


def is_avif(head: bytes) -> bool:
    """Whether a file begins as AVIF does."""
    return bool(brands(head) & set(AVIF_BRANDS))


def is_heic(head: bytes) -> bool:
    """Whether a file begins as HEIC or HEIF does."""
    return bool(brands(head) & set(HEIC_BRANDS)) and not is_avif(head)


def _starts(*starts: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(starts)


def _riff(kind: bytes) -> Callable[[bytes], bool]:
    return lambda head: head[:4] == b"RIFF" and head[8:12] == kind


def _markup(pattern: bytes) -> Callable[[bytes], bool]:
    """A text that begins with a tag, after white space, a byte order mark, comments and declarations."""
    start = re.compile(
        rb"\A(?:\xef\xbb\xbf)?\s*(?:<\?xml.*?\?>\s*|<!--.*?-->\s*|<!doctype[^>]*>\s*)*" + pattern, re.I | re.S
    )
    return lambda head: start.match(head) is not None


def _text(head: bytes) -> bool:
    try:
        # The last letter may be cut in two.
        text = head.decode("utf-8") if len(head) < HEAD else head[:-4].decode("utf-8", "ignore")
    except UnicodeDecodeError:
        return False
    return len(head) > 0 and all(letter.isprintable() or letter in "\r\n\t\f\ufeff" for letter in text)


class Foreign(NamedTuple):
    """A kind of file: whether some first bytes are of it, what it is, and the way out."""

    matches: Callable[[bytes], bool]
    what: str
    way_out: str


PHOTO = "export it as PNG, JPEG or TIFF"
RAW = "a camera's raw file"
DEVELOP = "develop it, and export it as JPEG, PNG or TIFF"
FRAMES = "export its frames as photos, such as by: ffmpeg -i VIDEO -vf fps=1 frame-%05d.png"

FOREIGN: tuple[Foreign, ...] = (
    Foreign(lambda head: not head, "an empty file", "copy it again"),
    Foreign(
        _starts(b"version https://git-lfs"),
        "a Git LFS pointer in place of the photo",
        "fetch the photo: git lfs pull",
    ),
    Foreign(
        _starts(b"\x00\x05\x16\x07", b"\x00\x05\x16\x00"), "what macOS keeps beside a photo", "leave it out"
    ),
    Foreign(
        lambda head: head.lstrip().startswith(b"%PDF-"),
        "a PDF document",
        "export its pages as PNG, such as by: pdftoppm -png",
    ),
    Foreign(_markup(rb"<(?:\w+:)?svg\b"), "an SVG drawing", PHOTO),
    Foreign(
        _markup(rb"<(?:html|head|body|title|script|meta|link|div|p|h1)\b"),
        "a web page (HTML)",
        "download the photo itself",
    ),
    Foreign(lambda head: head[:9].lower() == b"<!doctype", "a web page (HTML)", "download the photo itself"),
    Foreign(_starts(b"<?xml"), "an XML file", "leave it out, or download the photo itself"),
    Foreign(_starts(b"%!PS", b"\xc5\xd0\xd3\xc6"), "a PostScript document", "export it as PNG"),
    Foreign(
        lambda head: head[:4] in (b"II*\0", b"MM\0*") and head[8:10] == b"CR", f"{RAW} (Canon CR2)", DEVELOP
    ),
    Foreign(lambda head: b"crx " in brands(head), f"{RAW} (Canon CR3)", DEVELOP),
    Foreign(_starts(b"FUJIFILMCCD-RAW"), f"{RAW} (Fujifilm RAF)", DEVELOP),
    Foreign(_starts(b"IIU\0"), f"{RAW} (Panasonic RW2)", DEVELOP),
    Foreign(_starts(b"IIRO", b"IIRS", b"MMOR"), f"{RAW} (Olympus ORF)", DEVELOP),
    Foreign(_starts(b"FOVb"), f"{RAW} (Sigma X3F)", DEVELOP),
    Foreign(_starts(b"\0MRM"), f"{RAW} (Minolta MRW)", DEVELOP),
    Foreign(
        lambda head: head[128:132] == b"DICM", "a DICOM file", f"{PHOTO}, such as by: dcmj2pnm --write-png"
    ),
    Foreign(
        lambda head: head[:4] == b"\x5c\x01\0\0" and head[344:347] in (b"n+1", b"ni1"),
        "a NIfTI volume",
        "export its slices as PNG or TIFF",
    ),
    Foreign(_starts(b"SIMPLE  ="), "a FITS file", "export it as TIFF"),
    Foreign(_starts(b"\x89HDF\r\n\x1a\n"), "an HDF5 file", "export its images as TIFF"),
    Foreign(_starts(b"\x93NUMPY"), "a NumPy array", "save it as TIFF or PNG, such as by tifffile.imwrite"),
    Foreign(_starts(b"8BPS"), "a Photoshop document", PHOTO),
    Foreign(_starts(b"gimp xcf"), "a GIMP document", PHOTO),
    Foreign(
        _starts(b"\xff\x0a", b"\0\0\0\x0cJXL "),
        "a JPEG XL file",
        "convert it to JPEG or PNG, such as by: djxl",
    ),
    Foreign(_starts(b"II\xbc\x01"), "a JPEG XR file", "convert it to JPEG or PNG"),
    Foreign(_starts(b"v/1\x01"), "an OpenEXR file", "convert it to TIFF"),
    Foreign(_starts(b"#?RADIANCE", b"#?RGBE"), "a Radiance HDR file", "convert it to TIFF"),
    Foreign(_starts(b"\xd7\xcd\xc6\x9a"), "a Windows metafile", PHOTO),
    Foreign(_starts(b"\0\0\x01\0"), "a Windows icon", PHOTO),
    Foreign(
        lambda head: head[4:8] == b"ftyp" and not is_heic(head) and not is_avif(head),
        "a video (MP4 or MOV)",
        FRAMES,
    ),
    Foreign(lambda head: head[4:8] in (b"moov", b"mdat", b"wide", b"free"), "a video (MOV)", FRAMES),
    Foreign(_riff(b"AVI "), "a video (AVI)", FRAMES),
    Foreign(_starts(b"\x1a\x45\xdf\xa3"), "a video (Matroska or WebM)", FRAMES),
    Foreign(_starts(b"FLV\x01", b"\0\0\x01\xba", b"\0\0\x01\xb3", b"\x30\x26\xb2\x75"), "a video", FRAMES),
    Foreign(_starts(b"ID3", b"OggS", b"fLaC"), "a sound or video file", "leave it out"),
    Foreign(_riff(b"WAVE"), "a sound file", "leave it out"),
    Foreign(_starts(b"PK\x03\x04", b"PK\x05\x06"), "a ZIP archive", "unpack it"),
    Foreign(
        _starts(b"\x1f\x8b", b"7z\xbc\xaf", b"Rar!", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"),
        "an archive",
        "unpack it",
    ),
    Foreign(_starts(b"\xd0\xcf\x11\xe0"), "an Office or thumbnail file of Windows", "leave it out"),
    Foreign(_starts(b"SQLite format 3"), "a database", "leave it out"),
    Foreign(_starts(b"{", b"["), "a JSON text", "download the photo itself"),
)
# Last of all, where no reader knows the file: photos of some old formats are text too.
TEXT = Foreign(_text, "a text file", "download or copy the photo itself")
ZEROS = Foreign(lambda head: not any(head), "a file of zeros", "copy it again")


def foreign_words(head: bytes) -> str | None:
    """What a file is, where its first bytes say that it is no photo, and the way out; None for all others.

    >>> foreign_words(b"%PDF-1.7 ...")
    'a PDF document, not a photo; export its pages as PNG, such as by: pdftoppm -png'
    """
    return next((_words(row) for row in FOREIGN if row.matches(head)), None)


def unknown_words(head: bytes) -> str:
    """What a file is that no reader can read, and the way out."""
    for row in (ZEROS, TEXT):
        if row.matches(head):
            return _words(row)
    return (
        f"not an image that can be read (it begins with {head[:8].hex(' ')}); expected a photo (JPEG, PNG, WebP, "
        "TIFF, ...)"
    )


def _words(row: Foreign) -> str:
    return f"{row.what}, not a photo; {row.way_out}"
