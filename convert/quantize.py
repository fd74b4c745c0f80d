"""INT8 by post-training quantization, with NNCF, and a report of what stayed in floating point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nncf
import numpy.typing as npt
from nncf.quantization.advanced_parameters import AdvancedSmoothQuantParameters, OverflowFix
from nncf.quantization.range_estimator import RangeEstimatorParametersSet

from convert.quiet import quiet
from runtime.int8_weights import int8_weight

# The operations that multiply matrices: what quantization is for.
_MULTIPLYING = ("Convolution", "GroupConvolution", "MatMul")
# Between an operation and its quantizer may lie operations that only move numbers about.
_MOVING = (
    "Reshape",
    "Transpose",
    "Concat",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Split",
    "VariadicSplit",
    "Gather",
    "Interpolate",
    "Broadcast",
    "MaxPool",
)

REASONS = {
    "softmax": "attention probabilities: small numbers that 8 bits serve badly; the scheme for "
    "transformers leaves their product with the values in floating point",
    "meant": "all of the picture hangs on it, and it is small",
    "other": "NNCF found no quantizable input",
}


_RANGES = {
    "mean": RangeEstimatorParametersSet.MEAN_MINMAX,
    "extreme": RangeEstimatorParametersSet.MINMAX,
    "quantile": RangeEstimatorParametersSet.MEAN_QUANTILE,
    "histogram": RangeEstimatorParametersSet.HISTOGRAM,
}


@dataclass(frozen=True)
class Scheme:
    """How numbers become eight bits. The defaults won by measurement (docs/performance.md).

    Attributes:
        ranges: of activations, from the least and largest value of each sample: their `mean`, or
            the most `extreme`; the mean of their `quantile`s of one in ten thousand; or what errs
            least on a `histogram`.
        smooth_matrices, smooth_convolutions: SmoothQuant's alpha in [0,1], how far activations'
            ranges go over to the weights (Xiao et al. 2023, https://arxiv.org/abs/2211.10438);
            None leaves it out.
        whole_weights: use the whole range for weights. Half of it is safe everywhere: without VNNI
            a CPU adds products in 16 bits, which whole ones overflow.
        accurate_bias: correct biases layer by layer, with all before it quantized; slow.
        in_float: parts of the model that stay in floating point, as the names of their weights
            have them, such as `to_rgb` or `upsampling.5`.
    """

    ranges: str = "extreme"
    smooth_matrices: float | None = 0.95
    smooth_convolutions: float | None = 0.5
    whole_weights: bool = False
    accurate_bias: bool = False
    in_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.ranges not in _RANGES:
            raise ValueError(f"ranges must be one of {', '.join(_RANGES)}, got {self.ranges!r}")
        for name in ("smooth_matrices", "smooth_convolutions"):
            alpha = getattr(self, name)
            if alpha is not None and not 0 <= alpha <= 1:
                raise ValueError(f"{name} must be in [0,1] or None, got {alpha!r}")


# By the bundle's precision. When it is mixed, 2 % of the weights stay in float: of the layer that
# reads the noise and the blocks that predict the bridge feature, from which all else follows.
SCHEMES = {"int8": Scheme(), "mixed": Scheme(in_float=("noise_projection", "bridge"))}


def quantize(
    model: Any, samples: Sequence[tuple[npt.NDArray[Any], ...]], scheme: Scheme | None = None
) -> Any:
    """Quantize weights (per channel) and activations (per tensor) of an `openvino.Model`.

    Args:
        model: with a dynamic batch; the result keeps it.
        samples: inputs of a batch of one each.
        scheme: see there.

    Returns:
        The quantized `openvino.Model`.
    """
    scheme = scheme or Scheme()
    alphas = scheme.smooth_matrices, scheme.smooth_convolutions
    matrices, convolutions = (-1.0 if alpha is None else alpha for alpha in alphas)
    with quiet("nncf"):
        return nncf.quantize(
            model,
            nncf.Dataset(samples, list),
            # Symmetric weights, asymmetric activations: LeakyReLU leaves them lopsided.
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
            ignored_scope=nncf.IgnoredScope(names=_operations_of(model, scheme.in_float)),
            fast_bias_correction=not scheme.accurate_bias,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=OverflowFix.DISABLE if scheme.whole_weights else OverflowFix.ENABLE,
                activations_range_estimator_params=_RANGES[scheme.ranges],
                smooth_quant_alphas=AdvancedSmoothQuantParameters(
                    convolution=convolutions, matmul=matrices
                ),
            ),
        )


def _operations_of(model: Any, parts: Sequence[str]) -> list[str]:
    """Names of the operations that multiply with weights of `parts`.

    Raises ValueError if a part has none.
    """
    found: dict[str, list[str]] = {part: [] for part in parts}
    for operation in model.get_ordered_ops():
        if parts and operation.get_type_name() in _MULTIPLYING:
            weight = f".{operation.input_value(1).get_node().get_friendly_name()}"
            for part in parts:
                if f".{part}." in weight:
                    found[part].append(operation.get_friendly_name())
    if missing := [part for part, names in found.items() if not names]:
        raise ValueError(f"no operation of the model has weights of {', '.join(missing)}")
    return [name for names in found.values() for name in names]


def report(model: Any, in_float: Sequence[str] = ()) -> dict[str, Any]:
    """Which multiplying operations are in int8; `in_float` of the scheme are meant not to be.

    Returns:
        `quantized` and `float`: counts; `left_in_float`: name, kind and reason of each of the
        latter.
    """
    quantized, left, meant = 0, [], _operations_of(model, in_float)
    for operation in model.get_ordered_ops():
        kind = operation.get_type_name()
        if kind not in _MULTIPLYING:
            continue
        sources = [_source(operation.input_value(i).get_node()) for i in range(2)]
        if all(source in ("FakeQuantize", "int8 weight") for source in sources):
            quantized += 1
        else:
            name = operation.get_friendly_name()
            why = "softmax" if "Softmax" in sources else "meant" if name in meant else "other"
            left.append({"name": name, "kind": kind, "reason": REASONS[why]})
    return {"quantized": quantized, "float": len(left), "left_in_float": left}


def _source(node: Any) -> str:
    """What an input really comes from: a quantizer, a weight stored in int8, or another kind."""
    kind = str(node.get_type_name())
    if kind in _MOVING:
        return _source(node.input_value(0).get_node())
    if int8_weight(node) is not None:
        return "int8 weight"
    return kind


def is_quantized(model: Any) -> bool:
    """Whether an `openvino.Model` already contains quantizers."""
    return any(op.get_type_name() == "FakeQuantize" for op in model.get_ordered_ops())
