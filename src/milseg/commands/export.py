"""`milseg export`."""

from __future__ import annotations

from milseg.config import ExportOptions
from milseg.export.write import export_run


def export(options: ExportOptions) -> None:
    """`milseg export`."""
    export_run(options)
    print(f"The model is in {options.out}; docs/export.md says how other programs run it.")
    if options.format == "onnx":
        print(f"  milseg predict PHOTOS --model {options.out} --out MASKS")
