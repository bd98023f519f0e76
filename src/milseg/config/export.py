"""Settings of `milseg export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from milseg.errors import UserError

# what --to names -> how the file must end
EXPORT_SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """A model as one file that other programs run: photos in, masks out, without milseg.

    Attributes:
        model: model folder, as `milseg train` writes it, or hf://OWNER/NAME from the Hugging Face hub.
        out: the file; .onnx, .xml (OpenVINO, which puts the weights into a .bin beside it) or .pt2 (torch.export).
        to: onnx, openvino or torch; none goes by the end of --out.
        int8: photos, such as the training folder; .onnx alone. The network computes in 8 bits with scales from up to 64
            of these photos: a third of the file, about half the time on processors with VNNI.
        overwrite: write over an earlier file.
    """

    model: Path
    out: Path
    to: str | None = None
    int8: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        expected = f"expected {', '.join(f'{name} (FILE{end})' for name, end in EXPORT_SUFFIXES.items())}"
        if self.to is not None and self.to not in EXPORT_SUFFIXES:
            raise UserError(f"--to {self.to}: unknown; {expected}")
        if self.out.suffix not in EXPORT_SUFFIXES.values():
            raise UserError(f"--out {self.out}: ends in none of the formats' ends; {expected}")
        if self.to is not None and EXPORT_SUFFIXES[self.to] != self.out.suffix:
            raise UserError(f"--to {self.to} with --out {self.out}: they contradict each other; {expected}")
        if self.int8 is not None and self.format != "onnx":
            raise UserError(
                f"--int8 with --out {self.out}: only ONNX files (FILE.onnx) are written in 8 bits"
            )

    @property
    def format(self) -> str:
        """The key of `EXPORT_SUFFIXES`."""
        return next(name for name, end in EXPORT_SUFFIXES.items() if end == self.out.suffix)
