"""INT8 by NNCF's post-training quantization, as an alternative to `convert.quantize`.

NNCF decides what is quantized; the parts to keep in floating point are its ignored scope. It takes
several passes over the calibration prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import nncf
import numpy.typing as npt
import openvino as ov
from nncf.quantization.advanced_parameters import AdvancedSmoothQuantParameters, OverflowFix
from nncf.quantization.range_estimator import RangeEstimatorParametersSet

from convert.calibration import Sample
from convert.quantize import names_of_kept
from convert.quiet import quiet
from runtime.openvino_core import openvino_core

# SmoothQuant's alpha for matrices and convolutions.
_ALPHAS = AdvancedSmoothQuantParameters(convolution=0.5, matmul=0.95)


def quantize_with_nncf(
    model: ov.Model,
    samples: Sequence[Sample],
    keep_float: Sequence[str] = (),
    on_sample: Callable[[], None] = lambda: None,
) -> tuple[ov.Model, list[npt.NDArray[Any]]]:
    """Quantize weights per output channel and activations per tensor.

    Args:
        model: in float32, with a dynamic batch; unchanged.
        samples: inputs of a batch of one each.
        keep_float: as for `convert.quantize.quantize`.
        on_sample: called after each sample.

    Returns:
        The quantized model, and the output of `model` for each sample.
    """
    outputs = _outputs(model, samples, on_sample)
    with quiet("nncf"):
        quantized = nncf.quantize(
            model.clone(),
            nncf.Dataset(samples, list),
            # Symmetric weights, asymmetric activations: LeakyReLU's output is skewed.
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
            ignored_scope=nncf.IgnoredScope(names=sorted(names_of_kept(model, keep_float))),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # The whole range: CPUs without VNNI halve it (`runtime.passes`).
                overflow_fix=OverflowFix.DISABLE,
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                smooth_quant_alphas=_ALPHAS,
            ),
        )
    return quantized, outputs


def _outputs(
    model: ov.Model, samples: Sequence[Sample], on_sample: Callable[[], None]
) -> list[npt.NDArray[Any]]:
    compiled = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = []
    for sample in samples:
        outputs.append(compiled(list(sample))[0].copy())
        on_sample()
    return outputs
