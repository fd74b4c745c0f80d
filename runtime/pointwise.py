"""INT8 products with matrices as convolutions of one pixel: the same numbers, by faster kernels.

OpenVINO's INT8 convolutions come close to a CPU's peak everywhere. Its INT8 products of matrices do
so only where there are instructions for them (VNNI): with AVX2 alone they reach a sixth of it
(docs/performance.md). So the form is chosen where a bundle is loaded, not where it is made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from runtime.int8_weights import Int8Weight, int8_weight


def matrices_to_convolutions(model: ov.Model) -> int:
    """Change `model` in place; weights in floating point stay as they are.

    Returns:
        How many products were changed.
    """
    found = [node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul"]
    return sum(_changed(node) for node in found)


def _changed(product: Any) -> bool:
    """Replace x (...,C_in) times an INT8 matrix, if it is that."""
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
    turned = np.array([0, 2, 1])
    x = ops.unsqueeze(rows, np.int64(2)) if rank == 2 else ops.transpose(rows, turned)
    x = ops.convolution(x, _as_kernel(weight, flags["transpose_b"]), [1], [0], [0], [1])
    if bias is not None:
        addition, values = bias
        x = ops.add(x, ops.constant(values.reshape(1, -1, 1)))
        last = addition.output(0)
    x = ops.squeeze(x, np.int64(2)) if rank == 2 else ops.transpose(x, turned)
    x.set_friendly_name(last.get_node().get_friendly_name())
    last.replace(x.output(0))
    return True


def _as_kernel(weight: Int8Weight, transposed: bool) -> Any:
    """The weight of a product as one of a convolution, (C_out,C_in,1)."""

    def kernel(constant: Any) -> Any:
        values = _values(constant)
        values = values.reshape((1,) * (2 - values.ndim) + values.shape)
        return np.ascontiguousarray(values if transposed else values.T)[..., None]

    x = ops.convert(ops.constant(kernel(weight.integers)), np.float32)
    if weight.zero_point is not None:
        x = ops.subtract(x, ops.constant(kernel(weight.zero_point).astype(np.float32)))
    return ops.multiply(x, ops.constant(kernel(weight.scale).astype(np.float32)))


def _bias(product: Any) -> tuple[Any, Any] | None:
    """The addition of a constant row that follows, if nothing else does, and its values."""
    readers = list(product.output(0).get_target_inputs())
    if len(readers) != 1 or (addition := readers[0].get_node()).get_type_name() != "Add":
        return None
    for index in range(2):
        other = addition.input_value(index).get_node()
        if other.get_type_name() == "Constant":
            values = _values(other)
            if values.size == values.shape[-1]:
                return addition, values.astype(np.float32)
    return None


def _values(constant: Any) -> Any:
    return np.array(constant.get_data())
