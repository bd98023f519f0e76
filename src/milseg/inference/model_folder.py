"""Model folders: safe to read, written whole or not at all.

A model folder holds `model.safetensors`, `config.yaml` (how to build the network, what supervised it) and
`labels.json` (the class names). Nothing here is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from milseg._version import __version__
from milseg.config import InferenceConfig
from milseg.errors import UserError
from milseg.inference.prior import Prior
from milseg.models.backbones import build_fcn
from milseg.models.fcn import FCN
from milseg.utils.files import PathLike, as_path, check_writable, remove_leftovers, write_json, write_text
from milseg.utils.tensors import finite_tensors, load_tensors_into, read_tensors, save_tensors
from milseg.utils.yaml import parse_yaml

FILES = ("config.yaml", "labels.json", "model.safetensors")
# What a text that is damaged, or not what it should be, raises on the way to its values.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


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
    milseg_version: str = __version__

    def build(self) -> FCN:
        """The network with fresh weights."""
        return build_fcn(
            self.backbone, len(self.classes), output_stride=self.output_stride, vgg_padding=self.vgg_padding
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
        UserError: a file is missing, damaged, or does not fit the others.
    """
    folder = as_path(folder)
    spec = _read_spec(folder)
    model = spec.build()
    load_tensors_into(model, read_tensors(folder / "model.safetensors")[0], folder / "model.safetensors")
    return model.eval(), spec


def _read_spec(folder: Path) -> ModelSpec:
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: missing; a model folder holds {', '.join(FILES)}")
    try:
        record = parse_yaml((folder / "config.yaml").read_text(encoding="utf-8"))
        labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        classes = labels["classes"]
        if not isinstance(classes, list) or not classes:
            raise TypeError(f"classes are {classes!r}, expected a list of names")
        known = {field.name for field in fields(ModelSpec)} - {"classes"}
        given = {key: value for key, value in record.items() if key in known}
        if "inference" in given:
            given["inference"] = InferenceConfig(**_tuples(given["inference"]))
        if given.get("prior") is not None:
            given["prior"] = Prior(**_tuples(given["prior"]))
        spec = ModelSpec(classes=tuple(str(name) for name in classes), **given)
        if not isinstance(spec.backbone, str) or not isinstance(spec.vgg_padding, str):
            raise TypeError("backbone and vgg_padding are names")
        return spec
    except _DAMAGED as error:
        raise UserError(
            f"{folder}: config.yaml or labels.json cannot be read ({type(error).__name__}: {error}); copy "
            "the model folder again"
        ) from None


def _tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
