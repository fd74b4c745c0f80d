import numpy as np
import openvino as ov
import openvino.opset13 as ops
import pytest

from convert.table import take_rows_first
from runtime.graphs import read_graph
from runtime.openvino_core import openvino_core


def model_of_rows(scale_shape: tuple[int, int]) -> ov.Model:
    """Rows of a table in eight bits, scaled as NNCF does it."""
    rng = np.random.default_rng(0)
    table = rng.integers(-64, 64, (50, 8)).astype(np.int8)
    scale = rng.uniform(0.01, 0.1, scale_shape).astype(np.float32)
    rows = ops.parameter([-1, -1], np.int64)
    whole = ops.multiply(ops.convert(ops.constant(table), np.float32), ops.constant(scale))
    return ov.Model([ops.gather(whole, rows, np.int64(0))], [rows])


def run(model: ov.Model, rows: np.ndarray) -> np.ndarray:
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    return openvino_core().compile_model(model, "CPU", settings)([rows])[0]


def gathered_types(model: ov.Model) -> set[str]:
    gathered = [op for op in model.get_ops() if op.get_type_name() == "Gather"]
    return {op.get_element_type().get_type_name() for op in gathered}


def test_rows_are_the_same():
    model, rows = model_of_rows((50, 1)), np.array([[0, 49, 7], [7, 1, 2]])
    before = run(model, rows)
    assert take_rows_first(model) == 1
    np.testing.assert_array_equal(run(model, rows), before)
    assert gathered_types(model) == {"i8", "f32"}


@pytest.mark.parametrize("shape", [(1, 8), (1, 1)])
def test_a_table_that_is_not_scaled_by_rows_is_left_alone(shape):
    assert take_rows_first(model_of_rows(shape)) == 0


def test_it_is_found_in_a_bundle(tiny_bundles):
    text_encoder = read_graph(tiny_bundles["int8"] / "text_encoder.xml.gz")
    assert "i8" in gathered_types(text_encoder)
