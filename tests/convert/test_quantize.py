import numpy as np
import openvino as ov
import openvino.opset13 as ops
import pytest

from convert.quantize import Scheme, quantize


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ranges": "widest"}, "ranges must be one of mean, extreme, .* got 'widest'"),
        ({"smooth_matrices": 1.5}, r"smooth_matrices must be in \[0,1\] or None, got 1.5"),
        ({"smooth_convolutions": -1}, r"smooth_convolutions must be in \[0,1\] or None, got -1"),
    ],
)
def test_invalid_schemes_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Scheme(**settings)


def test_a_part_that_no_weight_belongs_to_is_named():
    data = ops.parameter([-1, 8], np.float32)
    model = ov.Model([ops.matmul(data, np.ones((8, 8), np.float32), False, False)], [data])
    samples = [(np.ones((1, 8), np.float32),)]
    with pytest.raises(ValueError, match="no operation of the model has weights of to_cmyk"):
        quantize(model, samples, Scheme(in_float=("to_cmyk",)))


@pytest.mark.parametrize(("whole", "largest"), [(False, 64), (True, 127)])
def test_weights_use_half_of_the_range_unless_told_otherwise(whole, largest):
    """Half is what AVX2 adds in 16 bits without overflow: 2 * 255 * 64 < 2**15."""
    rng = np.random.default_rng(0)
    data = ops.parameter([-1, 8, 6, 6], np.float32)
    weight = ops.constant(rng.normal(size=(8, 8, 3, 3)).astype(np.float32))
    model = ov.Model([ops.convolution(data, weight, [1, 1], [1, 1], [1, 1], [1, 1])], [data])
    samples = [(rng.normal(size=(1, 8, 6, 6)).astype(np.float32),) for _ in range(4)]
    quantized = quantize(model, samples, Scheme(whole_weights=whole))
    stored = [
        np.abs(node.get_data().astype(int)).max()
        for node in quantized.get_ops()
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.i8
    ]
    assert stored == [largest]
