"""A file of `milseg export` in the place of a model folder: ONNX Runtime computes the scores, milseg does the rest.

Only the network inside the file is run, cut out between two tensors that its metadata names, so that views, known tags,
adjustments and refiners work as with a folder.
"""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from milseg.config import EXPORT_SUFFIXES
from milseg.config.fields import Limits, check_fields, read_fields, shown
from milseg.errors import UserError
from milseg.inference.model_folder import MAX_SETTINGS, ModelSpec
from milseg.inference.onnx_check import MAX_FILE, check_fields_of, check_network
from milseg.models.fcn import Layer, geometry, map_length
from milseg.utils.files import read_limited

FORMAT = "2"  # of the metadata that `milseg.export.write` writes


def is_onnx_file(place: Path | str) -> bool:
    """Whether a model is given as an exported file rather than as a folder.

    >>> is_onnx_file("cats.onnx"), is_onnx_file("runs/cats")
    (True, False)
    """
    path = Path(place)
    return path.suffix in EXPORT_SUFFIXES.values() and path.parts[:1] != ("hf:",) and not path.is_dir()


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """Where the network lies in a file, and its layers, from which the geometry of its maps follows.

    Attributes:
        input, output: names of the tensors between which the network lies.
        image_padding: as in `milseg.models.fcn.FCN`.
        layers: the convolutions and pools on the main path.
    """

    input: str
    output: str
    image_padding: int
    layers: tuple[Layer, ...]

    LIMITS: ClassVar[Mapping[str, Limits]] = {
        "input": Limits(length=(1, 200)),
        "output": Limits(length=(1, 200)),
        "image_padding": Limits(least=0, most=500),
        "layers": Limits(least=0, most=1000, entries=(1, 1000)),
    }

    def __post_init__(self) -> None:
        check_fields(self)
        if any(min(layer.kernel, layer.stride, layer.dilation) < 1 for layer in self.layers):
            raise UserError("layers hold a kernel, stride or dilation of 0; expected 1 or more")
        if not 1 <= geometry(self.layers).stride <= 64 or not self.min_size:
            raise UserError("layers give no map of a photo; expected a stride of at most 64")

    @property
    def min_size(self) -> int:
        """The smallest side in pixels that gives a score-map cell; 0 where none up to 10,000 does."""
        border = 2 * self.image_padding
        return next((n for n in range(1, 10_000) if map_length(self.layers, n + border)), 0)

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """The (h, w) of the score map of a photo of height x width pixels."""
        least, border = self.min_size, 2 * self.image_padding
        tall, broad = (map_length(self.layers, max(side, least) + border) for side in (height, width))
        return tall, broad


class OnnxNetwork(nn.Module):
    """What prediction asks of a network (`milseg.inference.tiling.Network`), computed by ONNX Runtime on the CPU."""

    def __init__(self, session: Any, facts: NetworkFacts, classes: int) -> None:
        super().__init__()
        place = geometry(facts.layers, image_padding=facts.image_padding)
        self.stride, self.offset, self.field = place
        self.minimum, self._facts = facts.min_size, facts
        self._session, self._classes = session, classes

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """The (h, w) of the score map of a photo of height x width pixels."""
        return self._facts.map_size(height, width)

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
    damaged = "damaged, cut short, or no file of milseg export; copy it again, or export it again"
    data = read_limited(path, MAX_FILE, "model")
    try:
        check_fields_of(data)
        proto = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's decoders have no error class in common
        raise UserError(f"{path}: no ONNX file, or {damaged} ({_short(error)})") from None
    del data
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    if "milseg_format" not in metadata:
        raise UserError(f"{path}: has no settings of milseg inside; expected a file written by milseg export")
    if metadata["milseg_format"] != FORMAT:
        raise UserError(
            f"{path}: format {metadata['milseg_format'][:20]}, this milseg reads {FORMAT}; export it again"
        )
    spec = _spec(_record(metadata, "spec", path), f"{path}: spec")
    facts = read_fields(NetworkFacts, _record(metadata, "network", path), f"{path}: network")
    try:
        part = _between(onnx, proto, facts.input, facts.output)
        check_network(
            onnx, part, lambda *side: (len(spec.classes), *facts.map_size(*side)), facts.image_padding
        )
    except Exception as error:  # nor have those of its shape inference
        raise UserError(f"{path}: {damaged} ({_short(error)})") from None
    try:
        session = cpu_session(part)
    except Exception as error:  # nor have onnxruntime's
        raise UserError(f"{path}: {damaged} ({_short(error)})") from None
    return OnnxNetwork(session, facts, len(spec.classes)), spec


def _record(metadata: Mapping[str, str], key: str, path: Path) -> dict[str, Any]:
    """A JSON object in the metadata."""
    text = metadata.get(key, "")
    if len(text) > MAX_SETTINGS:
        raise UserError(f"{path}: {key} has {len(text):,} characters, over the limit of {MAX_SETTINGS:,}")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {key} is damaged ({_short(error)}); export it again") from None
    if not isinstance(record, dict):
        raise UserError(f"{path}: {key} is {shown(record)}; expected settings by name. Export it again")
    return record


def _spec(record: dict[str, Any], where: str) -> ModelSpec:
    prior = record.get("prior")
    if isinstance(prior, dict):  # its numbers are texts, as JSON has no word for infinity
        record["prior"] = {key: _numbers(values) for key, values in prior.items()}
    return read_fields(ModelSpec, record, where, skip_unknown=True)


def _numbers(values: Any) -> Any:
    """Texts of numbers as numbers; whatever else it is comes back, to be refused by name."""
    try:
        return [float(value) if isinstance(value, str) else value for value in values]
    except (ValueError, TypeError):
        return values


def _between(onnx: Any, proto: Any, start: str, end: str) -> Any:
    """The part of a graph that computes tensor `end` from tensor `start`, as a model of its own."""
    graph = proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
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
        opset_imports=[entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx")],
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
