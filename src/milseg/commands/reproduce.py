"""`milseg reproduce digits` and `milseg reproduce voc`."""

from __future__ import annotations

from pathlib import Path

from milseg.config import DigitsOptions, VocOptions
from milseg.experiments.digits import reproduce_digits
from milseg.experiments.table1 import APPROACHES, Row, gain
from milseg.experiments.voc import reproduce_voc
from milseg.utils.devices import keep_freed_memory


def digits(options: DigitsOptions) -> None:
    """`milseg reproduce digits`."""
    keep_freed_memory()
    _tell(reproduce_digits(options), options.out)


def voc(options: VocOptions) -> None:
    """`milseg reproduce voc`."""
    keep_freed_memory()
    _tell(reproduce_voc(options), options.out)


def _tell(rows: list[Row], out: Path) -> None:
    print(f"\n{'':28} mean IU, %")
    for row in rows:
        value = "-" if row["mean_iu"] is None else f"{row['mean_iu']:.2f}"
        print(f"{APPROACHES[row['approach']].title:28} {value:>10}   {row['supervision']}")
    print(f"\nMIL-FCN is {gain(rows):.2f} times the baseline with classifier (paper: 1.91).")
    print(
        f"Look at {out / 'figure1.png'}, {out / 'table1.md'}, {out / 'table1.png'} and {out / 'curves.png'}."
    )
