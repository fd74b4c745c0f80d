"""Products with INT8 matrices, and the convolutions that stand in for them on some CPUs."""

import numpy as np
import openvino as ov
import openvino.opset13 as ops
import pytest

from runtime import cpu
from runtime.openvino_core import openvino_core
from runtime.pointwise import matrices_to_convolutions


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
    assert matrices_to_convolutions(model) == 1
    assert "MatMul" not in kinds(model)
    assert "Convolution" in kinds(model)
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    found = openvino_core().compile_model(model, "CPU", settings)([values])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_floats_stay_products():
    model, _, _ = product((2, 5, 32), True, False, True, floats=True)
    assert matrices_to_convolutions(model) == 0
    assert "MatMul" in kinds(model)


def test_a_bundle_computes_the_same_in_both_forms(tiny_bundles, monkeypatch):
    from runtime import Pipeline, PipelineOptions

    # Not in bfloat16, whose rounding is another one in each form, nor with other weights.
    monkeypatch.setattr("runtime.compiled.halve_weights", lambda model: 0)
    images = []
    for slow in (False, True):
        monkeypatch.setattr("runtime.compiled.multiplies_int8_matrices_slowly", lambda s=slow: s)
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
    assert cpu.multiplies_int8_matrices_slowly() is slow
