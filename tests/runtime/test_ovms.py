import json
from collections import Counter

import numpy as np
import openvino as ov
import pytest
from embedded import EMBEDDED

from runtime import BundleError, Pipeline, Tokenizer, draw_noise
from runtime.bundle import GENERATOR, TEXT_ENCODER, Bundle
from runtime.graph_io import read_graph
from runtime.openvino_core import openvino_core
from runtime.ovms import export_model_server, whole_model
from runtime.passes import decompress_weights, int8_weight


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_server_gives_the_runtimes_pictures(precision, tiny_bundles, tmp_path):
    """As the server would: by its config, with its plugin's settings, from its files alone."""
    manifest = export_model_server(tiny_bundles[precision], tmp_path / "repository")
    listed = json.loads((tmp_path / "repository" / "config.json").read_text())
    (config,) = (entry["config"] for entry in listed["model_config_list"])
    folder = tmp_path / "repository" / config["base_path"] / "1"
    compiled = openvino_core().compile_model(folder / "model.xml", "CPU", config["plugin_config"])
    assert {name for i in compiled.inputs for name in i.names} == {"tokens", "noise"}
    assert compiled.outputs[0].names == {"image"}
    tokenizer = Tokenizer((folder / "merges.txt").read_text().splitlines())
    wanted = Pipeline.from_bundle(tiny_bundles[precision]).generate("a bird", n=2, seed=3)
    for index in range(2):
        noise = draw_noise(3, "a bird", index, manifest.noise_dim)[None]
        image = compiled({"tokens": tokenizer("a bird"), "noise": noise})[0]
        assert image.dtype == np.uint8
        # The text encoder reads all 77 tokens here, and rounds a little differently.
        assert np.abs(image.astype(int) - wanted[index]).max() <= (1 if precision == "fp32" else 40)
        assert np.abs(image.astype(int) - wanted[index]).mean() < 1


@pytest.mark.parametrize("slow", [True, False])
@pytest.mark.slow
def test_the_repository_does_not_depend_on_the_exporting_cpu(
    slow, tiny_bundles, tmp_path, monkeypatch
):
    """Products of matrices become convolutions where a bundle is loaded on a CPU without VNNI."""
    monkeypatch.setattr("runtime.passes.lacks_vnni", lambda: slow)
    manifest = export_model_server(tiny_bundles["int8"], tmp_path / "repository")
    model = openvino_core().read_model(next((tmp_path / "repository").glob("*/1/model.xml")))
    counts = Counter(op.get_type_name() for op in model.get_ops())
    graphs = [read_graph(Bundle.open(tiny_bundles["int8"]), n) for n in (TEXT_ENCODER, GENERATOR)]
    wanted = Counter(op.get_type_name() for graph in graphs for op in graph.get_ops())
    for kind in ("MatMul", "Convolution", "FakeQuantize"):
        assert counts[kind] == wanted[kind]
    assert largest_weight(model) == 127
    assert manifest.precision == "int8"


def test_a_server_without_vnni_gets_half_of_the_weights_range(tiny_bundles, tmp_path):
    export_model_server(tiny_bundles["int8"], tmp_path / "repository", vnni=False)
    model = openvino_core().read_model(next((tmp_path / "repository").glob("*/1/model.xml")))
    assert largest_weight(model) == 64


@pytest.mark.parametrize("vnni", [True, False])
def test_only_int8_layers_keep_weights_in_eight_bits(vnni):
    """Or OpenVINO rounds the activations of the others, too, and halving would lose a bit."""
    bundle = Bundle.open(EMBEDDED)
    assert decompress_weights(read_graph(bundle, GENERATOR))
    model = whole_model(bundle, vnni)
    assert largest_weight(model) == (127 if vnni else 64)
    assert not decompress_weights(model)


def largest_weight(model: ov.Model) -> int:
    products = [op for op in model.get_ops() if op.get_type_name() in ("MatMul", "Convolution")]
    weights = [int8_weight(op.input_value(1).get_node()) for op in products]
    return max(int(np.abs(w.integers.get_data().astype(int)).max()) for w in weights if w)


def test_what_is_there_is_not_replaced_unless_asked_for(tiny_bundles, tmp_path):
    folder = tmp_path / "repository"
    export_model_server(tiny_bundles["int8"], folder)
    with pytest.raises(BundleError, match="exists: choose another folder, or pass --force"):
        export_model_server(tiny_bundles["int8"], folder)
    export_model_server(tiny_bundles["fp32"], folder, force=True)
    (tmp_path / "other").mkdir()
    with pytest.raises(BundleError, match="is not a model repository"):
        export_model_server(tiny_bundles["fp32"], tmp_path / "other", force=True)
