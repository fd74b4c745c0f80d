"""The conversion from end to end: checkpoint -> ONNX -> OpenVINO -> (INT8) -> bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import openvino as ov

from convert.calibration import BUILT_IN, make_samples, read_captions
from convert.export import OnnxFiles, export_onnx, to_openvino
from convert.fidelity import PROMPTS, Fidelity, Reference, compare, make_reference
from convert.options import ConvertOptions
from convert.quantize import quantize, report
from galip_edge.checkpoint import load_checkpoint
from galip_edge.tokenizer import build_tokenizer
from runtime.bundle import (
    GENERATOR,
    MANIFEST,
    MERGES,
    TEXT_ENCODER,
    Manifest,
    is_bundle,
    write_manifest,
)
from runtime.errors import ConversionError
from runtime.files import atomic_folder
from runtime.openvino_core import openvino_core
from runtime.pipeline import Pipeline, PipelineOptions

TOOLS = ("torch", "onnx", "openvino", "nncf", "open_clip_torch")


def convert(
    checkpoint: Path,
    out: Path,
    options: ConvertOptions | None = None,
    *,
    clip: Path | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Convert a checkpoint to a bundle, comparing with PyTorch after each step.

    Args:
        checkpoint: our `.safetensors`, or an original `.pth`.
        out: the bundle's folder, which appears whole or not at all.
        options: precision and the rest; int8 by default.
        clip: CLIP weights, for an original checkpoint.
        on_step: told in a few words what is being done.

    Returns:
        The manifest of the new bundle, with the measured fidelity.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ConversionError: `checkpoint` is a bundle already, `out` exists, a step fails, or the
            result is further from PyTorch than allowed.
    """
    checkpoint, out, options = Path(checkpoint), Path(out), options or ConvertOptions()
    _refuse_converted(checkpoint)
    _refuse_overwriting(out, options.force)
    captions = read_captions(options.calibration, options.samples)

    on_step("loading the checkpoint")
    loaded = load_checkpoint(checkpoint, clip)
    model = loaded.model
    tokenizer = build_tokenizer(model.config.clip)
    on_step("running PyTorch, the reference")
    reference = make_reference(model, tokenizer)
    fidelity: list[Fidelity] = []
    quantization: dict[str, Any] = {}

    with atomic_folder(out, replace=options.force) as folder, _onnx_folder(options) as onnx_folder:
        on_step("exporting to ONNX")
        onnx_files = export_onnx(model, onnx_folder)
        on_step("comparing ONNX")
        fidelity.append(_compare_onnx(onnx_files, reference))
        text_encoder = to_openvino(onnx_files.text_encoder)
        generator = to_openvino(onnx_files.generator)
        on_step("comparing OpenVINO")
        fidelity.append(_compare_openvino(text_encoder, generator, reference))
        if options.precision == "int8":
            samples = make_samples(model, tokenizer, captions)
            on_step("quantizing the text encoder")
            text_encoder = quantize(text_encoder, samples.text_encoder)
            on_step("quantizing the generator")
            generator = quantize(generator, samples.generator)
            quantization = {
                "calibration": {
                    "prompts": len(captions),
                    "source": (options.calibration or BUILT_IN).name,
                },
                "operations": {
                    "text_encoder": report(text_encoder),
                    "generator": report(generator),
                },
            }
        on_step("writing the bundle")
        compress = options.precision in ("fp16", "bf16")
        ov.save_model(text_encoder, folder / TEXT_ENCODER, compress_to_fp16=compress)
        ov.save_model(generator, folder / GENERATOR, compress_to_fp16=compress)
        (folder / MERGES).write_text("\n".join(tokenizer.merges) + "\n", encoding="utf-8")
        values = {
            "name": options.name or checkpoint.stem,
            "noise_dim": model.config.noise_dim,
            "embedding_dim": model.config.clip.embedding_dim,
            "image_size": model.config.image_size,
            "context_length": model.config.clip.context_length,
            "precision": options.precision,
            "inference_precision": options.inference_precision,
            "checkpoint": {"kind": loaded.source, "sha256": loaded.sha256},
            "tools": {"galip-edge": version("galip-edge")} | {t: version(t) for t in TOOLS},
            "quantization": quantization,
        }
        write_manifest(folder, fidelity=[f.to_dict() for f in fidelity], **values)
        on_step("comparing the bundle")
        fidelity.append(_compare_bundle(folder, options.precision, reference))
        _refuse_unfaithful(fidelity[-1], options)
        (folder / MANIFEST).unlink()
        return write_manifest(folder, fidelity=[f.to_dict() for f in fidelity], **values)


def _refuse_converted(checkpoint: Path) -> None:
    if is_bundle(checkpoint) or checkpoint.suffix in (".xml", ".onnx"):
        raise ConversionError(
            f"{checkpoint} is converted already, and quantizing twice only loses quality: give "
            "the PyTorch checkpoint it was made from"
        )


def _refuse_overwriting(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise ConversionError(f"{out} exists: choose another folder with -o, or give --force")
    if not is_bundle(out):
        raise ConversionError(f"{out} exists and is no bundle, so --force does not replace it")


def _refuse_unfaithful(fidelity: Fidelity, options: ConvertOptions) -> None:
    if not fidelity.image_psnr_db >= options.lowest_psnr:
        raise ConversionError(
            f"the {options.precision} images are only {fidelity.image_psnr_db:.1f} dB from "
            f"PyTorch's, below the {options.lowest_psnr:.1f} dB asked for: use a higher precision, "
            "more calibration prompts, or a lower --min-psnr"
        )


@contextmanager
def _onnx_folder(options: ConvertOptions) -> Iterator[Path]:
    """Where ONNX files are written: the folder to keep them in, or one that is removed."""
    if options.keep_onnx is not None:
        with atomic_folder(options.keep_onnx, replace=options.force) as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)


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
