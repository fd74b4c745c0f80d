"""Weights with their whole range, halved where a CPU would overflow."""

import json
import os
import subprocess
import sys

import numpy as np
import openvino as ov
import openvino.opset13 as ops
import pytest

from runtime import cpu
from runtime.int8_weights import int8_weight
from runtime.openvino_core import openvino_core
from runtime.weight_range import halve_weights

F32 = {"INFERENCE_PRECISION_HINT": "f32"}


def model(whole: bool, shared: bool = False):
    """x (1,64) times an INT8 matrix (24,64), with a quantizer of activations in front."""
    rng = np.random.default_rng(0)
    integers = rng.integers(-127, 128, (24, 64)).astype(np.int8)
    integers[0, :4] = 127, -128, 127, 127
    scale = rng.uniform(0.001, 0.01, (24, 1)).astype(np.float32)
    if not whole:
        integers, scale = np.round(integers / 2).astype(np.int8), 2 * scale
    x = ops.parameter([1, 64], np.float32)
    low, high = np.float32(0), np.float32(2)
    quantized = ops.fake_quantize(x, low, high, low, high, 256)
    constant, factor = ops.constant(integers), ops.constant(scale)
    outputs = []
    for _ in range(1 + shared):
        weight = ops.multiply(ops.convert(constant, np.float32), factor)
        outputs.append(ops.matmul(quantized, weight, False, True))
    return ov.Model(outputs, [x])


def run(computed: ov.Model):
    compiled = openvino_core().compile_model(computed, "CPU", F32)
    return compiled([np.full((1, 64), 2, np.float32)])[0]


@pytest.mark.parametrize("shared", [False, True])
def test_halving_is_what_a_half_range_conversion_stores(shared):
    whole = model(True, shared)
    assert halve_weights(whole) == 1 + shared
    weights = [w for op in whole.get_ordered_ops() if (w := int8_weight(op))]
    assert len(weights) == 1 + shared
    assert all(np.abs(w.integers.get_data().astype(int)).max() == 64 for w in weights)
    np.testing.assert_array_equal(run(whole), run(model(False)))
    assert halve_weights(whole) == 0


def test_half_a_range_stays():
    assert halve_weights(model(False)) == 0


@pytest.mark.parametrize(
    ("cap", "slow"),
    [("AVX2", True), ("AVX512_CORE", True), ("AVX512_CORE_VNNI", False), ("", False)],
)
def test_capped_kernels_have_no_vnni(cap, slow, monkeypatch):
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: {"flags": "avx2 avx512f avx512_vnni"})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert cpu.multiplies_int8_matrices_slowly() is slow


# Convolutions, as the runtime has them on such a CPU; the largest sums of all.
OVERFLOW = """
import json, numpy as np, openvino as ov, openvino.opset13 as ops
from runtime.compiled import for_this_cpu
x = ops.parameter([1, 64], np.float32)
low, high = np.float32(0), np.float32(2)
quantized = ops.fake_quantize(x, low, high, low, high, 256)
integers, scale = np.full((24, 64), 127, np.int8), np.full((24, 1), 0.01, np.float32)
weight = ops.multiply(ops.convert(ops.constant(integers), np.float32), ops.constant(scale))
model = ov.Model([ops.matmul(quantized, weight, False, True)], [x])
settings = {"INFERENCE_PRECISION_HINT": "f32"}
compiled = ov.Core().compile_model(for_this_cpu(model), "CPU", settings)
print(json.dumps(compiled([np.full((1, 64), 2, np.float32)])[0].tolist()))
"""


@pytest.mark.skipif("AVX2" not in cpu.instruction_sets(), reason="the CPU has no AVX2")
def test_nothing_overflows_with_avx2():
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2", "OV_CPU_MAX_ISA": "avx2"}
    done = subprocess.run(
        [sys.executable, "-c", OVERFLOW], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), 2 * 1.27 * 64, rtol=0.02)
