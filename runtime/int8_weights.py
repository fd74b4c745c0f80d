"""The form in which OpenVINO's graphs have weights of eight bits."""

from __future__ import annotations

from dataclasses import dataclass

import openvino as ov


@dataclass(frozen=True)
class Int8Weight:
    """(integers - zero_point) * scale; all are constants of a graph.

    Attributes:
        integers: i8 or u8.
        zero_point: None if it is 0.
        scale: in floating point.
    """

    integers: ov.Node
    zero_point: ov.Node | None
    scale: ov.Node


def int8_weight(node: ov.Node) -> Int8Weight | None:
    """What `node` calculates, if it is Constant -> Convert (-> Subtract) -> Multiply."""
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
