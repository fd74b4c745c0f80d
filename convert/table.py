"""The table of token embeddings stays in eight bits: rows are taken first, then scaled.

NNCF scales the whole table before rows are taken from it. That is the same function, but OpenVINO
then holds all of it in floating point: 100 MB more at full size, for the few rows that a prompt
needs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino.opset13 as ops

from runtime.int8_weights import int8_weight


def take_rows_first(model: Any) -> int:
    """Change an `openvino.Model` in place.

    Returns:
        How many tables were changed.
    """
    found = [op for op in model.get_ordered_ops() if op.get_type_name() == "Gather"]
    return sum(_changed(gather) for gather in found)


def _changed(gather: Any) -> bool:
    """Rows of (table * scale) become (rows of the table) * (rows of the scale)."""
    weight = int8_weight(gather.input_value(0).get_node())
    if weight is None or weight.zero_point is not None:
        return False
    table, scale = weight.integers, weight.scale
    if list(scale.shape) != [table.shape[0], 1]:
        return False
    rows, axis = gather.input_value(1), gather.input_value(2)
    taken = ops.convert(ops.gather(table, rows, axis), np.float32)
    scales = ops.gather(scale, rows, axis)
    result = ops.multiply(taken, scales)
    result.set_friendly_name(gather.get_friendly_name())
    gather.output(0).replace(result.output(0))
    return True
