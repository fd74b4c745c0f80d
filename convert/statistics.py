"""Statistics of a model's tensors, collected in one pass over the samples.

Smoothing and quantization need only the minimum, the maximum and the mean square of each channel:
smoothing divides a channel by a constant, so its range after smoothing follows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
import openvino.opset13 as ops

from convert.calibration import Sample
from runtime.arrays import Floats
from runtime.compiled import supported_precision
from runtime.cpu import available_cores
from runtime.openvino_core import openvino_core


@dataclass(frozen=True)
class Tensor:
    """An output of an operation, by the operation's friendly name, and its channel axis."""

    operation: str
    output: int
    axis: int


@dataclass(frozen=True)
class Statistics:
    """Figures of each channel (C,) of one tensor, over all samples.

    Attributes:
        low, high: minimum and maximum.
        power: mean of the squares.
    """

    low: Floats
    high: Floats
    power: Floats


def collect_statistics(
    model: ov.Model,
    tensors: Sequence[Tensor],
    samples: Sequence[Sample],
    on_sample: Callable[[], None] = lambda: None,
) -> tuple[dict[Tensor, Statistics], list[npt.NDArray[Any]]]:
    """Run `model` on all samples, with one inference request per core.

    Inference is in bfloat16 where the CPU has it, which moves a range by at most 1/256.

    Args:
        model: model to run, unchanged.
        tensors: tensors to measure.
        samples: inputs of a batch of one each.
        on_sample: called after each sample, from several threads.

    Returns:
        The statistics of each tensor, and the output of the model for each sample.
    """
    streams = min(available_cores(), len(samples))
    settings = {
        "INFERENCE_PRECISION_HINT": supported_precision("bf16"),
        "PERFORMANCE_HINT": "THROUGHPUT",
        "NUM_STREAMS": streams,
    }
    measured, slices = _with_statistics(model, tensors)
    compiled = openvino_core().compile_model(measured, "CPU", settings)

    def run(share: Sequence[Sample]) -> tuple[list[Floats], list[npt.NDArray[Any]]]:
        request = compiled.create_infer_request()
        results: list[npt.NDArray[Any]] = []
        found: list[Floats] = []
        for sample in share:
            request.infer(list(sample))
            result, *statistics = (tensor.data.copy() for tensor in request.output_tensors)
            results.append(result)
            found = _merged(found, statistics)
            on_sample()
        return found, results

    outputs: list[Any] = [None] * len(samples)
    total: list[Floats] = []
    with ThreadPoolExecutor(streams) as pool:
        shares = pool.map(run, [samples[i::streams] for i in range(streams)])
        for i, (found, results) in enumerate(shares):
            total = _merged(total, found)
            outputs[i::streams] = results
    low, high, squares = total
    power = squares / np.float32(len(samples))
    return {t: Statistics(low[s], high[s], power[s]) for t, s in zip(tensors, slices)}, outputs


def _merged(one: list[Floats], other: list[Floats]) -> list[Floats]:
    """Merge two lists of minima, maxima and sums; the first may be empty."""
    if not one:
        return other
    return [np.minimum(one[0], other[0]), np.maximum(one[1], other[1]), one[2] + other[2]]


def _with_statistics(model: ov.Model, tensors: Sequence[Tensor]) -> tuple[ov.Model, list[slice]]:
    """A copy with three more outputs, rows of all channels, and the slice of each tensor."""
    copy = model.clone()
    operations = {op.get_friendly_name(): op for op in copy.get_ops()}
    low, high, power, slices = [], [], [], []
    end = 0
    for tensor in tensors:
        x = operations[tensor.operation].output(tensor.output)
        shape = x.get_partial_shape()
        rest = ops.constant(np.array([i for i in range(len(shape)) if i != tensor.axis]))
        low.append(ops.reduce_min(x, rest))
        high.append(ops.reduce_max(x, rest))
        power.append(ops.reduce_mean(ops.multiply(x, x), rest))
        start, end = end, end + shape[tensor.axis].get_length()
        slices.append(slice(start, end))
    copy.add_outputs([ops.concat(found, 0).output(0) for found in (low, high, power)])
    return copy, slices
