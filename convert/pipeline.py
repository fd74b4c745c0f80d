"""The steps of a conversion: read, export, quantize, write, compare.

Rewrites for deployment are part of the export (`convert.rewrite`). Memory holds one model at a
time, as far as possible: each step releases what the next one does not need.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import openvino as ov

from convert.auto import write_fastest
from convert.calibration import BUILT_IN, generator_samples, text_samples
from convert.errors import ConversionError
from convert.export import export_generator, export_text_encoder, to_openvino, weights_of
from convert.fidelity import PROMPTS, Fidelity, Reference, compare, make_reference
from convert.golden import measured_tolerance, write_reference
from convert.options import ConvertOptions
from convert.progress import Progress
from convert.quantize import (
    GENERATOR_KEEP_FLOAT,
    TEXT_ENCODER_KEEP_FLOAT,
    compress_weights,
    names_of_kept,
    part_names,
    quantize,
    report,
)
from convert.workspace import disk_errors, publish, workspace
from galip_edge.checkpoints.clip_weights import Activation
from galip_edge.checkpoints.format import load_checkpoint
from galip_edge.models import ModelConfig
from galip_edge.tokenizer import build_tokenizer
from runtime.bundle import GENERATOR, MERGES, TEXT_ENCODER, Manifest, save_manifest, write_manifest
from runtime.compiled_cache import release_pages
from runtime.cpu import release_free_memory
from runtime.graph_io import write_graph
from runtime.openvino_core import openvino_core
from runtime.pipeline import Pipeline, PipelineOptions
from runtime.tokenizer import Tokenizer
from runtime.version import __version__

TOOLS = ("torch", "onnx", "nncf", "openvino", "open_clip_torch")


def run(
    checkpoint: Path,
    clip: Path | None,
    clip_activation: Activation | None,
    out: Path,
    captions: Sequence[str],
    options: ConvertOptions,
    progress: Progress,
) -> Manifest:
    """Convert with checked and resolved paths; see `convert.convert`."""
    with workspace(out) as folder, _onnx_folder(options.keep_onnx, folder) as onnx_folder:
        exported = export(checkpoint, clip, clip_activation, onnx_folder, progress)
        bundle = folder / "bundle"
        bundle.mkdir()
        write = partial(write_bundle, exported, captions, progress=progress)
        if options.precision == "auto":
            manifest = write_fastest(write, options, bundle, progress)
        else:
            manifest = write(options, bundle)
        publish(bundle, out, options.force)
    return manifest


@dataclass(frozen=True)
class Exported:
    """A checkpoint after it left PyTorch.

    Attributes:
        config: dimensions.
        name: file name without suffix.
        provenance: kind and hash of the file.
        tokenizer: tokenizer of its CLIP.
        reference: results of PyTorch.
        text_encoder, generator: ONNX files.
        fidelity: comparison of each step so far.
    """

    config: ModelConfig
    name: str
    provenance: dict[str, str]
    tokenizer: Tokenizer
    reference: Reference
    text_encoder: Path
    generator: Path
    fidelity: tuple[Fidelity, ...]


def export(
    file: Path,
    clip: Path | None,
    clip_activation: Activation | None,
    onnx_folder: Path,
    progress: Progress,
) -> Exported:
    """Read a checkpoint, run PyTorch as the reference, export it, and compare."""
    progress.step("loading the checkpoint")
    checkpoint = load_checkpoint(file, clip, clip_activation=clip_activation)
    model, config = checkpoint.model, checkpoint.model.config
    provenance = {"kind": checkpoint.source, "sha256": checkpoint.sha256}
    del checkpoint, model.discriminator
    _release_memory()
    tokenizer = build_tokenizer(config.clip)
    progress.step("running PyTorch, the reference", len(PROMPTS))
    reference = make_reference(model, tokenizer, progress.advance)

    progress.step("exporting the text encoder to ONNX")
    text_encoder = export_text_encoder(model, onnx_folder)
    progress.step("exporting the generator to ONNX")
    generator = export_generator(model, onnx_folder)
    del model
    _release_memory()

    progress.step("comparing ONNX", len(PROMPTS))
    sentence = _run_onnx(text_encoder, reference.tokens)
    image = _run_onnx(generator, reference.noise, sentence, on_row=progress.advance)
    of_onnx = compare("onnx", reference, sentence, image)
    _release_memory()
    progress.step("comparing OpenVINO", len(PROMPTS))
    sentence = _run_openvino(text_encoder, reference.tokens)
    image = _run_openvino(generator, reference.noise, sentence, on_row=progress.advance)
    of_openvino = compare("openvino fp32", reference, sentence, image)
    _release_memory()
    return Exported(
        config=config,
        name=file.stem,
        provenance=provenance,
        tokenizer=tokenizer,
        reference=reference,
        text_encoder=text_encoder,
        generator=generator,
        fidelity=(of_onnx, of_openvino),
    )


def write_bundle(
    exported: Exported,
    captions: Sequence[str],
    options: ConvertOptions,
    folder: Path,
    progress: Progress,
) -> Manifest:
    """Quantize for int8, write a bundle into the empty `folder`, and compare it.

    Raises:
        ConversionError: it is further from PyTorch than allowed.
        OSError: it cannot be written.
    """
    config, precision = exported.config, options.precision
    quantization: dict[str, Any] = {}
    if precision == "int8":
        text_encoder, generator, quantization = _quantize(exported, captions, options, progress)
    else:
        text_encoder, generator = map(to_openvino, (exported.text_encoder, exported.generator))

    progress.step(f"writing the {precision} bundle")
    compress = precision in ("fp16", "bf16")
    with disk_errors(folder):
        write_graph(text_encoder, folder / TEXT_ENCODER, compress)
        write_graph(generator, folder / GENERATOR, compress)
    del text_encoder, generator
    _release_memory()
    merges = "\n".join(exported.tokenizer.merges) + "\n"
    (folder / MERGES).write_text(merges, encoding="utf-8")
    manifest = write_manifest(
        folder,
        name=options.name or exported.name,
        noise_dim=config.noise_dim,
        embedding_dim=config.clip.embedding_dim,
        image_size=config.image_size,
        context_length=config.clip.context_length,
        precision=precision,
        inference_precision=options.inference_precision,
        checkpoint=exported.provenance,
        tools={"galip-edge": __version__} | {tool: version(tool) for tool in TOOLS},
        quantization=quantization,
        fidelity=[step.to_dict() for step in exported.fidelity],
        golden=write_reference(folder, exported.reference),
    )

    progress.step(f"comparing the {precision} bundle")
    # One stream: nothing is compiled twice.
    pipeline = Pipeline.from_bundle(folder, PipelineOptions(cache=False, streams=1))
    sentence = pipeline.encode(PROMPTS)
    image = pipeline.synthesize(sentence, exported.reference.noise)
    fidelity = compare(f"bundle {precision}", exported.reference, sentence, image)
    _refuse_unfaithful(fidelity, options)
    steps = [*manifest.fidelity, fidelity.to_dict()]
    golden = measured_tolerance(pipeline)
    return save_manifest(folder, replace(manifest, fidelity=steps, golden=golden))


def _quantize(
    exported: Exported, captions: Sequence[str], options: ConvertOptions, progress: Progress
) -> tuple[ov.Model, ov.Model, dict[str, Any]]:
    """Text encoder and generator in INT8, and the details for the manifest."""
    quantizer = _with_nncf if options.quantizer == "nncf" else _with_ours
    in_float = _parts_in_float(exported, options.keep_float)
    progress.step("quantizing the text encoder", len(captions))
    samples = text_samples(exported.tokenizer, captions)
    text_encoder, sentences = quantizer(
        to_openvino(exported.text_encoder),
        samples,
        in_float["text_encoder"],
        _releasing(exported, progress.advance),
    )
    _release_memory()
    progress.step("quantizing the generator", len(captions))
    samples = generator_samples(captions, sentences, exported.config.noise_dim)
    generator, _ = quantizer(
        to_openvino(exported.generator),
        samples,
        in_float["generator"],
        _releasing(exported, progress.advance),
    )
    _release_memory()
    source = (options.calibration or BUILT_IN).name
    models = {
        "text_encoder": (text_encoder, in_float["text_encoder"]),
        "generator": (generator, in_float["generator"]),
    }
    how = {
        "quantizer": options.quantizer,
        "calibration": {"prompts": len(captions), "source": source},
        "scheme": {
            name: {"keep_float": kept, "compress_weights": options.compress_weights}
            for name, (_, kept) in models.items()
        },
        "operations": {name: report(model, kept) for name, (model, kept) in models.items()},
    }
    if options.compress_weights:
        for model, kept in models.values():
            compress_weights(model, kept)
    return text_encoder, generator, how


def _parts_in_float(exported: Exported, given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parts of both models to keep in floating point. Raises ConversionError for unknown ones."""
    if given:
        models = [to_openvino(path) for path in (exported.text_encoder, exported.generator)]
        for part in given:
            if not any(names_of_kept(model, [part]) for model in models):
                known = set.union(*map(part_names, models))
                raise ConversionError(
                    f"no layer is named {part!r}, so it cannot be kept in floating point: choose "
                    f"one of {', '.join(sorted(known))}"
                )
    return {
        "text_encoder": (*TEXT_ENCODER_KEEP_FLOAT, *given),
        "generator": (*GENERATOR_KEEP_FLOAT, *given),
    }


def _with_ours(model: ov.Model, *arguments: Any) -> tuple[ov.Model, list[npt.NDArray[Any]]]:
    return model, quantize(model, *arguments)


def _with_nncf(model: ov.Model, *arguments: Any) -> tuple[ov.Model, list[npt.NDArray[Any]]]:
    from convert.nncf_quantize import quantize_with_nncf  # importing NNCF takes two seconds

    return quantize_with_nncf(model, *arguments)


def _refuse_unfaithful(fidelity: Fidelity, options: ConvertOptions) -> None:
    if not fidelity.image_psnr_db >= options.lowest_psnr:
        raise ConversionError(
            f"the {options.precision} images are only {fidelity.image_psnr_db:.1f} dB from "
            f"PyTorch's, below the required {options.lowest_psnr:.1f} dB: use a higher precision, "
            "more calibration prompts, or a lower --min-psnr"
        )


def _run_onnx(
    file: Path, *inputs: npt.NDArray[Any], on_row: Callable[[], None] = lambda: None
) -> npt.NDArray[Any]:
    settings = onnxruntime.SessionOptions()
    # A second layout of all weights is not worth it for eight images.
    settings.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return _row_by_row(lambda *rows: session.run(None, dict(zip(names, rows)))[0], inputs, on_row)


def _run_openvino(
    file: Path, *inputs: npt.NDArray[Any], on_row: Callable[[], None] = lambda: None
) -> npt.NDArray[Any]:
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino_core().compile_model(to_openvino(file), "CPU", settings)
    return _row_by_row(lambda *rows: compiled(list(rows))[0].copy(), inputs, on_row)


def _row_by_row(
    infer: Callable[..., Any], inputs: Sequence[npt.NDArray[Any]], on_row: Callable[[], None]
) -> npt.NDArray[Any]:
    """Outputs of batches of one, which keep memory small at full size."""
    results = []
    for row in range(len(inputs[0])):
        results.append(infer(*(array[row : row + 1] for array in inputs)))
        on_row()
    return np.concatenate(results)


def _releasing(exported: Exported, on_sample: Callable[[], None]) -> Callable[[], None]:
    """`on_sample`; its first call, when the model is compiled, releases the maps of the weights."""
    first = iter([True])

    def call() -> None:
        if next(first, False):
            for file in (exported.text_encoder, exported.generator):
                release_pages(weights_of(file))
        on_sample()

    return call


def _release_memory() -> None:
    gc.collect()
    release_free_memory()


@contextmanager
def _onnx_folder(keep: Path | None, work: Path) -> Iterator[Path]:
    """Folder for ONNX files: one to keep, published in the end, or one in the workspace."""
    if keep is None:
        folder = work / "onnx"
        folder.mkdir()
        yield folder
        return
    kept = keep.resolve()
    with workspace(kept) as other:
        folder = other / "onnx"
        folder.mkdir()
        yield folder
        publish(folder, kept, replace=True)
