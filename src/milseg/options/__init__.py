"""What a user can set: one frozen dataclass a command; nothing heavy is imported, so that `--help` is quick."""

from milseg.options.configs import (
    EARLIER,
    PRECISIONS,
    READINGS,
    ROUNDING_ONLY,
    SCHEDULES,
    InferenceConfig,
    TrainConfig,
    check_seed,
    overridden,
    seconds_of,
)
from milseg.options.evaluate import EvaluateOptions
from milseg.options.export import EXPORT_SUFFIXES, ExportOptions
from milseg.options.predict import ListOptions, MergeOptions, PredictOptions
from milseg.options.reproduce import DigitsOptions, VocOptions, VocResultsOptions
from milseg.options.serve import ServeOptions
from milseg.options.shard import ShardOptions
from milseg.options.source import ShardReading, SourceOptions
from milseg.options.train import CheckOptions, CompareOptions, TrainOptions

__all__ = [
    "EARLIER",
    "EXPORT_SUFFIXES",
    "PRECISIONS",
    "READINGS",
    "ROUNDING_ONLY",
    "SCHEDULES",
    "CheckOptions",
    "CompareOptions",
    "DigitsOptions",
    "EvaluateOptions",
    "ExportOptions",
    "InferenceConfig",
    "ListOptions",
    "MergeOptions",
    "PredictOptions",
    "ServeOptions",
    "ShardOptions",
    "ShardReading",
    "SourceOptions",
    "TrainConfig",
    "TrainOptions",
    "VocOptions",
    "VocResultsOptions",
    "check_seed",
    "overridden",
    "seconds_of",
]
