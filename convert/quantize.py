"""INT8 by post-training quantization: weights per output channel, activations per tensor.

Each multiplication by constant weights reads its activations through a FakeQuantize, which OpenVINO
compiles to INT8 kernels. Before it, activations are smoothed (SmoothQuant, Xiao et al. 2023,
https://arxiv.org/abs/2211.10438): each channel is divided by a constant, and its weights are
multiplied by it. The constants minimize the predicted error (`_smoothing`).

Attention's products of two activations stay in floating point: 0.2 % of the multiply-adds at full
size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import openvino.opset13 as ops

from convert.calibration import Sample
from convert.statistics import Statistics, Tensor, collect_statistics
from runtime.arrays import Floats
from runtime.passes import int8_weight

# Largest magnitude of an INT8 weight. CPUs without VNNI halve it (`runtime/passes.py`).
WEIGHT_LEVELS = 127
_LEVELS = 256
# Least rows of a table to quantize: token embeddings, not positions.
_LARGE_TABLE = 1000

# SmoothQuant's alpha: the share of the activations' range that moves into the weights.
_ALPHAS = np.linspace(0, 1, 11)

REASONS = {
    "kept": "kept in float: most fidelity for least time",
    "attention": "product of two activations, in attention",
    "unsupported": "its weights are not a constant matrix or kernel",
}


# Parts with the highest gain in PSNR for their time, by `benchmarks/precision.py --parts` (see
# docs/performance.md): 3 % of the multiply-adds together. A model may lack some of them.
GENERATOR_KEEP_FLOAT = ("mapping", "noise_projection", "bridge", "gamma", "beta", "shortcut")
TEXT_ENCODER_KEEP_FLOAT = ("text_projection", "out_proj")
# Those of them whose weights need more than 8 bits: a mapping network decides between alternatives.
_HALF = ("mapping",)
# Input channels that share a scale in compressed weights, at most.
_GROUP_SIZE = 32


def quantize(
    model: ov.Model,
    samples: Sequence[Sample],
    keep_float: Sequence[str] = (),
    on_sample: Callable[[], None] = lambda: None,
) -> list[npt.NDArray[Any]]:
    """Quantize an `openvino.Model` in place.

    Args:
        model: in float32, with a dynamic batch, which it keeps.
        samples: inputs of a batch of one each.
        keep_float: parts that stay in floating point (the ignored scope), by a part of their
            weights' names, such as `to_rgb` or `upsampling.5`.
        on_sample: called after each sample.

    Returns:
        The output of the float32 model for each sample.

    Raises:
        ValueError: the model has no weights to quantize.
    """
    tensors = quantized_tensors(model, keep_float)
    if not tensors:
        raise ValueError("nothing to quantize: the model has no layers with weights")
    statistics, outputs = collect_statistics(model, tensors, samples, on_sample)
    apply_statistics(model, statistics, keep_float)
    return outputs


def quantized_tensors(model: ov.Model, keep_float: Sequence[str] = ()) -> list[Tensor]:
    """Activations that `quantize` needs statistics of."""
    return list(_groups(model, keep_float))


def apply_statistics(
    model: ov.Model, statistics: Mapping[Tensor, Statistics], keep_float: Sequence[str] = ()
) -> None:
    """Quantize an `openvino.Model` in place, with statistics of at least `quantized_tensors`."""
    for tensor, layers in _groups(model, keep_float).items():
        _quantize_group(tensor, layers, statistics[tensor])
    for operation in model.get_ordered_ops():
        if operation.get_type_name() == "Gather":
            _quantize_table(operation)
    model.validate_nodes_and_infer_types()


def compress_weights(model: ov.Model, kept: Sequence[str]) -> None:
    """Store the weights of the parts `kept` in floating point in 8 bits, some in 16, in place.

    Their activations stay in floating point; the runtime decompresses the weights
    (`runtime.passes.decompress_weights`).
    """
    names = names_of_kept(model, kept)
    in_half = names_of_kept(model, [part for part in kept if part in _HALF])
    for layer in list(_layers(model)):
        name = layer.operation.get_friendly_name()
        if name in in_half:
            layer.halve_precision()
        elif name in names:
            weights = layer.weights()
            layer.replace_weights(*_rounded(weights, _groups_of(weights.shape[1])))
    model.validate_nodes_and_infer_types()


def _groups(model: ov.Model, keep_float: Sequence[str]) -> dict[Tensor, list[_Layer]]:
    """Layers to quantize, by input tensor: they share its smoothing and quantizer."""
    kept = names_of_kept(model, keep_float)
    groups: dict[Tensor, list[_Layer]] = {}
    for layer in _layers(model):
        if layer.operation.get_friendly_name() not in kept:
            groups.setdefault(layer.tensor, []).append(layer)
    return groups


@dataclass(frozen=True)
class _Layer:
    """An operation with constant weights.

    Attributes:
        operation: Convolution or MatMul.
        tensor: its activations.
    """

    operation: Any
    tensor: Tensor

    @property
    def _is_transposed(self) -> bool:
        """True if the weights of a MatMul have the input channels first."""
        operation = self.operation
        is_matmul = operation.get_type_name() == "MatMul"
        return is_matmul and not operation.get_attributes()["transpose_b"]

    def weights(self) -> Floats:
        """Output channels, input channels, taps."""
        values = np.array(self.operation.input_value(1).get_node().get_data(), np.float32)
        values = values.T if self._is_transposed else values
        return values.reshape(*values.shape[:2], -1)

    def replace_weights(self, integers: npt.NDArray[np.int8], scale: Floats) -> None:
        """Multiply by `integers` (O,I,taps) times `scale` (O,G), of G groups of input channels."""
        whole = list(self.operation.input_value(1).get_shape())
        groups, taps = scale.shape[1], len(whole) - 2
        shape, axis = whole, 1  # of the input channels
        if self._is_transposed:
            integers, scale, axis = integers[..., 0].T, scale.T, 0
        if groups > 1:
            shape = [*whole[:axis], groups, -1, *whole[axis + 1 :]]
            scale = np.expand_dims(scale, axis + 1)
        constant = ops.constant(np.ascontiguousarray(integers.reshape(shape)))
        scales = ops.constant(np.ascontiguousarray(scale.reshape(*scale.shape, *[1] * taps)))
        product = ops.multiply(ops.convert(constant, np.float32), scales)
        if groups > 1:
            product = ops.reshape(product, np.array(whole, np.int64), False)
        self.operation.input(1).replace_source_output(product.output(0))

    def halve_precision(self) -> None:
        """Store the weights in float16."""
        values = self.operation.input_value(1).get_node().get_data()
        constant = ops.convert(ops.constant(values.astype(np.float16)), np.float32)
        self.operation.input(1).replace_source_output(constant.output(0))


def _layers(model: ov.Model) -> Iterator[_Layer]:
    for operation in model.get_ordered_ops():
        kind = operation.get_type_name()
        if kind not in ("Convolution", "MatMul"):
            continue
        source, weights = operation.input_value(0), operation.input_value(1)
        if weights.get_node().get_type_name() != "Constant":
            continue
        if kind == "MatMul":
            is_matrix = len(weights.get_shape()) == 2
            if not is_matrix or operation.get_attributes()["transpose_a"]:
                continue
        axis = 1 if kind == "Convolution" else source.get_partial_shape().rank.get_length() - 1
        name = source.get_node().get_friendly_name()
        yield _Layer(operation, Tensor(name, source.get_index(), axis))


def _quantize_group(tensor: Tensor, layers: Sequence[_Layer], statistics: Statistics) -> None:
    weights = [layer.weights() for layer in layers]
    smoothing = _smoothing(statistics, weights)
    source = layers[0].operation.input_value(0)
    rank = source.get_partial_shape().rank.get_length()
    shape = [-1 if axis == tensor.axis else 1 for axis in range(rank)]
    smoothed = ops.multiply(source, ops.constant((1 / smoothing).reshape(shape)))
    bounds = [
        ops.constant(np.full([1] * rank, bound, np.float32))
        for bound in _activation_range(statistics, smoothing)
    ]
    activations = ops.fake_quantize(smoothed, *bounds, *bounds, _LEVELS)
    for layer, values in zip(layers, weights):
        values = values * smoothing[:, None]
        layer.operation.input(0).replace_source_output(activations.output(0))
        layer.replace_weights(*_rounded(values))


def _rounded(values: Floats, groups: int = 1) -> tuple[npt.NDArray[np.int8], Floats]:
    """Weights (O,I,taps) as integers, and their scales (O,groups)."""
    split = values.reshape(len(values), groups, -1)
    scale = np.maximum(np.abs(split).max(axis=2), 1e-12) / WEIGHT_LEVELS
    return np.rint(split / scale[..., None]).astype(np.int8).reshape(values.shape), scale


def _groups_of(inputs: int) -> int:
    """Number of groups of input channels, of equal size and at most `_GROUP_SIZE` each."""
    groups = next(n for n in range(-(-inputs // _GROUP_SIZE), inputs + 1) if inputs % n == 0)
    return groups if inputs // groups >= _GROUP_SIZE // 4 else 1


def _smoothing(statistics: Statistics, weights: Sequence[Floats]) -> Floats:
    """Divisor of each channel (C,): SmoothQuant's constants with the best alpha."""
    # Largest magnitude by output and input channel (O,C), with all layers in a column.
    peaks = np.concatenate([np.abs(values).max(axis=2) for values in weights])
    taps = np.concatenate([np.full(len(values), values.shape[2]) for values in weights])
    energy = sum(np.einsum("oct,oct->c", values, values) for values in weights)
    reach = np.maximum(np.maximum(-statistics.low, statistics.high), 1e-5)
    size = np.maximum(peaks.max(axis=0), 1e-5)

    def predicted_error(smoothing: Floats) -> float:
        """Sum of the squared errors of all outputs, if roundings are uniform and independent."""
        low, high = _activation_range(statistics, smoothing)
        activations = ((high - low) / (_LEVELS - 1)) ** 2 * np.sum(energy * smoothing**2)
        steps = (peaks * smoothing).max(axis=1) / WEIGHT_LEVELS
        rounded_weights = np.sum(taps * steps**2) * np.sum(statistics.power / smoothing**2)
        return float(activations + rounded_weights)

    candidates = [reach**alpha / size ** (1 - alpha) for alpha in _ALPHAS]
    # Bounded below, for channels that are almost always zero.
    candidates = [np.maximum(c, 1e-4 * c.max()).astype(np.float32) for c in candidates]
    return min(candidates, key=predicted_error)


def _activation_range(statistics: Statistics, smoothing: Floats) -> tuple[float, float]:
    """Range of a smoothed tensor, with zero as one of its levels, which padding needs."""
    low = min(0.0, float((statistics.low / smoothing).min()))
    high = max(1e-6, float((statistics.high / smoothing).max()))
    zero = round(-low / (high - low) * (_LEVELS - 1))
    if zero in (0, _LEVELS - 1):
        return (0.0, high) if zero == 0 else (low, 0.0)
    step = max(-low / zero, high / (_LEVELS - 1 - zero))
    return -zero * step, (_LEVELS - 1 - zero) * step


def _quantize_table(gather: Any) -> None:
    """Replace a large constant table by INT8 rows and one scale per row.

    Rows are gathered before they are scaled. Otherwise OpenVINO would hold the whole table in
    floating point, 100 MB at full size, for the few rows that a prompt needs.
    """
    table, rows, axis = (gather.input_value(i) for i in range(3))
    if table.get_node().get_type_name() != "Constant" or len(table.get_shape()) != 2:
        return
    values = np.array(table.get_node().get_data())
    if values.dtype != np.float32 or len(values) < _LARGE_TABLE:
        return
    scale = np.maximum(np.abs(values).max(axis=1, keepdims=True), 1e-12) / WEIGHT_LEVELS
    integers = ops.constant(np.rint(values / scale).astype(np.int8))
    taken = ops.convert(ops.gather(integers, rows, axis), np.float32)
    result = ops.multiply(taken, ops.gather(ops.constant(scale), rows, axis))
    result.set_friendly_name(gather.get_friendly_name())
    gather.output(0).replace(result.output(0))


def names_of_kept(model: ov.Model, parts: Sequence[str]) -> set[str]:
    """Names of the operations whose weights belong to `parts`."""
    kept = set()
    for layer in _layers(model):
        weights = f".{layer.operation.input_value(1).get_node().get_friendly_name()}."
        if any(f".{part}." in weights for part in parts):
            kept.add(layer.operation.get_friendly_name())
    return kept


def part_names(model: ov.Model) -> set[str]:
    """Words in the names of weights: what `keep_float` may contain."""
    words: set[str] = set()
    for layer in _layers(model):
        name = layer.operation.input_value(1).get_node().get_friendly_name()
        if not name.startswith("val_"):  # of an expression, named by its number
            words.update(word for word in name.split(".") if not word.isdigit())
    return words


def report(model: ov.Model, keep_float: Sequence[str] = ()) -> dict[str, Any]:
    """Count the convolutions and matrix products of a quantized model, before `compress_weights`.

    Returns:
        Counts `quantized` and `float`, and `left_in_float`: name, kind and reason of each operation
        in floating point.
    """
    quantized, left, kept = 0, [], names_of_kept(model, keep_float)
    for operation in model.get_ordered_ops():
        kind = operation.get_type_name()
        if kind not in ("Convolution", "GroupConvolution", "MatMul"):
            continue
        weights = operation.input_value(1).get_node()
        if int8_weight(weights) is not None:
            quantized += 1
            continue
        name, is_constant = operation.get_friendly_name(), weights.get_type_name() == "Constant"
        why = "kept" if name in kept else "unsupported" if is_constant else "attention"
        left.append({"name": name, "kind": kind, "reason": REASONS[why]})
    return {"quantized": quantized, "float": len(left), "left_in_float": left}
