import numpy as np
import openvino as ov
import openvino.opset13 as ops
import pytest

from convert.quantize import (
    apply_statistics,
    compress_weights,
    quantize,
    quantized_tensors,
    report,
)
from convert.statistics import collect_statistics
from runtime.bundle import TEXT_ENCODER, Bundle
from runtime.graph_io import read_graph
from runtime.openvino_core import openvino_core
from runtime.passes import decompress_weights, halve_weights

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)


def run(model: ov.Model, *inputs: np.ndarray) -> np.ndarray:
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino_core().compile_model(model, "CPU", settings)(list(inputs))[0]


def convolution() -> tuple[ov.Model, list[tuple[np.ndarray]]]:
    """Two of eight channels are a hundred times as large as the others."""
    size = np.where(np.arange(8) < 2, 100, 1)[:, None, None]
    data = ops.parameter([-1, 8, 6, 6], np.float32)
    weight = ops.constant((RNG.normal(size=(8, 8, 3, 3)) / size[:, 0, 0, None, None]).astype("f4"))
    model = ov.Model([ops.convolution(data, weight, [1, 1], [1, 1], [1, 1], [1, 1])], [data])
    return model, [((RNG.normal(size=(1, 8, 6, 6)) * size).astype(np.float32),) for _ in range(8)]


def product(transposed: bool) -> tuple[ov.Model, list[tuple[np.ndarray]]]:
    data = ops.parameter([-1, 5, 16], np.float32)
    weight = RNG.normal(size=(24, 16) if transposed else (16, 24)).astype(np.float32)
    model = ov.Model([ops.matmul(data, ops.constant(weight), False, transposed)], [data])
    return model, [(RNG.normal(1, 2, size=(1, 5, 16)).astype(np.float32),) for _ in range(8)]


def signal_to_noise_db(result: np.ndarray, exact: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(exact**2) / np.mean((result - exact) ** 2)))


@pytest.mark.parametrize(
    ("make", "least"),
    [(convolution, 38), (lambda: product(True), 38), (lambda: product(False), 38)],
)
def test_eight_bits_are_as_near_as_eight_bits_can_be(make, least):
    model, samples = make()
    exact = np.stack([run(model, *sample) for sample in samples])
    outputs = quantize(model, samples)
    # The statistics may be collected in bfloat16.
    assert signal_to_noise_db(np.stack(outputs), exact) > 40
    quantized = np.stack([run(model, *sample) for sample in samples])
    assert signal_to_noise_db(quantized, exact) > least
    assert report(model) == {"quantized": 1, "float": 0, "left_in_float": []}


def test_weights_use_their_whole_range_and_half_of_it_without_vnni():
    """Half is what AVX2 adds in 16 bits without overflow: 2 * 255 * 64 < 2**15."""
    model, samples = convolution()
    exact = np.stack([run(model, *sample) for sample in samples])
    quantize(model, samples)

    def largest() -> int:
        (weights,) = (
            node.get_data().astype(int)
            for node in model.get_ops()
            if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.i8
        )
        return int(np.abs(weights).max())

    assert largest() == 127
    assert halve_weights(model) == 1
    assert largest() == 64
    assert halve_weights(model) == 0
    assert signal_to_noise_db(np.stack([run(model, *s) for s in samples]), exact) > 34


def test_layers_that_read_the_same_tensor_share_a_quantizer():
    data = ops.parameter([-1, 16], np.float32)
    weights = [ops.constant(RNG.normal(size=(16, 16)).astype(np.float32)) for _ in range(2)]
    products = [ops.matmul(data, weight, False, False) for weight in weights]
    model = ov.Model([ops.add(*products)], [data])
    quantize(model, [(RNG.normal(size=(1, 16)).astype(np.float32),) for _ in range(4)])
    kinds = [op.get_type_name() for op in model.get_ops()]
    assert kinds.count("FakeQuantize") == 1
    assert report(model)["quantized"] == 2


def test_products_of_activations_stay_in_float():
    data = ops.parameter([-1, 4, 4], np.float32)
    model = ov.Model([ops.matmul(data, data, False, True)], [data])
    sample = RNG.normal(size=(1, 4, 4)).astype(np.float32)
    exact = run(model, sample)
    with pytest.raises(ValueError, match="nothing to quantize"):
        quantize(model, [(sample,)])
    np.testing.assert_array_equal(run(model, sample), exact)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 3.0), (-3.0, 0.0), (-1.0, 2.0), (-1e-4, 2.0), (0.0, 0.0)]
)
def test_zero_is_exact(low, high):
    """Padding is of zeros, and most values after an activation are."""
    data = ops.parameter([-1, 4], np.float32)
    model = ov.Model([ops.matmul(data, np.eye(4, dtype=np.float32), False, True)], [data])
    quantize(model, [(np.array([[low, 0, 0, high]], np.float32),)])
    # A level that is not zero would be off by up to half a step, 4e-3 here.
    np.testing.assert_allclose(run(model, np.zeros((1, 4), np.float32)), 0, atol=1e-6)


@pytest.mark.parametrize(("parts", "quantized"), [(("affine",), 1), (("fine", "bridge"), 2)])
def test_parts_are_kept_in_float_by_the_names_of_their_weights(parts, quantized):
    data = ops.parameter([-1, 16], np.float32)
    weights = [ops.constant(RNG.normal(size=(16, 16)).astype(np.float32)) for _ in range(2)]
    weights[0].set_friendly_name("generator.affine.weight")
    weights[1].set_friendly_name("generator.to_rgb.weight")
    products = [ops.matmul(data, weight, False, False) for weight in weights]
    model = ov.Model([ops.add(*products)], [data])
    samples = [(RNG.normal(size=(1, 16)).astype(np.float32),)]
    quantize(model, samples, parts)
    assert report(model, parts)["quantized"] == quantized


@pytest.mark.parametrize("kind", ["matrix", "transposed", "convolution"])
@pytest.mark.parametrize(("inputs", "groups"), [(16, 1), (147, 7), (128, 4), (37, 1)])
def test_compressed_weights_have_a_scale_for_each_group_of_inputs(kind, inputs, groups):
    shape = {"matrix": (inputs, 24), "transposed": (24, inputs), "convolution": (24, inputs, 3, 3)}
    axis = 0 if kind == "matrix" else 1
    weights = RNG.normal(size=shape[kind]).astype(np.float32)
    sizes = [inputs if i == axis else 1 for i in range(weights.ndim)]
    weights *= np.geomspace(1e-3, 1, inputs, dtype=np.float32).reshape(sizes)
    constant = ops.constant(weights)
    constant.set_friendly_name("kept.weight")
    if kind == "convolution":
        data = ops.parameter([-1, inputs, 6, 6], np.float32)
        out = ops.convolution(data, constant, [1, 1], [1, 1], [1, 1], [1, 1])
    else:
        data = ops.parameter([-1, inputs], np.float32)
        out = ops.matmul(data, constant, False, kind == "transposed")
    model = ov.Model([out], [data])
    compress_weights(model, ["kept"])
    (layer,) = (op for op in model.get_ordered_ops() if op.get_type_name() == out.get_type_name())
    stored = [op for op in model.get_ordered_ops() if op.get_type_name() == "Constant"]
    (scales,) = (op.get_data() for op in stored if op.get_element_type() == ov.Type.f32)
    assert scales.size == 24 * groups
    assert decompress_weights(model) == 1
    found = layer.input_value(1).get_node().get_data()
    split = np.moveaxis(weights - found, axis, 0).reshape(groups, inputs // groups, 24, -1)
    whole = np.moveaxis(weights, axis, 0).reshape(split.shape)
    steps = np.abs(whole).max(axis=(1, 3)) / 127
    assert (np.abs(split).max(axis=(1, 3)) <= 0.51 * steps).all()


def test_statistics_of_all_layers_serve_any_choice_of_kept_ones():
    data = ops.parameter([-1, 16], np.float32)
    hidden, last = (RNG.normal(size=(16, 16)).astype(np.float32) for _ in range(2))
    first = ops.matmul(data, ops.constant(hidden), False, False)
    weights = ops.constant(last)
    weights.set_friendly_name("generator.to_rgb.weight")
    model = ov.Model([ops.matmul(first, weights, False, False)], [data])
    samples = [(RNG.normal(size=(1, 16)).astype(np.float32),) for _ in range(4)]
    statistics, _ = collect_statistics(model, quantized_tensors(model), samples)
    for keep_float in ((), ("to_rgb",)):
        shared, own = model.clone(), model.clone()
        apply_statistics(shared, statistics, keep_float)
        quantize(own, samples, keep_float)
        np.testing.assert_array_equal(run(shared, *samples[0]), run(own, *samples[0]))
        assert report(shared, keep_float)["quantized"] == 2 - len(keep_float)


def test_rows_of_a_table_are_taken_before_they_are_scaled(tiny_bundles):
    """Else OpenVINO holds the whole table of token embeddings in floating point."""
    text_encoder = read_graph(Bundle.open(tiny_bundles["int8"]), TEXT_ENCODER)
    gathered = [op for op in text_encoder.get_ops() if op.get_type_name() == "Gather"]
    tables = [op for op in gathered if op.get_element_type() == ov.Type.i8]
    assert [list(op.input_value(0).get_shape()) for op in tables] == [[49408, 32]]
