"""Palette PNG masks, and overlays on the photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from milseg.annotations.writer import Prediction, Writer
from milseg.data.image import MAX_PIXELS, open_photo
from milseg.data.masks import write_mask
from milseg.data.overlay import overlay
from milseg.errors import unknown_name
from milseg.utils.files import atomic_path

OVERLAY_SUFFIXES = (".jpg", ".png")
LARGEST_JPEG = 65_500  # pixels of a side, as libjpeg takes them


class PngWriter(Writer):
    """`masks/NAME.png`, class numbers in VOC's colours, void 255; `overlays/NAME.jpg`, over the photo.

    An overlay with a side of more than 65,500 pixels, which JPEG cannot hold, is PNG.
    """

    format = "png"

    def __init__(
        self,
        out: Path,
        classes: Sequence[str],
        *,
        resume: bool = False,
        overlays: bool = True,
        overlay_suffix: str = ".jpg",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """
        Args:
            overlays: write them; the photo is read again where a prediction does not carry its pixels.
            overlay_suffix: one of OVERLAY_SUFFIXES.
            max_pixels: larger photos are refused, where they are read again.
        """
        if overlay_suffix not in OVERLAY_SUFFIXES:
            raise unknown_name("overlay suffix", overlay_suffix, OVERLAY_SUFFIXES)
        self.overlays, self.suffix, self.max_pixels = overlays, overlay_suffix, max_pixels
        super().__init__(out, classes, resume=resume, overlays=overlays, overlay_suffix=overlay_suffix)

    @classmethod
    def files_of(cls, name: str, header: Mapping[str, Any], data: Any = None) -> list[str]:
        files = [f"masks/{name}.png"]
        if header.get("overlays") and header.get("overlay_suffix") in OVERLAY_SUFFIXES:
            suffix = ".png" if data == ".png" else header["overlay_suffix"]
            files.append(f"overlays/{name}{suffix}")
        return files

    def _write(self, prediction: Prediction) -> str | None:
        """Write mask and overlay; returns the overlay's ending where it is not the one asked for."""
        write_mask(self.place(self.out / "masks", prediction.name, ".png"), prediction.mask)
        if not self.overlays:
            return None
        photo = prediction.photo
        if photo is None:
            photo = open_photo(prediction.photo_path, max_pixels=self.max_pixels)
        tinted = Image.fromarray(overlay(photo, prediction.mask, self.classes))
        suffix = self.suffix
        if suffix == ".jpg" and max(prediction.size) > LARGEST_JPEG:
            suffix = ".png"
            self.notes.append(
                f"{prediction.photo_file}: its overlay is PNG, as a side of more than {LARGEST_JPEG:,} pixels is too "
                "large for JPEG"
            )
        with atomic_path(self.place(self.out / "overlays", prediction.name, suffix), sync=False) as temporary:
            tinted.save(temporary, quality=90) if suffix == ".jpg" else tinted.save(temporary)
        return None if suffix == self.suffix else suffix

    def _finish(self) -> list[Path]:
        return [self.out / "masks", *([self.out / "overlays"] if self.overlays else [])]
