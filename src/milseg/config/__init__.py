"""What a user can set: one frozen dataclass a command; nothing heavy is imported, so that `--help` is quick."""

from milseg.config.compare import CompareOptions
from milseg.config.configs import (
    EARLIER,
    PRECISIONS,
    READINGS,
    ROUNDING_ONLY,
    InferenceConfig,
    TrainConfig,
    check_seed,
    overridden,
    overridden_by,
    seconds_of,
    shared_settings,
)
from milseg.config.evaluate import EvaluateOptions
from milseg.config.export import EXPORT_SUFFIXES, ExportOptions
from milseg.config.predict import ListOptions, MergeOptions, PredictOptions
from milseg.config.reproduce import DigitsOptions, VocOptions, VocResultsOptions
from milseg.config.serve import ServeOptions
from milseg.config.shard import ShardOptions
from milseg.config.source import ShardReading, SourceOptions
from milseg.config.train import CheckOptions, TrainOptions

__all__ = [
    "EARLIER",
    "EXPORT_SUFFIXES",
    "PRECISIONS",
    "READINGS",
    "ROUNDING_ONLY",
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
    "overridden_by",
    "seconds_of",
    "shared_settings",
]
