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


class PngWriter(Writer):
    """`masks/NAME.png`, class numbers in VOC's colours, void 255; `overlays/NAME.jpg`, over the photo."""

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
    def files_of(cls, name: str, header: Mapping[str, Any]) -> list[str]:
        files = [f"masks/{name}.png"]
        if header.get("overlays") and header.get("overlay_suffix") in OVERLAY_SUFFIXES:
            files.append(f"overlays/{name}{header['overlay_suffix']}")
        return files

    def _write(self, prediction: Prediction) -> None:
        write_mask(self.place(self.out / "masks", prediction.name, ".png"), prediction.mask)
        if not self.overlays:
            return
        photo = prediction.photo
        if photo is None:
            photo = open_photo(prediction.photo_path, max_pixels=self.max_pixels)
        tinted = Image.fromarray(overlay(photo, prediction.mask, self.classes))
        with atomic_path(
            self.place(self.out / "overlays", prediction.name, self.suffix), sync=False
        ) as temporary:
            tinted.save(temporary, quality=90) if self.suffix == ".jpg" else tinted.save(temporary)

    def _finish(self) -> list[Path]:
        return [self.out / "masks", *([self.out / "overlays"] if self.overlays else [])]
