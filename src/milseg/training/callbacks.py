"""What is told of a training while it runs: subclass `Callback`, override what you need, give it to `fit`.

The trainer's own metrics file and progress bar are callbacks too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm


class Callback:
    """Called by the trainer; each method does nothing until it is overridden.

    An exception ends the run: a `UserError` in all processes with its message.
    """

    def on_start(self, step: int) -> None:
        """Before the first step of this call; `step` is above 0 in a run that goes on. In every process."""

    def on_step(self, record: Mapping[str, float]) -> None:
        """After each step, in every process.

        Args:
            record: step (0-based), loss, learning_rate, images_per_second, seconds (since the run began).
        """

    def on_validation(self, step: int, scores: Mapping[str, Any]) -> None:
        """After a validation, in the first process.

        Args:
            scores: what the `validate` function of the call to `fit` returned.
        """

    def on_checkpoint(self, step: int, path: Path) -> None:
        """After a checkpoint was written, in the first process; `step` steps are in it."""

    def on_end(self) -> None:
        """When the run leaves, for whatever reason. In every process."""


class StepFunction(Callback):
    """A function of (step, loss), called after each step."""

    def __init__(self, function: Callable[[int, float], None]) -> None:
        self.function = function

    def on_step(self, record: Mapping[str, float]) -> None:
        self.function(int(record["step"]), record["loss"])


class MetricsFile(Callback):
    """Writes one JSON line a step; a run that goes on keeps the lines of the steps before.

    Args:
        path: the file; None keeps the records in memory alone.

    Attributes:
        history: the records of all steps so far.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.history: list[dict[str, float]] = []

    def on_start(self, step: int) -> None:
        if self.path is None:
            return
        self.history = [record for record in _read_records(self.path) if record["step"] < step]
        lines = "".join(json.dumps(record) + "\n" for record in self.history)
        self.path.write_text(lines, encoding="utf-8")

    def on_step(self, record: Mapping[str, float]) -> None:
        self.history.append(dict(record))
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


def _read_records(path: Path) -> list[dict[str, float]]:
    records: list[dict[str, float]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break  # the last line of a killed run may be cut short
    return records


class ProgressBar(Callback):
    """A bar on the terminal."""

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.steps = name, steps
        self.bar: tqdm[Any] | None = None

    def on_start(self, step: int) -> None:
        self.bar = tqdm(total=self.steps, initial=step, desc=f"train {self.name}")

    def on_step(self, record: Mapping[str, float]) -> None:
        if self.bar is not None:
            self.bar.update()
            self.bar.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)

    def on_end(self) -> None:
        if self.bar is not None:
            self.bar.close()
