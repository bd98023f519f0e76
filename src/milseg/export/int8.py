"""An exported ONNX network in 8 bits: ONNX Runtime's static quantisation, with its scales from photos.

Weights have a scale for each channel, maps one scale each, from the least and the greatest value on the photos (QDQ).
Only the network is changed: resizing, interpolation and the rest of the file stay as they are.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from milseg.data.image import UInt8, open_photo
from milseg.data.sources.photo_inputs import PhotoFile
from milseg.data.value_range import ValueRanges
from milseg.errors import UserError
from milseg.inference.onnx_network import cpu_session, needed, quiet

PHOTOS = 64  # more than these say nothing new of the scales


def calibration_photos(photos: Sequence[PhotoFile], ranges: ValueRanges | None = None) -> list[UInt8]:
    """`PHOTOS` of them, evenly spread; those that cannot be read are passed over.

    Raises:
        UserError: none can be read.
    """
    step = max(1, len(photos) // PHOTOS)
    found, reason = list[UInt8](), ""
    for photo in photos[::step][:PHOTOS]:
        try:
            found.append(open_photo(photo.path, ranges=ranges))
        except UserError as error:
            reason = str(error)
    if not found:
        raise UserError(f"--int8: none of the photos can be read, such as {reason}")
    return found


def quantize(proto: Any, photos: Sequence[UInt8]) -> Any:
    """The file `proto` (`milseg.export.write.onnx_model`) with its network in 8 bits, as an `onnx.ModelProto`."""
    needed("onnxruntime")
    onnx, tools = needed("onnx"), importlib.import_module("onnxruntime.quantization")
    network = network_nodes(proto.graph.node)
    kinds = {node.op_type for node in proto.graph.node if node.name in network}
    waiting = iter(photos)

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> dict[str, UInt8] | None:
            photo = next(waiting, None)
            return None if photo is None else {"photo": photo[None]}

    # The tools advise to prepare the model, which does nothing for graphs whose sizes are open, and warn of maps
    # outside the network, of which they compute scales that nothing uses.
    with tempfile.TemporaryDirectory() as folder, quiet(""):
        exact, out = Path(folder) / "exact.onnx", Path(folder) / "rough.onnx"
        # As a file: given the model itself, the tools move its weights out of it.
        exact.write_bytes(proto.SerializeToString())
        tools.quantize_static(
            exact,
            out,
            Reader(),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            op_types_to_quantize=sorted(kinds),
            nodes_to_quantize=sorted(network),
        )
        found = onnx.load(str(out))
    found.metadata_props.add(key="bits", value="8")
    return found


def network_nodes(nodes: Sequence[Any]) -> set[str]:
    """The names of a graph's convolutions and of what lies between them: the network, once for each size of its views.

    Args:
        nodes: `onnx.NodeProto`, each after those whose tensors it takes.
    """
    after, before = set[str](), set[str]()  # tensors that come from a convolution; that one is computed from
    for node in nodes:
        if node.op_type == "Conv" or after.intersection(node.input):
            after.update(node.output)
    for node in reversed(nodes):
        if node.op_type == "Conv" or before.intersection(node.output):
            before.update(node.input)
    return {
        node.name
        for node in nodes
        if node.op_type == "Conv" or (after.intersection(node.input) and before.intersection(node.output))
    }


def agreement(one: Any, other: Any, photos: Sequence[UInt8]) -> tuple[float, float]:
    """The share of pixels of these photos for which two files give the same class: of all, and of the worst photo."""
    sessions = [cpu_session(proto) for proto in (one, other)]
    equal = []
    for photo in photos:
        masks = [session.run(["mask"], {"photo": photo[None]})[0] for session in sessions]
        equal.append((int((masks[0] == masks[1]).sum()), masks[0].size))
    pixels, all_pixels = np.sum(equal, axis=0)
    return float(pixels / all_pixels), min(same / size for same, size in equal)
