"""INT8 weights with half of their range, for CPUs that add INT8 products in 16 bits.

Without VNNI a CPU adds two products of an unsigned and a signed byte in 16 bits, which overflow
where weights use their whole range. A bundle stores the whole range, which is nearer to float, and
it is halved when the bundle is loaded on such a CPU only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from runtime.int8_weights import int8_weight

# Two products of 255 and 64 are 32,640: within 16 bits.
_HALF = 64


def halve_weights(model: ov.Model) -> int:
    """Change `model` in place, so that w = i * s becomes round(i / 2) * (2 * s).

    Weights that use half of the range already stay as they are.

    Returns:
        How many weights were changed.
    """
    found = [node for node in model.get_ordered_ops() if node.get_type_name() == "Multiply"]
    return sum(_halved(node) for node in found)


def _halved(node: Any) -> bool:
    weight = int8_weight(node)
    if weight is None or weight.zero_point is not None:
        return False
    integers = weight.integers.get_data()
    if integers.dtype != np.int8 or not _exceeds(integers):
        return False
    half = np.round(integers.astype(np.float32) / 2).astype(np.int8)
    scale = weight.scale.get_data()
    # New constants, since several weights may share one.
    as_float = ops.convert(ops.constant(half), scale.dtype)
    product = ops.multiply(as_float, ops.constant(scale * scale.dtype.type(2)))
    product.set_friendly_name(node.get_friendly_name())
    node.output(0).replace(product.output(0))
    return True


def _exceeds(integers: Any) -> bool:
    return bool(integers.size) and max(-int(integers.min()), int(integers.max())) > _HALF
