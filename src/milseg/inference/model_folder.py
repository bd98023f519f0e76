"""Model folders: safe to read, written whole or not at all.

A model folder holds `model.safetensors`, `config.yaml` (how to build the network, what supervised it) and
`labels.json` (the class names). Nothing here is ever unpickled.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml

from milseg._version import __version__
from milseg.config import InferenceConfig
from milseg.config.fields import MOST_ENTRIES, Limits, check_fields, checked, read_fields, shown
from milseg.data.value_range import LARGEST, check_ranges
from milseg.errors import UserError
from milseg.inference.prior import Prior
from milseg.models.backbones import build_fcn
from milseg.models.fcn import FCN
from milseg.refine import find_refiner
from milseg.utils.files import (
    PathLike,
    as_path,
    check_writable,
    did_you_mean,
    read_limited,
    remove_leftovers,
    write_json,
    write_text,
)
from milseg.utils.tensors import finite_tensors, read_tensors, save_tensors
from milseg.utils.yaml import parse_yaml

FILES = ("config.yaml", "labels.json", "model.safetensors")
MAX_SETTINGS = 2**20  # bytes of config.yaml, and of labels.json


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What it takes to build a network again, and what it learned from.

    Attributes:
        backbone, output_stride, vgg_padding: as in `build_fcn`.
        classes: class names, background first.
        supervision: what chose the weights: "tags", "masks", "none (classifier only)", ...
        tags_from: where the tags came from.
        longest_side: the size at which the network saw its training photos; None: their own.
        inference: how its maps become masks.
        prior: the calibration of the image-level prior; None where none was fitted.
        value_ranges: what was black and white in training photos of more than 8 bits, by kind of values.
    """

    backbone: str
    classes: tuple[str, ...]
    output_stride: int | None = None
    vgg_padding: str = "same"
    supervision: str = "tags"
    tags_from: str = ""
    longest_side: int | None = None
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    prior: Prior | None = None
    value_ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    milseg_version: str = __version__

    LIMITS: ClassVar[Mapping[str, Limits]] = {
        "backbone": Limits(length=(0, 100)),
        "classes": Limits(entries=(1, MOST_ENTRIES), length=(1, 500)),
        "output_stride": Limits(least=1, most=64),
        "vgg_padding": Limits(length=(1, 100)),
        "longest_side": Limits(least=1, most=100_000),
        "value_ranges": Limits(least=-LARGEST, most=LARGEST, entries=(2, 2)),
        "milseg_version": Limits(length=(0, 100)),
    }

    def __post_init__(self) -> None:
        check_fields(self)
        check_names(self.classes)
        check_ranges(self.value_ranges)
        if self.prior is not None and len(self.prior.slope) != len(self.classes):
            raise UserError(
                f"prior has {len(self.prior.slope)} numbers for {len(self.classes)} classes; expected one a class"
            )

    def build(self) -> FCN:
        """The network with fresh weights."""
        return build_fcn(
            self.backbone, len(self.classes), output_stride=self.output_stride, vgg_padding=self.vgg_padding
        )


def check_names(classes: Sequence[str]) -> None:
    """Check that every class has a name of its own.

    Raises:
        UserError: a name is blank, or comes twice.
    """
    counts = Counter(classes)
    for number, name in enumerate(classes):
        if not name.strip() or counts[name] > 1:
            problem = "comes twice" if name.strip() else "is blank"
            raise UserError(
                f"classes[{number}] {shown(name)} {problem}; expected a name of its own for each class"
            )


def save_model(folder: PathLike, model: FCN, spec: ModelSpec) -> None:
    """Write a model folder; each file appears whole.

    Raises:
        UserError: the weights are not finite, or the folder cannot be written.
    """
    folder = as_path(folder)
    tensors = finite_tensors(model.state_dict(), folder)
    check_writable(folder)
    for name in FILES:
        remove_leftovers(folder / name)
    record = spec_record(spec)
    classes = record.pop("classes")
    write_text(folder / "config.yaml", yaml.safe_dump(record, sort_keys=False))
    write_json(folder / "labels.json", {"classes": classes})
    save_tensors(folder / "model.safetensors", tensors, {"milseg": __version__})


def spec_record(spec: ModelSpec) -> dict[str, Any]:
    """The spec in plain values, as YAML and JSON hold them."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(spec)))
    return plain


def load_model(folder: PathLike) -> tuple[FCN, ModelSpec]:
    """Build the network of a model folder and read its weights; in evaluation mode, on the CPU.

    Raises:
        UserError: a file is missing, damaged, far too large, or does not fit the others; a setting is of another type,
            out of range or not finite.
    """
    folder = as_path(folder)
    spec = _read_spec(folder)
    try:
        with torch.device("meta"):  # shapes only: memory is taken for weights that fit
            model = spec.build()
        if spec.inference.refine != "none":
            find_refiner(spec.inference.refine)
    except UserError as error:
        raise UserError(f"{folder / 'config.yaml'}: {error}") from None
    weights = folder / "model.safetensors"
    tensors, _ = read_tensors(weights, expected=model.state_dict())
    model.load_state_dict(tensors, assign=True)
    return model.eval(), spec


def _require_files(folder: Path) -> None:
    """Stop at a path that is no model folder; names the one that is meant, where it can be told."""
    expected = f"a model folder holds {', '.join(FILES)}"
    if folder.is_file():
        inside = f"; give its folder, {folder.parent}" if folder.name in FILES else ""
        raise UserError(f"{folder}: a file, and {expected}{inside}")
    if not folder.exists():
        raise UserError(f"{folder}: no such folder, and {expected}{did_you_mean(folder)}")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if len(missing) == len(FILES):
        models = sorted(
            path.parent for path in folder.glob(f"*/{FILES[0]}") if (path.parent / FILES[-1]).is_file()
        )
        if models:
            raise UserError(
                f"{folder}: no model itself, but these in it are: {', '.join(map(str, models[:5]))}"
            )
    if missing:
        raise UserError(f"{folder / missing[0]}: missing; {expected}")


def _read_spec(folder: Path) -> ModelSpec:
    _require_files(folder)
    config, labels = folder / "config.yaml", folder / "labels.json"
    record = _parsed(config, parse_yaml)
    if not isinstance(record, dict):
        raise UserError(f"{config}: holds {shown(record)}; expected settings by name")
    classes = _parsed(labels, json.loads)
    if not isinstance(classes, dict) or "classes" not in classes:
        raise UserError(f'{labels}: no classes; expected {{"classes": [names, background first]}}')
    names = checked(
        classes["classes"], tuple[str, ...], ModelSpec.LIMITS["classes"], f"{labels}: classes", lists=True
    )
    try:
        check_names(names)
    except UserError as error:
        raise UserError(f"{labels}: {error}") from None
    return read_fields(ModelSpec, record | {"classes": list(names)}, str(config), skip_unknown=True)


def _parsed(path: Path, parse: Callable[[str], Any]) -> Any:
    try:
        return parse(read_limited(path, MAX_SETTINGS, "model's settings").decode("utf-8"))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read ({reason}); copy the model folder again") from None
