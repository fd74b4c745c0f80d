"""OpenVINO graphs as ONNX models, for runtimes in a browser.

Weights keep their type in the bundle: eight bits, half precision or float32. They are scaled when a
session is created (ONNX Runtime folds constants), so a download is as small as the bundle, and
inference is in float32. FakeQuantize of activations is dropped: without INT8 kernels, it only costs
accuracy and time.

Shapes must be static. Layers that compute shapes are evaluated here and omitted from the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import openvino as ov
from onnx import TensorProto, helper, numpy_helper

from convert.errors import ConversionError

OPSET = 18
IR_VERSION = 9

_TENSOR_TYPES = {
    "f32": TensorProto.FLOAT,
    "f16": TensorProto.FLOAT16,
    "i64": TensorProto.INT64,
    "i32": TensorProto.INT32,
    "i8": TensorProto.INT8,
    "u8": TensorProto.UINT8,
    "boolean": TensorProto.BOOL,
}

# OpenVINO's layer -> ONNX's operator, where inputs and meaning are the same.
_SAME = {
    "Add": "Add",
    "Maximum": "Max",
    "Minimum": "Min",
    "Multiply": "Mul",
    "Subtract": "Sub",
    "Divide": "Div",
    "Relu": "Relu",
    "Round": "Round",  # both round halves to even
    "Sigmoid": "Sigmoid",
    "Sqrt": "Sqrt",
    "Reshape": "Reshape",
    "Tanh": "Tanh",
}
# Layers that compute shapes and indices: evaluated where their inputs are known.
_INTEGERS = ("i64", "i32", "u64", "u32", "boolean")


def to_onnx(model: ov.Model, name: str) -> onnx.ModelProto:
    """Translate an OpenVINO model with static shapes.

    Args:
        model: model with named inputs and outputs.
        name: name of the ONNX graph.

    Raises:
        ConversionError: a shape is dynamic, or a layer has no translation.
    """
    if any(port.partial_shape.is_dynamic for port in model.inputs):
        raise ConversionError("only models with static input shapes can be written as ONNX")
    return _Translation(model, name).result()


class _Translation:
    """One pass over the layers in order: `known` holds constants, `names` all other values."""

    def __init__(self, model: ov.Model, name: str) -> None:
        self.model, self.name = model, name
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.names: dict[tuple[str, int], str] = {}
        self.known: dict[tuple[str, int], np.ndarray] = {}

    def result(self) -> onnx.ModelProto:
        for op in self.model.get_ordered_ops():
            self._translate(op)
        graph = helper.make_graph(
            self.nodes,
            self.name,
            [self._port(port) for port in self.model.inputs],
            [self._port(port) for port in self.model.outputs],
            list(self.initializers.values()),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        onnx.checker.check_model(made, full_check=False)
        return made

    @staticmethod
    def _port(port: Any) -> onnx.ValueInfoProto:
        kind = _TENSOR_TYPES[port.get_element_type().get_type_name()]
        return helper.make_tensor_value_info(port.get_any_name(), kind, list(port.shape))

    def _translate(self, op: ov.Node) -> None:
        kind = op.get_type_name()
        if kind == "Constant":
            self.known[_key(op.output(0))] = op.data
        elif kind == "Parameter":
            self.names[_key(op.output(0))] = op.output(0).get_any_name()
        elif kind == "Result":
            source = self._name(op.input_value(0))
            self._emit("Identity", [source], [op.input_value(0).get_any_name()])
        elif kind == "ShapeOf":
            self._know_shape(op)
        elif not self._evaluate(op):
            translate = _OWN.get(kind) or (_copy if kind in _SAME else None)
            if translate is None:
                raise ConversionError(
                    f"layer {op.get_friendly_name()} is a {kind}, which has no ONNX translation: "
                    "report this together with the output of `galip-edge info`"
                )
            translate(self, op)

    def _know_shape(self, op: ov.Node) -> None:
        shape = op.input_value(0).get_partial_shape()
        if shape.is_dynamic:
            raise ConversionError(f"layer {op.get_friendly_name()} reads a dynamic shape")
        self.known[_key(op.output(0))] = np.array(list(shape.to_shape()), dtype=np.int64)

    def _evaluate(self, op: ov.Node) -> bool:
        """Compute a layer of integers whose inputs are all known."""
        outputs = [op.output(i) for i in range(op.get_output_size())]
        kinds = {port.get_element_type().get_type_name() for port in outputs}
        inputs = [self.known.get(_key(op.input_value(i))) for i in range(op.get_input_size())]
        if not kinds <= set(_INTEGERS) or any(value is None for value in inputs):
            return False
        for port, value in zip(outputs, _computed(op, inputs), strict=True):
            self.known[_key(port)] = value
        return True

    def _name(self, output: Any) -> str:
        """Name of a value; a constant becomes an initializer when it is first needed."""
        key = _key(output)
        if key not in self.names:
            name = f"constant_{len(self.initializers)}"
            self.names[key] = name
            array = np.array(self.known[key], order="C")
            if array.dtype in (np.uint64, np.uint32):  # axes and indices, which ONNX wants signed
                array = array.astype(np.int64)
            self.initializers[name] = numpy_helper.from_array(array, name)
        return self.names[key]

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        """Name of a new initializer; equal ones are shared."""
        array = np.asarray(values, dtype=dtype)
        name = f"{array.dtype}_{'x'.join(map(str, array.shape))}_" + "_".join(
            map(str, array.ravel()[:6].tolist())
        )
        if array.size > 6:
            name += f"_{len(self.initializers)}"
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(array, name)
        return name

    def value(self, op: ov.Node, index: int) -> np.ndarray:
        """A constant input, such as axes. Raises ConversionError if it is not constant."""
        found = self.known.get(_key(op.input_value(index)))
        if found is None:
            raise ConversionError(
                f"input {index} of layer {op.get_friendly_name()} ({op.get_type_name()}) must be "
                "constant"
            )
        return found

    def inputs(self, op: ov.Node, *indices: int) -> list[str]:
        """Names of inputs; all of them if no index is given."""
        return [self._name(op.input_value(i)) for i in indices or range(op.get_input_size())]

    def outputs(self, op: ov.Node) -> list[str]:
        """Names of a layer's outputs."""
        names = []
        for i in range(op.get_output_size()):
            self.names[_key(op.output(i))] = name = f"{op.get_friendly_name()}:{i}"
            names.append(name)
        return names

    def same(self, op: ov.Node, index: int = 0) -> None:
        """A layer that passes its input through."""
        source = op.input_value(index)
        if _key(source) in self.known:
            self.known[_key(op.output(0))] = self.known[_key(source)]
        else:
            self.names[_key(op.output(0))] = self._name(source)

    def _emit(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, outputs, **attributes))

    def emit(self, kind: str, op: ov.Node, inputs: list[str], **attributes: Any) -> None:
        """Append the operator that replaces a layer."""
        self._emit(kind, inputs, self.outputs(op), **attributes)

    def intermediate(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        """Append an auxiliary operator; returns the name of its output."""
        name = f"intermediate_{len(self.nodes)}"
        self._emit(kind, inputs, [name], **attributes)
        return name


def _key(output: Any) -> tuple[str, int]:
    return output.get_node().get_name(), output.get_index()


def _computed(op: ov.Node, inputs: list[Any]) -> list[np.ndarray]:
    """Outputs of a layer for known inputs, evaluated by OpenVINO."""
    tensors = [ov.Tensor(np.array(value, order="C")) for value in inputs]
    made = []
    for i in range(op.get_output_size()):
        port = op.output(i)
        made.append(ov.Tensor(port.get_element_type(), port.get_partial_shape().to_shape()))
    if not op.evaluate(made, tensors):
        raise ConversionError(f"layer {op.get_friendly_name()} could not be evaluated")
    return [np.array(tensor.data) for tensor in made]


# --- translations of single layers --------------------------------------------------------------

Translate = Callable[[_Translation, ov.Node], None]


def _copy(t: _Translation, op: ov.Node) -> None:
    t.emit(_SAME[op.get_type_name()], op, t.inputs(op))


def _convert(t: _Translation, op: ov.Node) -> None:
    target = op.get_output_element_type(0).get_type_name()
    t.emit("Cast", op, t.inputs(op), to=_TENSOR_TYPES[target])


def _fake_quantize(t: _Translation, op: ov.Node) -> None:
    t.same(op)


def _matmul(t: _Translation, op: ov.Node) -> None:
    attributes = op.get_attributes()
    names = []
    for i, side in enumerate(("transpose_a", "transpose_b")):
        name = t.inputs(op, i)[0]
        if attributes[side]:
            order = list(range(len(op.input_value(i).get_partial_shape())))
            order[-2:] = order[-1], order[-2]
            name = t.intermediate("Transpose", [name], perm=order)
        names.append(name)
    t.emit("MatMul", op, names)


def _transpose(t: _Translation, op: ov.Node) -> None:
    t.emit("Transpose", op, t.inputs(op, 0), perm=t.value(op, 1).tolist())


def _convolution(t: _Translation, op: ov.Node) -> None:
    attributes = op.get_attributes()
    if attributes["auto_pad"] not in ("explicit", "valid"):
        raise ConversionError(f"padding {attributes['auto_pad']} has no ONNX translation")
    t.emit(
        "Conv",
        op,
        t.inputs(op, 0, 1),
        strides=list(attributes["strides"]),
        dilations=list(attributes["dilations"]),
        pads=[*attributes["pads_begin"], *attributes["pads_end"]],
    )


def _prelu(t: _Translation, op: ov.Node) -> None:
    slope = t.value(op, 1)
    if slope.size != 1:
        raise ConversionError("a PRelu with one slope per channel has no ONNX translation")
    t.emit("LeakyRelu", op, t.inputs(op, 0), alpha=float(slope.ravel()[0]))


def _mvn(t: _Translation, op: ov.Node) -> None:
    """Mean and variance over the last axis: a layer norm, whose scale and shift follow."""
    attributes, shape = op.get_attributes(), op.get_output_partial_shape(0).to_shape()
    axes = [axis % len(shape) for axis in t.value(op, 1).ravel().tolist()]
    if axes != [len(shape) - 1] or attributes["eps_mode"].upper() != "INSIDE_SQRT":
        raise ConversionError("an MVN over other axes than the last has no ONNX translation")
    ones = t.constant(np.ones(shape[-1]), np.float32)
    t.emit("LayerNormalization", op, [*t.inputs(op, 0), ones], epsilon=attributes["eps"])


def _squeeze(t: _Translation, op: ov.Node) -> None:
    """Squeeze and Unsqueeze; ONNX requires a vector of axes."""
    axes = [t.constant(t.value(op, 1).ravel())] if op.get_input_size() > 1 else []
    t.emit(op.get_type_name(), op, [*t.inputs(op, 0), *axes])


def _slice(t: _Translation, op: ov.Node) -> None:
    """OpenVINO's order is start, stop, step, axes; ONNX's is start, end, axes, step."""
    order = (0, 1, 2, 4, 3) if op.get_input_size() == 5 else (0, 1, 2)
    names = t.inputs(op, *order)
    if len(order) == 3:
        axes = t.constant(np.arange(t.value(op, 1).size))
        names += [axes, *t.inputs(op, 3)]
    t.emit("Slice", op, names)


def _softmax(t: _Translation, op: ov.Node) -> None:
    t.emit("Softmax", op, t.inputs(op), axis=int(op.get_attributes()["axis"]))


def _concat(t: _Translation, op: ov.Node) -> None:
    t.emit("Concat", op, t.inputs(op), axis=int(op.get_attributes()["axis"]))


def _split(t: _Translation, op: ov.Node) -> None:
    count, axis = int(op.get_attributes()["num_splits"]), int(t.value(op, 1))
    t.emit("Split", op, t.inputs(op, 0), axis=axis, num_outputs=count)


def _gather(t: _Translation, op: ov.Node) -> None:
    if int(op.get_attributes()["batch_dims"]):
        raise ConversionError("a Gather with batch dimensions has no ONNX translation")
    t.emit("Gather", op, t.inputs(op, 0, 1), axis=int(t.value(op, 2)))


def _gather_nd(t: _Translation, op: ov.Node) -> None:
    t.emit("GatherND", op, t.inputs(op), batch_dims=int(op.get_attributes()["batch_dims"]))


def _top_k(t: _Translation, op: ov.Node) -> None:
    attributes = op.get_attributes()
    count = t.constant([int(t.value(op, 1))])
    largest = int(attributes["mode"] == "max")
    inputs = [*t.inputs(op, 0), count]
    t.emit("TopK", op, inputs, axis=int(attributes["axis"]), largest=largest, sorted=1)


def _broadcast(t: _Translation, op: ov.Node) -> None:
    target = t.constant(t.value(op, 1))
    t.emit("Expand", op, [*t.inputs(op, 0), target])


def _depth_to_space(t: _Translation, op: ov.Node) -> None:
    attributes = op.get_attributes()
    mode = {"depth_first": "CRD", "blocks_first": "DCR"}[attributes["mode"]]
    t.emit("DepthToSpace", op, t.inputs(op), blocksize=int(attributes["block_size"]), mode=mode)


def _interpolate(t: _Translation, op: ov.Node) -> None:
    attributes = op.get_attributes()
    plain = (attributes["mode"], attributes["coordinate_transformation_mode"])
    if plain != ("nearest", "asymmetric") or attributes["nearest_mode"] != "floor":
        raise ConversionError(f"an Interpolate of mode {plain} has no ONNX translation")
    sizes = t.constant(op.get_output_partial_shape(0).to_shape())
    t.emit(
        "Resize",
        op,
        [*t.inputs(op, 0), "", "", sizes],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


_OWN: dict[str, Translate] = {
    "Broadcast": _broadcast,
    "Concat": _concat,
    "Convert": _convert,
    "Convolution": _convolution,
    "DepthToSpace": _depth_to_space,
    "FakeQuantize": _fake_quantize,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Interpolate": _interpolate,
    "MatMul": _matmul,
    "MVN": _mvn,
    "PRelu": _prelu,
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Squeeze": _squeeze,
    "TopK": _top_k,
    "Transpose": _transpose,
    "Unsqueeze": _squeeze,
}
