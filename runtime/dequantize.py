"""INT8 layers in floating point, for devices whose INT8 kernels are slower.

In a bundle, a FakeQuantize rounds the input of a layer to 8 bits. Without it, OpenVINO computes the
layer in floating point from the same INT8 weights. Which is faster on a CPU is measured
(`runtime.selection`).
"""

from __future__ import annotations

import openvino as ov


def dequantize_activations(model: ov.Model) -> int:
    """Remove the rounding of activations, in place; weights stay as they are.

    Returns:
        Number of removed roundings.
    """
    found = [node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    activations = [n for n in found if n.input_value(0).get_node().get_type_name() != "Constant"]
    for node in activations:
        node.output(0).replace(node.input_value(0))
    return len(activations)
