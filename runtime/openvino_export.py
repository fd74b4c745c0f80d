"""A bundle as plain OpenVINO models, for programs in other languages and OpenVINO's own tools.

    DIR/tokenizer.xml, .bin       text, strings (B,) -> tokens (B,77) int64
    DIR/text_encoder.xml, .bin    tokens (B,L) int64 -> sentence (B,E) float32
    DIR/generator.xml, .bin       noise (B,Z), sentence (B,E) float32 -> image (B,H,W,3) uint8
    DIR/model.json                dimensions, and settings for the numbers of `Pipeline`

The tokenizer needs OpenVINO Tokenizers as an extension (`runtime.tokenizer_graph`). Settings also
lie in each model's runtime information, under `galip_edge`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openvino as ov

from runtime.bundle import GENERATOR, MERGES, TEXT_ENCODER, Bundle, Manifest, check_export_folder
from runtime.files import atomic_folder
from runtime.graph_io import read_graph
from runtime.openvino_core import keep_locale
from runtime.passes import decompress_weights, halve_weights
from runtime.pipeline import TEXT_LENGTHS
from runtime.tokenizer import Tokenizer
from runtime.tokenizer_graph import tokenizer_model
from runtime.version import __version__

DESCRIPTION = "model.json"
_INFORMATION = "galip_edge"


def export_openvino(
    bundle: str | Path,
    folder: str | Path,
    force: bool = False,
    vnni: bool = True,
    tokenizer: bool = True,
) -> Manifest:
    """Write the models atomically.

    Args:
        bundle: to export.
        folder: of the models; it must not exist.
        force: replace an earlier export.
        vnni: whether the target machine's CPU has VNNI; without, INT8 weights get half of their
            range, which they would overflow there.
        tokenizer: whether to write the tokenizer.

    Returns:
        The bundle's manifest.

    Raises:
        BundleError: the bundle is missing or damaged, or `folder` exists.
        GalipEdgeError: OpenVINO Tokenizers is not installed, which the tokenizer needs.
    """
    folder, opened = Path(folder), Bundle.open(Path(bundle))
    manifest = opened.manifest
    check_export_folder(folder, force, DESCRIPTION, "an export")
    settings = _settings(manifest)
    with keep_locale(), atomic_folder(folder, replace=force) as temporary:
        for name in (TEXT_ENCODER, GENERATOR):
            model = read_graph(opened, name)
            decompress_weights(model)  # or OpenVINO rounds their activations, too
            if not vnni:
                halve_weights(model)
            _save(model, temporary / f"{name.partition('.')[0]}.xml", settings)
        if tokenizer:
            merges = opened.read(MERGES).decode("utf-8").splitlines()
            model = tokenizer_model(Tokenizer(merges, manifest.context_length))
            _save(model, temporary / "tokenizer.xml", settings)
        (temporary / DESCRIPTION).write_text(json.dumps(settings, indent=2) + "\n")
    return manifest


def _settings(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "model_hash": manifest.model_hash,
        "version": __version__,
        "noise_dim": manifest.noise_dim,
        "embedding_dim": manifest.embedding_dim,
        "context_length": manifest.context_length,
        "image_size": manifest.image_size,
        # Tokens are cut to the first of these lengths that holds them.
        "text_lengths": [n for n in TEXT_LENGTHS if n < manifest.context_length]
        + [manifest.context_length],
        # Where the CPU has it, else f32.
        "inference_precision": manifest.inference_precision,
    }


def _save(model: ov.Model, path: Path, settings: dict[str, Any]) -> None:
    for key, value in settings.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        model.set_rt_info(text, [_INFORMATION, key])
    ov.save_model(model, path, compress_to_fp16=False)
