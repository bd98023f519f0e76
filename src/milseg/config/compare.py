"""Settings of `milseg compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from milseg.config.configs import check_seed
from milseg.config.source import SourceOptions
from milseg.errors import UserError


@dataclass(frozen=True, kw_only=True)
class CompareOptions(SourceOptions):
    """Rules side by side: each trained alike from tags, scored as trained, by views, refined, with prior, over seeds.

    Attributes:
        source: photos with tags, as `milseg train` takes them; or digits, scenes made here.
        truth: folder of true masks to score on; only scoring opens it.
        truth_labels: class names of the true masks: voc, or a JSON file; none: labels.json there, else the tags.
        truth_values: what each value of the true masks means, such as 0=background,255=cat, in place of names in
            order; void names what is not scored.
        val_split: photos to score on, where the source has splits and masks of its own.
        rules: names with commas, options in parentheses; oracle learns from the masks, cam is a class activation map
            with the best threshold.
        seeds: with commas; the table gives mean and range.
        rounds: after each rule, so many rounds on its own masks; rules that learn from masks get their steps at once.
        max_steps: updates of each rule; its rounds five and three eighths as many.
        batch_size: photos an update.
        learning_rates: with several, each rule takes its best by the tags of held-out photos; a rule that learns from
            masks by theirs.
        longest_side: larger photos are made this small.
        backbone: network to cast.
        weights: imagenet, a file, or none.
        hold_out: share of the photos kept from training, to calibrate and select by their tags.
        scenes: training scenes of digits.
        out: folder for compare.json, compare.md, compare.png and the runs.
        device: auto, cpu, cuda or mps.
        resume: go on with the runs that an earlier call into the same folder did not finish.
        overwrite: start anew in a folder that already holds a comparison.
    """

    truth: Path | None = None
    truth_labels: str | None = None
    truth_values: tuple[str, ...] | None = None
    val_split: str | None = None
    rules: tuple[str, ...] = ("max", "log-sum-exp-probs(absent=1)", "weighted-pooling")
    seeds: tuple[int, ...] = (0,)
    rounds: int = 0
    max_steps: int = 150
    batch_size: int = 16
    learning_rates: tuple[float, ...] = (1e-3,)
    longest_side: int = 320
    backbone: str = "mobilenet_v2"
    weights: str = "imagenet"
    hold_out: float = 0.1
    scenes: int = 1000
    out: Path = Path("runs/compare")
    device: str = "auto"
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for seed in self.seeds:
            check_seed(seed)
        for name in ("max_steps", "batch_size", "longest_side", "scenes"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected 1 or more")
        if not self.seeds or not self.learning_rates:
            raise UserError("--seeds and --learning-rates: expected one or more numbers")
        if not 0 <= self.rounds <= 20:
            raise UserError(f"--rounds {self.rounds}: expected 0 to 20")
