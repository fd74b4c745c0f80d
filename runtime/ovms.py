"""A bundle as a model repository of OpenVINO Model Server.

    DIR/config.json           what the server reads
    DIR/NAME/1/model.xml      tokens (1,77) int64, noise (1,Z) -> image (1,H,W,3) uint8
    DIR/NAME/1/model.bin      its weights
    DIR/NAME/1/merges.txt     the tokenizer's merges, for clients

One model, so that an image takes one request; encoding its text each time costs a tenth of it. The
batch is one: a larger one rounds differently and is hardly faster. The server runs as many
requests in parallel as the machine has cores.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import openvino as ov

from runtime.bundle import GENERATOR, MERGES, TEXT_ENCODER, Bundle, Manifest, check_export_folder
from runtime.files import atomic_folder
from runtime.graph_io import read_graph
from runtime.openvino_core import keep_locale
from runtime.passes import decompress_weights, halve_weights
from runtime.tokenizer import Tokenizer
from runtime.tokenizer_graph import tokenizer_model

CONFIG = "config.json"
_VERSION = "1"


def export_model_server(
    bundle: str | Path,
    folder: str | Path,
    force: bool = False,
    vnni: bool = True,
    text: bool = False,
) -> Manifest:
    """Write the repository atomically.

    Args:
        bundle: to serve.
        folder: of the repository; it must not exist.
        force: replace one that exists.
        vnni: whether the server's CPU has VNNI; without, INT8 products would overflow, so weights
            are halved. The exporting machine's CPU does not matter.
        text: whether the model reads a string instead of tokens; the server then needs OpenVINO
            Tokenizers as its `--cpu_extension`.

    Returns:
        The bundle's manifest.

    Raises:
        BundleError: the bundle is missing or damaged, or `folder` exists.
        GalipEdgeError: OpenVINO Tokenizers is not installed, which `text` needs.
    """
    bundle, folder = Path(bundle), Path(folder)
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    check_export_folder(folder, force, CONFIG, "a model repository")
    name = model_name(manifest)
    with keep_locale(), atomic_folder(folder, replace=force) as temporary:
        version = temporary / name / _VERSION
        version.mkdir(parents=True)
        model = whole_model(opened, vnni)
        if text:
            model = with_text_input(model, opened)
        ov.save_model(model, version / "model.xml", compress_to_fp16=False)
        (version / MERGES).write_bytes(opened.read(MERGES))
        (temporary / CONFIG).write_text(json.dumps(_config(name, manifest), indent=2) + "\n")
    return manifest


def model_name(manifest: Manifest) -> str:
    """Name of the model, valid in a URL."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", manifest.name).strip("-") or "galip"


def whole_model(bundle: Bundle, vnni: bool = True) -> ov.Model:
    """Text encoder and generator as one model: tokens and noise to an image."""
    manifest = bundle.manifest
    text, generator = read_graph(bundle, TEXT_ENCODER), read_graph(bundle, GENERATOR)
    for graph in (text, generator):
        decompress_weights(graph)  # or OpenVINO rounds their activations, too
        if not vnni:
            halve_weights(graph)
    text.reshape({text.inputs[0]: [1, manifest.context_length]})
    generator.reshape({i: [1, *list(i.partial_shape)[1:]] for i in generator.inputs})
    sentence = generator.input("sentence")
    sentence.replace(text.outputs[0].get_node().input_value(0))
    inputs = [text.inputs[0].get_node(), generator.input("noise").get_node()]
    whole = ov.Model(generator.get_results(), inputs, model_name(manifest))
    whole.outputs[0].set_names({"image"})
    whole.validate_nodes_and_infer_types()
    return whole


def with_text_input(model: ov.Model, bundle: Bundle) -> ov.Model:
    """A model of `whole_model` that reads `text`, one string, instead of tokens."""
    length = bundle.manifest.context_length
    merges = bundle.read(MERGES).decode("utf-8").splitlines()
    tokenizer = tokenizer_model(Tokenizer(merges, length))
    tokens = tokenizer.get_results()[0].input_value(0)
    # The number of strings stays open, since a split of one gives many; the rest is for one.
    tokens = ov.opset13.reshape(tokens, [1, length], special_zero=False)
    model.input("tokens").replace(tokens.output(0))
    inputs = [tokenizer.input("text").get_node(), model.input("noise").get_node()]
    whole = ov.Model(model.get_results(), inputs, model.get_friendly_name())
    whole.validate_nodes_and_infer_types()
    return whole


def _config(name: str, manifest: Manifest) -> dict[str, Any]:
    plugin = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": manifest.inference_precision,
    }
    config = {"name": name, "base_path": name, "target_device": "CPU", "plugin_config": plugin}
    return {"model_config_list": [{"config": config}]}
