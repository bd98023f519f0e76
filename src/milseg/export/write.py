"""`milseg export`: a model folder as one file that other programs run."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from milseg.config import ExportOptions
from milseg.data.image import UInt8
from milseg.data.sources.photo_inputs import find_photos
from milseg.errors import UserError
from milseg.export.int8 import agreement, calibration_photos, quantize
from milseg.export.photo_graph import INNER, OUTPUTS, PhotoGraph
from milseg.inference.hub import local_folder
from milseg.inference.model_folder import ModelSpec, load_model, spec_record
from milseg.inference.onnx_network import FORMAT, needed, quiet
from milseg.models.fcn import FCN
from milseg.models.fuse import fused
from milseg.utils.files import atomic_path, check_writable, remove_leftovers

log = logging.getLogger("milseg")

OPSET = 18  # the first whose Resize has antialiasing


def export_run(options: ExportOptions) -> None:
    """Write the file.

    Raises:
        UserError: no model, a file that is there already, or a package that is missing.
    """
    written = [options.out] + ([options.out.with_suffix(".bin")] if options.format == "openvino" else [])
    for path in written:
        if path.exists() and not options.overwrite:
            raise UserError(
                f"{path}: is there already; choose another name, or pass --overwrite to replace it"
            )
    for package in (*PACKAGES[options.format], *(("onnxruntime",) if options.int8 else ())):
        needed(package)
    files = find_photos([options.int8]) if options.int8 else []
    model, spec = load_model(local_folder(options.model))
    photos = calibration_photos(files, spec.value_ranges) if options.int8 else []
    if spec.inference.random_walk:
        spec = replace(spec, inference=replace(spec.inference, random_walk=0))
        log.warning("left out: the random walk, which needs the network's inner maps")
    check_writable(options.out.parent)
    for path in written:
        remove_leftovers(path)
    for folder in options.out.parent.iterdir():
        if folder.name.startswith(_half_of(options.out)):
            shutil.rmtree(folder, ignore_errors=True)
    if options.int8:
        write_int8(model, spec, options.out, photos)
    else:
        WRITERS[options.format](model, spec, options.out)


def metadata(model: FCN, spec: ModelSpec) -> dict[str, str]:
    """What a file says of itself, as text by name; `spec` and `network` are what `milseg predict` reads."""
    record = spec_record(spec)
    if spec.prior is not None:  # JSON has no word for infinity
        record["prior"] = {key: [str(value) for value in values] for key, values in record["prior"].items()}
    network = {
        "input": INNER[0],
        "output": INNER[1],
        "layers": model._layers,
        "image_padding": model.image_padding,
    }
    return {
        "milseg_format": FORMAT,
        "milseg_version": spec.milseg_version,
        "classes": json.dumps(spec.classes, ensure_ascii=False),
        "supervision": spec.supervision,
        "inference": json.dumps(record["inference"]),
        "spec": json.dumps(record, ensure_ascii=False, allow_nan=False),
        "network": json.dumps(network),
    }


def traced(model: FCN, spec: ModelSpec, *, inner: bool = False) -> torch.export.ExportedProgram:
    """The photo graph by torch.export, for any number of photos of any size."""
    log.info("tracing the network for photos of any size; this takes from seconds to minutes")
    free = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, 96, 128, 3, dtype=torch.uint8)
    graph = PhotoGraph(fused(model, one_call=False), spec, inner=inner).requires_grad_(False)
    sizes = {"photo": {0: free, 1: free, 2: free}}
    return torch.export.export(graph, (example,), dynamic_shapes=sizes, strict=False)


def onnx_model(model: FCN, spec: ModelSpec) -> Any:
    """The photo graph as an `onnx.ModelProto`, metadata included."""
    with quiet("torch.onnx"):
        graph = traced(model, spec, inner=True)
        log.info("translating the network to ONNX; this takes from seconds to minutes")
        program = torch.onnx.export(
            graph,
            dynamo=True,
            opset_version=OPSET,
            input_names=["photo"],
            output_names=[*OUTPUTS, *INNER],
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    # The inner tensors keep their names, but other programs need not see them.
    for value in [value for value in proto.graph.output if value.name in INNER]:
        proto.graph.output.remove(value)
    _name_sizes(proto)
    for key, text in metadata(model, spec).items():
        proto.metadata_props.add(key=key, value=text)
    proto.doc_string = (
        "milseg: photo uint8 [batch, height, width, 3], RGB, to mask uint8 [batch, height, width]"
    )
    return proto


def _name_sizes(proto: Any) -> None:
    """batch, height and width in place of torch's symbols."""
    names = ("batch", "height", "width")
    photo = next(value for value in proto.graph.input if value.name == "photo")
    symbols = [dim.dim_param for dim in photo.type.tensor_type.shape.dim[:3]]
    words = dict(zip(symbols, names, strict=True))
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                # Sizes of the map are formulas of symbols that nobody knows: left open.
                dim.dim_param = words.get(dim.dim_param, "")
    del proto.graph.value_info[:]


def write_onnx(model: FCN, spec: ModelSpec, out: Path) -> None:
    """An ONNX file with the weights inside."""
    data = onnx_model(model, spec).SerializeToString()
    with atomic_path(out) as temporary:
        temporary.write_bytes(data)


def write_int8(model: FCN, spec: ModelSpec, out: Path, photos: Sequence[UInt8]) -> None:
    """An ONNX file whose network computes in 8 bits; says how far its masks of these photos are those in float32."""
    exact = onnx_model(model, spec)
    log.info(f"measuring the network's inner maps on {len(photos)} photos, for their scales in 8 bits")
    rough = quantize(exact, photos)
    log.info(f"comparing the masks of {len(photos)} photos in 8 bits with those in float32")
    same, worst = agreement(exact, rough, photos)
    with atomic_path(out) as temporary:
        temporary.write_bytes(rough.SerializeToString())
    print(
        f"8 bits, scales from {len(photos)} photos: {100 * same:.1f} % of their pixels get the class that they have in "
        f"float32 ({100 * worst:.1f} % of the worst photo's)"
    )


def write_openvino(model: FCN, spec: ModelSpec, out: Path) -> None:
    """OpenVINO's two files, the weights in float32; the .xml, which names the .bin, appears last."""
    openvino = needed("openvino")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=_half_of(out)) as folder:
        source = Path(folder) / "model.onnx"
        source.write_bytes(onnx_model(model, spec).SerializeToString())
        log.info("translating the network to OpenVINO")
        converted = openvino_model(source)
        for key, text in metadata(model, spec).items():
            converted.set_rt_info(text, ["milseg", key])
        openvino.save_model(converted, Path(folder) / out.name, compress_to_fp16=False)
        for end in (".bin", ".xml"):
            os.replace((Path(folder) / out.name).with_suffix(end), out.with_suffix(end))


def _half_of(out: Path) -> str:
    """How the folders begin in which a file is made; a killed process leaves its own behind."""
    return f".{out.stem}.milseg-"


def openvino_model(path: Path) -> Any:
    """An exported ONNX file as an `openvino.Model`.

    OpenVINO reads ONNX's resize, but leaves its antialiasing out; its own mode named after Pillow takes its place.
    """
    converted = needed("openvino").convert_model(path)
    opset = importlib.import_module("openvino.opset13")
    sides = opset.constant(np.array([2, 3], dtype=np.int64))
    axis = opset.constant(np.array(0, dtype=np.int64))
    for node in converted.get_ops():
        if node.get_type_name() == "Interpolate" and node.get_attributes().get("antialias"):
            size = opset.gather(node.input_value(1), sides, axis)
            resized = opset.interpolate(node.input_value(0), size, "bilinear_pillow", "sizes", axes=sides)
            node.output(0).replace(resized.output(0))
    return converted


def write_torch(model: FCN, spec: ModelSpec, out: Path) -> None:
    """A program of torch.export; `torch.export.load(FILE).module()` runs it."""
    with quiet("torch.onnx"):
        program = traced(model, spec)
    with atomic_path(out) as temporary:
        torch.export.save(program, temporary, extra_files=metadata(model, spec))


WRITERS = {"onnx": write_onnx, "openvino": write_openvino, "torch": write_torch}
PACKAGES = {"onnx": ("onnx", "onnxscript"), "openvino": ("onnx", "onnxscript", "openvino"), "torch": ()}
