"""Graph passes: of all CPUs, and of those without VNNI."""

import json
import os
import subprocess
import sys

import numpy as np
import openvino as ov
import openvino.opset13 as ops
import pytest

from runtime import cpu
from runtime.openvino_core import openvino_core
from runtime.passes import decompress_weights, halve_weights, int8_weight, matmul_to_conv1x1

F32 = {"INFERENCE_PRECISION_HINT": "f32"}


def product(shape, transposed, zero_point, bias, floats=False):
    """A model of one INT8 product, as NNCF leaves them, and what it is to compute."""
    rng = np.random.default_rng(0)
    columns, outputs = shape[-1], 24
    integers = rng.integers(-64, 64, (outputs, columns)).astype(np.int8)
    scale = rng.uniform(0.001, 0.01, (outputs, 1)).astype(np.float32)
    point = rng.integers(-9, 9, (outputs, 1)).astype(np.int8) * zero_point
    added = rng.normal(size=(1,) * (len(shape) - 1) + (outputs,)).astype(np.float32)
    weight = (integers - point.astype(np.float32)) * scale
    turn = (lambda a: a) if transposed else (lambda a: np.ascontiguousarray(a.T))
    x = ops.parameter([-1, *shape[1:]], np.float32)
    if floats:
        node = ops.constant(turn(weight))
    else:
        node = ops.convert(ops.constant(turn(integers)), np.float32)
        if zero_point:
            node = ops.subtract(node, ops.convert(ops.constant(turn(point)), np.float32))
        node = ops.multiply(node, ops.constant(turn(scale)))
    y = ops.matmul(x, node, False, transposed)
    if bias:
        y = ops.add(y, ops.constant(added))
    values = rng.normal(size=shape).astype(np.float32)
    expected = values @ weight.T + (added if bias else 0)
    return ov.Model([y], [x]), values, expected


def kinds(model):
    return [node.get_type_name() for node in model.get_ordered_ops()]


@pytest.mark.parametrize("shape", [(3, 32), (2, 5, 32)])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("zero_point", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_computes_the_product(shape, transposed, zero_point, bias):
    model, values, expected = product(shape, transposed, zero_point, bias)
    assert matmul_to_conv1x1(model) == 1
    assert "MatMul" not in kinds(model)
    assert "Convolution" in kinds(model)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    found = openvino_core().compile_model(model, "CPU", settings)([values])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_floats_stay_products():
    model, _, _ = product((2, 5, 32), True, False, True, floats=True)
    assert matmul_to_conv1x1(model) == 0
    assert "MatMul" in kinds(model)


@pytest.mark.slow
def test_a_bundle_computes_the_same_in_both_forms(tiny_bundles, monkeypatch):
    from runtime import Pipeline, PipelineOptions

    # Not in bfloat16, whose rounding is another one in each form, nor with other weights.
    monkeypatch.setattr("runtime.passes.halve_weights", lambda model: 0)
    images = []
    for slow in (False, True):
        monkeypatch.setattr("runtime.passes.lacks_vnni", lambda s=slow: s)
        pipeline = Pipeline.from_bundle(
            tiny_bundles["int8"], PipelineOptions(cache=False, precision="f32")
        )
        images.append(pipeline.generate("a bird on a branch", n=4).astype(int))
    assert np.abs(images[0] - images[1]).mean() < 0.5


@pytest.mark.parametrize(
    ("flags", "slow"),
    [
        ("avx2 fma", True),
        ("avx2 avx_vnni", False),
        ("avx2 avx512f avx512_vnni", False),
        ("", False),
    ],
)
def test_which_cpus_are_slow_at_int8_matrices(flags, slow, monkeypatch):
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: {"flags": flags})
    assert cpu.lacks_vnni() is slow


def one_layer(whole: bool, shared: bool = False):
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


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("zero_point", [True, False])
def test_weights_of_floating_point_layers_are_decompressed(transposed, zero_point):
    model, values, expected = product((2, 5, 32), transposed, zero_point, True)
    assert decompress_weights(model) == 1
    assert kinds(model).count("Constant") == 2  # weights and bias
    found = openvino_core().compile_model(model, "CPU", F32)([values])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert decompress_weights(model) == 0


@pytest.mark.parametrize("moved", [True, False])
def test_weights_of_int8_layers_stay_in_eight_bits(moved):
    model, *_ = product((2, 5, 32), True, False, False)
    (layer,) = (node for node in model.get_ordered_ops() if node.get_type_name() == "MatMul")
    bounds = [ops.constant(np.full((1, 1, 1), x, np.float32)) for x in (-1, 1, -1, 1)]
    x = ops.fake_quantize(layer.input_value(0), *bounds, 256)
    if moved:
        x = ops.reshape(x, np.array([-1, 5, 32]), False)
    layer.input(0).replace_source_output(x.output(0))
    assert decompress_weights(model) == 0
    assert int8_weight(layer.input_value(1).get_node())


@pytest.mark.parametrize("shared", [False, True])
def test_halving_is_what_a_half_range_conversion_stores(shared):
    whole = one_layer(True, shared)
    assert halve_weights(whole) == 1 + shared
    weights = [w for op in whole.get_ordered_ops() if (w := int8_weight(op))]
    assert len(weights) == 1 + shared
    assert all(np.abs(w.integers.get_data().astype(int)).max() == 64 for w in weights)
    np.testing.assert_array_equal(run(whole), run(one_layer(False)))
    assert halve_weights(whole) == 0


def test_half_a_range_stays():
    assert halve_weights(one_layer(False)) == 0


@pytest.mark.parametrize(
    ("cap", "slow"),
    [("AVX2", True), ("AVX512_CORE", True), ("AVX512_CORE_VNNI", False), ("", False)],
)
def test_capped_kernels_have_no_vnni(cap, slow, monkeypatch):
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: {"flags": "avx2 avx512f avx512_vnni"})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert cpu.lacks_vnni() is slow


# Convolutions, as the runtime has them on such a CPU; the largest sums of all.
OVERFLOW = """
import json, numpy as np, openvino as ov, openvino.opset13 as ops
from runtime.openvino_core import openvino_core
from runtime.passes import specialize_for_cpu
x = ops.parameter([1, 64], np.float32)
low, high = np.float32(0), np.float32(2)
quantized = ops.fake_quantize(x, low, high, low, high, 256)
integers, scale = np.full((24, 64), 127, np.int8), np.full((24, 1), 0.01, np.float32)
weight = ops.multiply(ops.convert(ops.constant(integers), np.float32), ops.constant(scale))
model = ov.Model([ops.matmul(quantized, weight, False, True)], [x])
settings = {"INFERENCE_PRECISION_HINT": "f32"}
compiled = openvino_core().compile_model(specialize_for_cpu(model), "CPU", settings)
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
