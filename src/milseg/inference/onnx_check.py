"""What an ONNX file may hold: the operators that milseg writes, weights inside, sizes that follow the photo's.

ONNX Runtime runs whatever a file says: loops, operators of other packages, maps without end. So a file is measured
before it is parsed (`check_fields_of`), and its network before it is run (`check_network`). Source: ONNX's `onnx.proto`
for the numbers of fields; Protocol Buffers, "Encoding".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

MAX_FILE = 2**31 - 1  # bytes: protobuf reads no more
MOST_FIELDS = 500_000
MOST_NODES = 4000
MOST_NUMBER = 2**16  # of an attribute, and of a whole number among the weights: pads, axes, sizes of kernels
SIDES = (96, 8192)  # of the photos for which every map is measured
# For each pixel: numbers of one map, numbers of all maps, multiplications. VGG-16 has 64, 1,300 and 2,500,000.
MOST_MAP, MOST_MAPS, MOST_WORK = 512, 50_000, 50_000_000

_POOLING = {"auto_pad", "dilations", "kernel_shape", "pads", "strides"}
_SCALING = {"axis", "block_size", "output_dtype", "precision", "saturate"}
# Operators of ONNX's own domain, with their attributes.
OPERATORS: dict[str, set[str]] = {
    "Add": set(),
    "Clip": set(),
    "Concat": {"axis"},
    "Conv": _POOLING | {"group"},
    "DequantizeLinear": _SCALING,
    "Div": set(),
    "Erf": set(),
    "Identity": set(),
    "LayerNormalization": {"axis", "epsilon", "stash_type"},
    "MatMul": set(),
    "MaxPool": _POOLING | {"ceil_mode", "storage_order"},
    "Mul": set(),
    "Pad": {"mode"},
    "QuantizeLinear": _SCALING,
    "Relu": set(),
    "Transpose": {"perm"},
}
# Which fields of a message are messages again, by number.
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 14: "entry", 8: "entry"},
    "graph": {1: "node", 5: "tensor", 11: "value", 12: "value", 13: "value", 14: "entry", 16: "entry"},
    "node": {5: "attribute", 9: "entry"},
    "attribute": {},
    "tensor": {},
    "value": {2: "entry"},
    "entry": {},
}
_REFUSED = {
    ("model", 20): "training information",
    ("model", 25): "functions",
    ("graph", 15): "sparse weights",
}
_REFUSED |= {("attribute", number): "a graph inside an operator" for number in (6, 11)}


def check_fields_of(data: bytes) -> None:
    """Count the fields of an ONNX file, which cost memory once parsed; the weights' bytes count as one.

    Raises:
        ValueError: more than `MOST_FIELDS`, no protobuf, or parts that milseg does not write.
    """
    view, total = memoryview(data), 0
    waiting = [("model", 0, len(data))]
    while waiting:
        kind, start, stop = waiting.pop()
        for number, inner_start, inner_stop in _fields(view, start, stop):
            total += 1
            if total > MOST_FIELDS:
                raise ValueError(f"more than {MOST_FIELDS:,} fields")
            if (kind, number) in _REFUSED:
                raise ValueError(f"holds {_REFUSED[kind, number]}, which milseg does not write")
            inner = _MESSAGES[kind].get(number)
            if inner and inner_start >= 0:
                waiting.append((inner, inner_start, inner_stop))


def _fields(view: memoryview, at: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Each field's number, and where its bytes begin and end; -1 for a plain number."""
    while at < stop:
        key, at = _varint(view, at, stop)
        kind = key & 7
        if kind == 0:
            _, at = _varint(view, at, stop)
            yield key >> 3, -1, -1
            continue
        if kind not in (1, 2, 5):
            raise ValueError("no protobuf, or damaged")
        length, at = _varint(view, at, stop) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        if length > stop - at:
            raise ValueError("cut short")
        yield key >> 3, (at if kind == 2 else -1), at + length
        at += length


def _varint(view: memoryview, at: int, stop: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= stop:
            raise ValueError("cut short")
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("no protobuf, or damaged")


def check_network(
    onnx: Any, part: Any, output_size: Callable[[int, int], tuple[int, int, int]], border: int
) -> None:
    """Check a network that was cut out of a file: operators, weights, and its maps for small and large photos.

    Args:
        part: an `onnx.ModelProto` whose one input is [batch, 3, height, width].
        output_size: [C, h, w] of the scores of a photo of height x width.
        border: pixels that the network itself puts around a photo.

    Raises:
        ValueError: it says what milseg does not write.
    """
    if len(part.graph.node) > MOST_NODES:
        raise ValueError(f"{len(part.graph.node):,} operators; at most {MOST_NODES:,}")
    for node in part.graph.node:
        _check_node(onnx, node)
    for tensor in part.graph.initializer:
        _check_weights(onnx, tensor)
    for side in SIDES:
        found = _check_sizes(onnx, part, side, border)
        wanted = (1, *output_size(side, side))
        if found != wanted:
            raise ValueError(
                f"scores of {list(found)} for a photo of {side} x {side}; expected {list(wanted)}"
            )


def _check_node(onnx: Any, node: Any) -> None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
        name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        raise ValueError(f"holds the operator {name[:80]}, which milseg does not write")
    plain = (
        onnx.AttributeProto.INT,
        onnx.AttributeProto.INTS,
        onnx.AttributeProto.FLOAT,
        onnx.AttributeProto.STRING,
    )
    for attribute in node.attribute:
        numbers = [attribute.i, *attribute.ints]
        if (
            attribute.name not in OPERATORS[node.op_type]
            or attribute.type not in plain
            or len(numbers) > 9
            or any(abs(number) > MOST_NUMBER for number in numbers)
        ):
            raise ValueError(
                f"the operator {node.op_type} has {attribute.name[:80]!r} as milseg does not write it"
            )


def _check_weights(onnx: Any, tensor: Any) -> None:
    """Weights are inside the file, as many as they say, and finite; one number alone may be infinite (a padding)."""
    kinds = onnx.TensorProto
    if tensor.data_location == kinds.EXTERNAL or len(tensor.external_data):
        raise ValueError("weights outside the file")
    if tensor.data_type not in (kinds.FLOAT, kinds.INT64, kinds.INT32, kinds.INT8, kinds.UINT8):
        raise ValueError(f"{tensor.name[:80]!r} holds numbers of a kind that milseg does not write")
    if math.prod(tensor.dims) > tensor.ByteSize() or any(side < 0 for side in tensor.dims):
        raise ValueError(f"{tensor.name[:80]!r} says it is {list(tensor.dims)}, and is smaller")
    values = onnx.numpy_helper.to_array(tensor)
    if values.dtype == np.float32 and (np.isnan(values).any() or (values.ndim and np.isinf(values).any())):
        raise ValueError(f"the weights {tensor.name[:80]!r} are not finite")
    if values.dtype == np.int64 and values.size and np.abs(values).max() > MOST_NUMBER:
        raise ValueError(f"{tensor.name[:80]!r} holds a number over {MOST_NUMBER:,}")


def _check_sizes(onnx: Any, part: Any, side: int, border: int) -> tuple[int, ...]:
    """The size of the scores of a photo of side x side, when all maps on the way there are bounded."""
    sized = onnx.ModelProto()
    sized.CopyFrom(part)
    for dim, length in zip(sized.graph.input[0].type.tensor_type.shape.dim, (1, 3, side, side), strict=True):
        dim.dim_value = length
    sized.graph.output[0].type.tensor_type.ClearField("shape")
    sized = onnx.shape_inference.infer_shapes(sized, check_type=True, strict_mode=True, data_prop=True)
    sizes = {tensor.name: tuple(tensor.dims) for tensor in sized.graph.initializer}
    for value in (*sized.graph.input, *sized.graph.value_info, *sized.graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(dim.HasField("dim_value") for dim in dims):
            sizes[value.name] = tuple(dim.dim_value for dim in dims)
    pixels = (side + 2 * border) ** 2
    numbers = work = 0
    for node in sized.graph.node:
        for name in node.output:
            count = math.prod(sizes[name])
            if not 0 < count <= MOST_MAP * pixels or min(sizes[name]) < 0:
                raise ValueError(f"{node.op_type} gives {list(sizes[name])} for a photo of {side} x {side}")
            numbers += count
            work += count * _work(node, sizes)
    if numbers > MOST_MAPS * pixels or work > MOST_WORK * pixels:
        raise ValueError(f"{numbers:,} numbers and {work:,} multiplications for a photo of {side} x {side}")
    return sizes[sized.graph.output[0].name]


def _work(node: Any, sizes: dict[str, tuple[int, ...]]) -> int:
    """Steps for each number that an operator gives."""
    if node.op_type == "Conv":
        return math.prod(sizes[node.input[1]][1:])
    if node.op_type == "MatMul":
        return sizes[node.input[0]][-1]
    kernels = [attribute.ints for attribute in node.attribute if attribute.name == "kernel_shape"]
    return math.prod(kernels[0]) if kernels else 1
