"""What is converted, and how a bundle of it is written and compared with PyTorch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from convert.calibration import BUILT_IN, generator_samples, text_samples
from convert.errors import ConversionError
from convert.export import export_generator, export_text_encoder, to_openvino
from convert.fidelity import PROMPTS, Fidelity, Reference, compare, make_reference
from convert.options import ConvertOptions
from convert.progress import Progress
from convert.quantize import GENERATOR_SCHEME, TEXT_ENCODER_SCHEME, quantize, report
from convert.workspace import disk_errors
from galip_edge.checkpoint import load_checkpoint
from galip_edge.checkpoints.clip_weights import Activation
from galip_edge.models import ModelConfig
from galip_edge.tokenizer import build_tokenizer
from runtime.bundle import (
    GENERATOR,
    MERGES,
    TEXT_ENCODER,
    GoldenEntry,
    Manifest,
    save_manifest,
    write_manifest,
)
from runtime.cpu import release_free_memory
from runtime.golden import tolerance, write_golden
from runtime.graph_io import write_graph
from runtime.openvino_core import openvino_core
from runtime.pipeline import Pipeline, PipelineOptions
from runtime.tokenizer import Tokenizer
from runtime.version import __version__

# The first prompts of `PROMPTS` that the shortest text encoder reads whole; their numbers come with
# the bundle.
GOLDEN_ROWS = (0, 7)

TOOLS = ("torch", "onnx", "nncf", "openvino", "open_clip_torch")


@dataclass(frozen=True)
class Source:
    """A checkpoint on its way to bundles, after it left PyTorch.

    Attributes:
        config: dimensions.
        checkpoint: kind and hash of the file, for the manifest.
        file: the checkpoint.
        tokenizer: of its CLIP.
        captions: to calibrate on.
        reference: what PyTorch calculates.
        text_encoder, generator: as `openvino.Model` in float32.
        fidelity: of the steps so far.
    """

    config: ModelConfig
    checkpoint: dict[str, str]
    file: Path
    tokenizer: Tokenizer
    captions: list[str]
    reference: Reference
    text_encoder: Any
    generator: Any
    fidelity: tuple[Fidelity, ...]


def read_source(
    file: Path,
    clip: Path | None,
    captions: list[str],
    onnx_folder: Path,
    progress: Progress,
    *,
    clip_activation: Activation | None = None,
    keep_onnx: bool = False,
) -> Source:
    """Load a checkpoint and export it, comparing with PyTorch after each step.

    Memory and disk hold one model at a time, as far as possible: PyTorch's goes when it is
    exported, an ONNX file (unless `keep_onnx`) when OpenVINO has read it.
    """
    progress.step("loading the checkpoint")
    checkpoint = load_checkpoint(file, clip, clip_activation=clip_activation)
    model = checkpoint.model
    config = model.config
    origin = {"kind": checkpoint.source, "sha256": checkpoint.sha256}
    tokenizer = build_tokenizer(config.clip)
    del checkpoint, model.discriminator
    progress.step("running PyTorch, the reference", len(PROMPTS))
    reference = make_reference(model, tokenizer, progress.advance)

    progress.step("exporting the text encoder to ONNX")
    onnx = export_text_encoder(model, onnx_folder)
    sentence = _run_onnx(onnx, reference.tokens)
    text_encoder = _read_onnx(onnx, keep_onnx)
    progress.step("exporting the generator to ONNX")
    onnx = export_generator(model, onnx_folder)
    del model
    _release_memory()
    progress.step("comparing ONNX", len(PROMPTS))
    image = _run_onnx(onnx, reference.noise, sentence, on_row=progress.advance)
    onnx_fidelity = compare("onnx", reference, sentence, image)
    _release_memory()
    generator = _read_onnx(onnx, keep_onnx)

    progress.step("comparing OpenVINO", len(PROMPTS))
    sentence = _run_openvino(text_encoder, reference.tokens)
    image = _run_openvino(generator, reference.noise, sentence, on_row=progress.advance)
    _release_memory()
    fidelity = (onnx_fidelity, compare("openvino fp32", reference, sentence, image))
    return Source(
        config, origin, file, tokenizer, captions, reference, text_encoder, generator, fidelity
    )


def write_bundle(
    source: Source, options: ConvertOptions, folder: Path, progress: Progress
) -> Manifest:
    """Write a bundle of the precision asked for into `folder`, which exists and is empty.

    Raises:
        ConversionError: it is further from PyTorch than allowed.
        OSError: it cannot be written.
    """
    config = source.config
    text_encoder, generator = source.text_encoder, source.generator
    quantization: dict[str, Any] = {}
    if options.precision == "int8":
        text_encoder, generator, quantization = _quantize(source, options, progress)
    progress.step(f"writing the {options.precision} bundle")
    compress = options.precision in ("fp16", "bf16")
    with disk_errors(folder):
        write_graph(text_encoder, folder / TEXT_ENCODER, compress)
        write_graph(generator, folder / GENERATOR, compress)
    (folder / MERGES).write_text("\n".join(source.tokenizer.merges) + "\n", encoding="utf-8")
    values = {
        "name": options.name or source.file.stem,
        "noise_dim": config.noise_dim,
        "embedding_dim": config.clip.embedding_dim,
        "image_size": config.image_size,
        "context_length": config.clip.context_length,
        "precision": options.precision,
        "inference_precision": options.inference_precision,
        "checkpoint": source.checkpoint,
        "tools": {"galip-edge": __version__} | {t: version(t) for t in TOOLS},
        "quantization": quantization,
    }
    steps = [f.to_dict() for f in source.fidelity]
    golden = write_reference(folder, source.reference)
    manifest = write_manifest(folder, fidelity=steps, golden=golden, **values)
    progress.step(f"comparing the {options.precision} bundle")
    last = _compare_bundle(folder, options.precision, source.reference)
    _refuse_unfaithful(last, options)
    manifest = replace(manifest, fidelity=[*steps, last.to_dict()])
    return save_manifest(folder, replace(manifest, golden=measured_tolerance(folder, manifest)))


def write_reference(folder: Path, reference: Reference) -> GoldenEntry:
    """Write the golden numbers of a bundle, and return their entry, which tolerates anything."""
    rows = list(GOLDEN_ROWS)
    image = np.round(reference.image[rows] * 127.5 + 127.5).astype(np.uint8)
    write_golden(folder, reference.sentence[rows], image)
    return GoldenEntry(tuple(PROMPTS[row] for row in rows), 0, -1.0, 0.0)


def measured_tolerance(folder: Path, manifest: Manifest) -> GoldenEntry:
    """The golden entry with the tolerance that follows from what this machine computes."""
    pipeline = Pipeline.from_bundle(folder, PipelineOptions(cache=False))
    report = pipeline.compare_with_golden()
    assert report is not None
    return tolerance(manifest, report.sentence_cosine, report.image_psnr_db)


def _refuse_unfaithful(fidelity: Fidelity, options: ConvertOptions) -> None:
    if not fidelity.image_psnr_db >= options.lowest_psnr:
        raise ConversionError(
            f"the {options.precision} images are only {fidelity.image_psnr_db:.1f} dB from "
            f"PyTorch's, below the {options.lowest_psnr:.1f} dB asked for: use a higher precision, "
            "more calibration prompts, or a lower --min-psnr"
        )


def _quantize(
    source: Source, options: ConvertOptions, progress: Progress
) -> tuple[Any, Any, dict[str, Any]]:
    """Text encoder and generator in INT8; for the manifest, how they became so."""
    quantizer = _with_nncf if options.quantizer == "nncf" else _in_place
    captions, count = source.captions, len(source.captions)
    progress.step("quantizing the text encoder", count)
    samples = text_samples(source.tokenizer, captions)
    text_encoder, sentences = quantizer(
        source.text_encoder, samples, TEXT_ENCODER_SCHEME, progress.advance
    )
    progress.step("quantizing the generator", count)
    inputs = generator_samples(captions, sentences, source.config.noise_dim)
    generator, _ = quantizer(source.generator, inputs, GENERATOR_SCHEME, progress.advance)
    schemes = {"text_encoder": TEXT_ENCODER_SCHEME, "generator": GENERATOR_SCHEME}
    models = {"text_encoder": text_encoder, "generator": generator}
    how = {
        "quantizer": options.quantizer,
        "calibration": {"prompts": count, "source": (options.calibration or BUILT_IN).name},
        "scheme": {name: asdict(scheme) for name, scheme in schemes.items()},
        "operations": {n: report(models[n], schemes[n].keep_float) for n in models},
    }
    return text_encoder, generator, how


def _in_place(model: Any, *arguments: Any) -> tuple[Any, list[npt.NDArray[Any]]]:
    copy = model.clone()
    return copy, quantize(copy, *arguments)


def _with_nncf(model: Any, *arguments: Any) -> tuple[Any, list[npt.NDArray[Any]]]:
    from convert.nncf_quantize import quantize_with_nncf  # importing NNCF takes two seconds

    return quantize_with_nncf(model, *arguments)


def _release_memory() -> None:
    gc.collect()
    release_free_memory()


def _read_onnx(file: Path, keep: bool) -> Any:
    model = to_openvino(file)
    if not keep:
        file.unlink()
    return model


def _run_onnx(
    file: Path, *inputs: npt.NDArray[Any], on_row: Callable[[], None] = lambda: None
) -> npt.NDArray[Any]:
    settings = onnxruntime.SessionOptions()
    # A second layout of all weights, which eight images are not worth.
    settings.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return _rows(lambda *rows: session.run(None, dict(zip(names, rows)))[0], inputs, on_row)


def _run_openvino(
    model: Any, *inputs: npt.NDArray[Any], on_row: Callable[[], None] = lambda: None
) -> npt.NDArray[Any]:
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino_core().compile_model(model, "CPU", settings)
    return _rows(lambda *rows: compiled(list(rows))[0].copy(), inputs, on_row)


def _rows(
    run: Callable[..., Any], inputs: Sequence[npt.NDArray[Any]], on_row: Callable[[], None]
) -> npt.NDArray[Any]:
    """Run row by row, which keeps memory small at full size."""
    results = []
    for row in range(len(inputs[0])):
        results.append(run(*(array[row : row + 1] for array in inputs)))
        on_row()
    return np.concatenate(results)


def _compare_bundle(folder: Path, precision: str, reference: Reference) -> Fidelity:
    """Compare end to end, as a user runs it: tokenizer, text encoder, generator."""
    pipeline = Pipeline.from_bundle(folder, PipelineOptions(cache=False))
    sentence = pipeline.encode(PROMPTS)
    image = pipeline.synthesize(sentence, reference.noise)
    return compare(f"bundle {precision}", reference, sentence, image)
