"""A file of `milseg export` in the place of a model folder: ONNX Runtime computes the scores, milseg does the rest.

Only the network inside the file is run, cut out between two tensors that its metadata names, so that views, known tags,
adjustments and refiners work as with a folder.
"""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from milseg.config import EXPORT_SUFFIXES, InferenceConfig
from milseg.errors import UserError
from milseg.inference.model_folder import ModelSpec
from milseg.inference.prior import Prior
from milseg.models.fcn import Layer, map_length

FORMAT = "1"  # of the metadata that `milseg.export.write` writes


def is_onnx_file(place: Path | str) -> bool:
    """Whether a model is given as an exported file rather than as a folder.

    >>> is_onnx_file("cats.onnx"), is_onnx_file("runs/cats")
    (True, False)
    """
    path = Path(place)
    return path.suffix in EXPORT_SUFFIXES.values() and path.parts[:1] != ("hf:",) and not path.is_dir()


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """What a file says of its network beside the scores.

    Attributes:
        input, output: names of the tensors between which the network lies.
        stride, offset, field, minimum, image_padding: as in `milseg.models.fcn.FCN`.
        layers: each a `Layer`'s fields, from which the size of a map follows.
    """

    input: str
    output: str
    stride: int
    offset: float
    field: int
    minimum: int
    image_padding: int
    layers: tuple[Layer, ...]


class OnnxNetwork(nn.Module):
    """What prediction asks of a network (`milseg.inference.tiling.Network`), computed by ONNX Runtime on the CPU."""

    def __init__(self, session: Any, facts: NetworkFacts, classes: int) -> None:
        super().__init__()
        self.stride, self.offset, self.field = facts.stride, facts.offset, facts.field
        self.minimum, self._facts = facts.minimum, facts
        self._session, self._classes = session, classes

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """The (h, w) of the score map of a photo of so many pixels."""
        border = 2 * self._facts.image_padding
        tall, broad = (
            map_length(self._facts.layers, max(side, self.minimum) + border) for side in (height, width)
        )
        return tall, broad

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Scores [B, C, h, w] of normalised photos [B, 3, H, W]."""
        down, right = (max(0, self.minimum - side) for side in images.shape[-2:])
        padded = F.pad(images.float(), (0, right, 0, down)).contiguous()
        scores = torch.from_numpy(self._session.run(None, {self._facts.input: padded.numpy()})[0])
        if scores.ndim != 4 or scores.shape[:2] != (len(images), self._classes):
            raise UserError(
                f"the exported model gives scores of {list(scores.shape)} for {self._classes} classes; export it again"
            )
        return scores


def load_onnx_network(path: Path) -> tuple[OnnxNetwork, ModelSpec]:
    """The network and the settings of an ONNX file that `milseg export` wrote.

    Raises:
        UserError: another kind of file, a damaged one, one that milseg did not write, or a package that is missing.
    """
    if path.suffix != ".onnx":
        raise UserError(
            f"{path}: milseg predicts with model folders and .onnx files; export it with --to onnx"
        )
    onnx = needed("onnx")
    needed("onnxruntime")
    damaged = "damaged or cut short; copy it again, or export it again"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        proto = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's decoders have no error class in common
        raise UserError(f"{path}: no ONNX file, or {damaged} ({_short(error)})") from None
    told = {entry.key: entry.value for entry in proto.metadata_props}
    if "milseg_format" not in told:
        raise UserError(f"{path}: has no settings of milseg inside; expected a file written by milseg export")
    if told["milseg_format"] != FORMAT:
        raise UserError(
            f"{path}: format {told['milseg_format']}, this milseg reads {FORMAT}; export it again"
        )
    try:
        spec = _spec(json.loads(told["spec"]))
        facts = _facts(json.loads(told["network"]))
        inside = _between(onnx, proto, facts.input, facts.output)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: {damaged} ({_short(error)})") from None
    try:
        session = cpu_session(inside)
    except Exception as error:  # nor have onnxruntime's
        raise UserError(f"{path}: {damaged} ({_short(error)})") from None
    return OnnxNetwork(session, facts, len(spec.classes)), spec


def _facts(record: dict[str, Any]) -> NetworkFacts:
    layers = tuple(Layer(*layer) for layer in record.pop("layers"))
    facts = NetworkFacts(layers=layers, **record)
    if not all(isinstance(side, int) and side > 0 for side in (facts.stride, facts.field, facts.minimum)):
        raise ValueError("a network without stride, field or minimum")
    return facts


def _spec(record: dict[str, Any]) -> ModelSpec:
    inference: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in record.pop("inference").items()
    }
    prior = record.pop("prior")
    if prior is not None:
        prior = Prior(**{key: tuple(float(value) for value in values) for key, values in prior.items()})
    classes = tuple(str(name) for name in record.pop("classes"))
    return ModelSpec(classes=classes, inference=InferenceConfig(**inference), prior=prior, **record)


def _between(onnx: Any, proto: Any, start: str, end: str) -> Any:
    """The part of a graph that computes tensor `end` from tensor `start`, as a model of its own."""
    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in weights.values()):
        raise ValueError("weights outside the file")
    maker = {name: number for number, node in enumerate(graph.node) for name in node.output}
    nodes: set[int] = set()
    used: set[str] = set()
    todo = [end]
    while todo:
        name = todo.pop()
        if name in used or name == start or not name:
            continue
        used.add(name)
        if name in weights:
            continue
        if name not in maker:
            raise ValueError(f"nothing computes {name!r} from {start!r}")
        if maker[name] not in nodes:
            nodes.add(maker[name])
            todo += graph.node[maker[name]].input
    helper = onnx.helper
    part = helper.make_graph(
        [graph.node[number] for number in sorted(nodes)],
        "network",
        [helper.make_tensor_value_info(start, onnx.TensorProto.FLOAT, [None, 3, None, None])],
        [helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, [None, None, None, None])],
        [tensor for name, tensor in weights.items() if name in used],
    )
    return helper.make_model(
        part,
        opset_imports=list(proto.opset_import),
        functions=list(proto.functions),
        ir_version=proto.ir_version,
    )


def cpu_session(proto: Any) -> Any:
    """An ONNX Runtime session for an `onnx.ModelProto`, with as many threads as torch; it says nothing by itself."""
    onnxruntime = needed("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # whoever calls tells its errors
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Without the remarks of other programs on their own insides: warnings, and what the logger of that name says."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def needed(package: str) -> Any:
    """An optional package, imported.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(
            f'exported models need the package {package}; install it with pip install "milseg[export]"'
        ) from None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
