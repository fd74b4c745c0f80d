"""Graph passes: rewrites of OpenVINO graphs for the CPU that runs them.

A bundle is the same for every CPU. On x86 without VNNI, two properties of OpenVINO's INT8 kernels
call for another form of the graph (docs/performance.md):

- Products of an unsigned and a signed byte are added in 16 bits, which overflow where weights use
  their full range: `halve_weights`.
- INT8 matrix products reach a sixth of peak performance, INT8 convolutions come close to it:
  `matmul_to_conv1x1`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from runtime.cpu import lacks_vnni

# Two products of 255 and 64 are 32,640: within 16 bits.
_HALF_RANGE = 64


def specialize_for_cpu(model: ov.Model) -> ov.Model:
    """Rewrite `model`, in place, for this machine's CPU."""
    decompress_weights(model)
    if lacks_vnni():
        halve_weights(model)
        matmul_to_conv1x1(model)
    return model


@dataclass(frozen=True)
class Int8Weight:
    """A weight of eight bits, (integers - zero_point) * scale; all are constants of a graph.

    Attributes:
        integers: i8 or u8.
        zero_point: None for 0.
        scale: floating point.
    """

    integers: ov.Node
    zero_point: ov.Node | None
    scale: ov.Node


def int8_weight(node: ov.Node) -> Int8Weight | None:
    """The weight that `node` computes by Constant -> Convert (-> Subtract) -> Multiply, or None."""
    if node.get_type_name() != "Multiply":
        return None
    shifted, scale = (node.input_value(i).get_node() for i in range(2))
    zero_point = None
    if shifted.get_type_name() == "Subtract":
        shifted, zero_point = (shifted.input_value(i).get_node() for i in range(2))
        if zero_point.get_type_name() == "Convert":
            zero_point = zero_point.input_value(0).get_node()
    if shifted.get_type_name() != "Convert" or scale.get_type_name() != "Constant":
        return None
    integers = shifted.input_value(0).get_node()
    kind = integers.get_element_type().get_type_name()
    if integers.get_type_name() != "Constant" or kind not in ("i8", "u8"):
        return None
    return Int8Weight(integers, zero_point, scale)


# Operations between a FakeQuantize and a layer, which do not change the numbers.
_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze")


def decompress_weights(model: ov.Model) -> int:
    """Make weights of eight bits whose layers read floating-point activations constants, in place.

    OpenVINO may round the activations of such layers, too (dynamic quantization).

    Returns:
        Number of decompressed weights.
    """
    layers = [n for kind in ("MatMul", "Convolution") for n in _operations(model, kind)]
    return sum(_decompress(layer) for layer in layers if not _reads_quantized(layer))


def _reads_quantized(layer: Any) -> bool:
    source = layer.input_value(0).get_node()
    while source.get_type_name() in _MOVES:
        source = source.input_value(0).get_node()
    return bool(source.get_type_name() == "FakeQuantize")


def _decompress(layer: Any) -> bool:
    node = layer.input_value(1).get_node()
    in_groups = node.get_type_name() == "Reshape"  # of input channels, each with its scale
    weight = int8_weight(node.input_value(0).get_node() if in_groups else node)
    if weight is None:
        return False
    values, scale = weight.integers.get_data().astype(np.float32), weight.scale.get_data()
    if weight.zero_point is not None:
        values -= weight.zero_point.get_data().astype(np.float32)
    values = (values * scale).astype(np.float32)
    constant = ops.constant(values.reshape(node.get_output_shape(0)))
    layer.input(1).replace_source_output(constant.output(0))
    return True


def halve_weights(model: ov.Model) -> int:
    """Rewrite each weight i * s as round(i / 2) * (2 * s), in place.

    Weights that use only half of the range already are kept.

    Returns:
        Number of rewritten weights.
    """
    return sum(_halve(node) for node in _operations(model, "Multiply"))


def _halve(node: Any) -> bool:
    weight = int8_weight(node)
    if weight is None or weight.zero_point is not None:
        return False
    integers = weight.integers.get_data()
    if integers.dtype != np.int8 or not _exceeds_half_range(integers):
        return False
    half = np.round(integers.astype(np.float32) / 2).astype(np.int8)
    scale = weight.scale.get_data()
    # New constants, since several weights may share one.
    as_float = ops.convert(ops.constant(half), scale.dtype)
    product = ops.multiply(as_float, ops.constant(scale * scale.dtype.type(2)))
    product.set_friendly_name(node.get_friendly_name())
    node.output(0).replace(product.output(0))
    return True


def _exceeds_half_range(integers: Any) -> bool:
    return bool(integers.size) and max(-int(integers.min()), int(integers.max())) > _HALF_RANGE


def matmul_to_conv1x1(model: ov.Model) -> int:
    """Rewrite products with INT8 matrices as 1x1 convolutions, in place.

    The results are the same numbers. Products with floating-point matrices are kept.

    Returns:
        Number of rewritten products.
    """
    return sum(_to_conv1x1(node) for node in _operations(model, "MatMul"))


def _to_conv1x1(product: Any) -> bool:
    """Rewrite a product of x (...,C_in) and an INT8 matrix; False for any other product."""
    flags = product.get_attributes()
    rows = product.input_value(0)
    rank = rows.get_partial_shape().rank.get_length()
    weight = int8_weight(product.input_value(1).get_node())
    if weight is None or flags["transpose_a"] or rank not in (2, 3):
        return False
    if weight.integers.get_element_type() != ov.Type.i8:
        return False
    last = product.output(0)
    bias = _bias(product)
    channels_first = np.array([0, 2, 1])
    x = ops.unsqueeze(rows, np.int64(2)) if rank == 2 else ops.transpose(rows, channels_first)
    x = ops.convolution(x, _as_kernel(weight, flags["transpose_b"]), [1], [0], [0], [1])
    if bias is not None:
        addition, values = bias
        x = ops.add(x, ops.constant(values.reshape(1, -1, 1)))
        last = addition.output(0)
    x = ops.squeeze(x, np.int64(2)) if rank == 2 else ops.transpose(x, channels_first)
    x.set_friendly_name(last.get_node().get_friendly_name())
    last.replace(x.output(0))
    return True


def _as_kernel(weight: Int8Weight, transposed: bool) -> Any:
    """The matrix as a convolution kernel (C_out,C_in,1)."""

    def kernel(constant: Any) -> Any:
        values = np.array(constant.get_data())
        values = values.reshape((1,) * (2 - values.ndim) + values.shape)
        return np.ascontiguousarray(values if transposed else values.T)[..., None]

    x = ops.convert(ops.constant(kernel(weight.integers)), np.float32)
    if weight.zero_point is not None:
        x = ops.subtract(x, ops.constant(kernel(weight.zero_point).astype(np.float32)))
    return ops.multiply(x, ops.constant(kernel(weight.scale).astype(np.float32)))


def _bias(product: Any) -> tuple[Any, Any] | None:
    """The addition of a constant row that is the product's only reader, and the row's values."""
    readers = list(product.output(0).get_target_inputs())
    if len(readers) != 1 or (addition := readers[0].get_node()).get_type_name() != "Add":
        return None
    for index in range(2):
        other = addition.input_value(index).get_node()
        if other.get_type_name() == "Constant":
            values = np.array(other.get_data())
            if values.size == values.shape[-1]:
                return addition, values.astype(np.float32)
    return None


def _operations(model: ov.Model, kind: str) -> list[Any]:
    return [node for node in model.get_ordered_ops() if node.get_type_name() == kind]
