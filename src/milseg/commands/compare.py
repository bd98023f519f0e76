"""`milseg compare`."""

from __future__ import annotations

from milseg.config import CompareOptions
from milseg.experiments.compare import compare as compare_rules
from milseg.utils.devices import keep_freed_memory


def compare(options: CompareOptions) -> None:
    """`milseg compare`."""
    keep_freed_memory()
    compare_rules(options)
    print((options.out / "compare.md").read_text(encoding="utf-8"))
    print(f"Look at {options.out / 'compare.png'}; every run is in {options.out / 'compare.json'}.")
