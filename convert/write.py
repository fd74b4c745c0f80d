"""What is converted, and how a bundle of it is written and compared with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from convert.calibration import BUILT_IN, make_samples
from convert.export import OnnxFiles, export_onnx, to_openvino
from convert.fidelity import PROMPTS, Fidelity, Reference, compare, make_reference
from convert.options import ConvertOptions
from convert.quantize import SCHEMES, quantize, report
from convert.table import take_rows_first
from galip_edge.checkpoint import Checkpoint, load_checkpoint
from galip_edge.checkpoints.clip_weights import Activation
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
from runtime.errors import ConversionError
from runtime.golden import tolerance, write_golden
from runtime.graphs import write_graph
from runtime.openvino_core import openvino_core
from runtime.pipeline import Pipeline, PipelineOptions
from runtime.tokenizer import Tokenizer
from runtime.version import __version__

# The first prompts of `PROMPTS` that the shortest text encoder reads whole; their numbers come with
# the bundle.
GOLDEN_ROWS = (0, 7)

TOOLS = ("torch", "onnx", "openvino", "nncf", "open_clip_torch")

OnStep = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """A checkpoint on its way to bundles.

    Attributes:
        checkpoint: in PyTorch.
        file: where it came from.
        tokenizer: of its CLIP.
        captions: to calibrate on.
        reference: what PyTorch calculates.
        text_encoder, generator: as `openvino.Model` in float32.
        fidelity: of the steps so far.
    """

    checkpoint: Checkpoint
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
    on_step: OnStep,
    *,
    clip_activation: Activation | None = None,
) -> Source:
    """Load a checkpoint and export it, comparing with PyTorch after each step."""
    on_step("loading the checkpoint")
    checkpoint = load_checkpoint(file, clip, clip_activation=clip_activation)
    tokenizer = build_tokenizer(checkpoint.model.config.clip)
    on_step("running PyTorch, the reference")
    reference = make_reference(checkpoint.model, tokenizer)
    on_step("exporting to ONNX")
    onnx_files = export_onnx(checkpoint.model, onnx_folder)
    on_step("comparing ONNX")
    onnx = _compare_onnx(onnx_files, reference)
    text_encoder = to_openvino(onnx_files.text_encoder)
    generator = to_openvino(onnx_files.generator)
    on_step("comparing OpenVINO")
    openvino = _compare_openvino(text_encoder, generator, reference)
    return Source(
        checkpoint, file, tokenizer, captions, reference, text_encoder, generator, (onnx, openvino)
    )


def write_bundle(
    source: Source, options: ConvertOptions, folder: Path, on_step: OnStep
) -> Manifest:
    """Write a bundle of the precision asked for into `folder`, which exists and is empty.

    Raises:
        ConversionError: it is further from PyTorch than allowed.
    """
    config = source.checkpoint.model.config
    text_encoder, generator = source.text_encoder, source.generator
    quantization: dict[str, Any] = {}
    if options.precision in SCHEMES:
        scheme = SCHEMES[options.precision]
        samples = make_samples(source.checkpoint.model, source.tokenizer, source.captions)
        on_step("quantizing the text encoder")
        text_encoder = quantize(text_encoder, samples.text_encoder)
        take_rows_first(text_encoder)
        on_step("quantizing the generator")
        generator = quantize(generator, samples.generator, scheme)
        quantization = {
            "calibration": {
                "prompts": len(source.captions),
                "source": (options.calibration or BUILT_IN).name,
            },
            "scheme": asdict(scheme),
            "operations": {
                "text_encoder": report(text_encoder),
                "generator": report(generator, scheme.in_float),
            },
        }
    on_step(f"writing the {options.precision} bundle")
    compress = options.precision in ("fp16", "bf16")
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
        "checkpoint": {"kind": source.checkpoint.source, "sha256": source.checkpoint.sha256},
        "tools": {"galip-edge": __version__} | {t: version(t) for t in TOOLS},
        "quantization": quantization,
    }
    steps = [f.to_dict() for f in source.fidelity]
    golden = write_reference(folder, source.reference)
    manifest = write_manifest(folder, fidelity=steps, golden=golden, **values)
    on_step(f"comparing the {options.precision} bundle")
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


def _rows(run: Callable[..., Any], *inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Run row by row, which keeps memory small at full size."""
    return np.concatenate([run(*(x[i : i + 1] for x in inputs)) for i in range(len(inputs[0]))])


def _compare_onnx(files: OnnxFiles, reference: Reference) -> Fidelity:
    def runner(path: Path) -> Callable[..., Any]:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        return lambda *rows: session.run(None, dict(zip(names, rows)))[0]

    text, generator = runner(files.text_encoder), runner(files.generator)
    return compare("onnx", reference, lambda t: _rows(text, t), lambda z, s: _rows(generator, z, s))


def _compare_openvino(text_encoder: Any, generator: Any, reference: Reference) -> Fidelity:
    def runner(model: Any) -> Callable[..., Any]:
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino_core().compile_model(model, "CPU", settings)
        return lambda *rows: compiled(list(rows))[0].copy()

    text, image = runner(text_encoder), runner(generator)
    return compare(
        "openvino fp32", reference, lambda t: _rows(text, t), lambda z, s: _rows(image, z, s)
    )


def _compare_bundle(folder: Path, precision: str, reference: Reference) -> Fidelity:
    """End to end as a user runs it: tokenizer, text encoder, generator."""
    pipeline = Pipeline.from_bundle(folder, PipelineOptions(cache=False))
    return compare(
        f"bundle {precision}",
        reference,
        lambda _: pipeline.encode(PROMPTS),
        lambda noise, sentence: pipeline.synthesize(sentence, noise),
    )
