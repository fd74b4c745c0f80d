"""Contenders: each turns a prompt into a sentence embedding, and that into images.

Every function `make_…` is called in a separate process, which then holds one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.bundle import MERGES, read_manifest
from runtime.cpu import available_cores
from runtime.images import ImageMetadata, save_each, save_png
from runtime.noise import draw_noise
from runtime.tokenizer import Tokenizer

if TYPE_CHECKING:
    from runtime import Pipeline

SEED = 0


@dataclass(frozen=True)
class Contender:
    """One way to generate.

    Attributes:
        encode: a prompt to its sentence embedding.
        draw: that and noise (B,Z) to images (B,H,W,3) uint8.
        noise_dim: Z.
    """

    encode: Callable[[str], Any]
    draw: Callable[[Any, Any], Any]
    noise_dim: int

    def noise(self, prompt: str, n: int) -> Any:
        """(n,Z)"""
        return np.stack([draw_noise(SEED, prompt, i, self.noise_dim) for i in range(n)])

    def save(self, prompt: str, n: int, folder: Path) -> None:
        """Generate `n` images and write each as PNG, as a plain script would."""
        for i, image in enumerate(self.draw(self.encode(prompt), self.noise(prompt, n))):
            save_png(image, folder / f"{i}.png", ImageMetadata(prompt, SEED, i, "", ""))


@dataclass(frozen=True)
class OurContender(Contender):
    """The runtime, as `galip-edge generate` uses it."""

    pipeline: Pipeline

    def save(self, prompt: str, n: int, folder: Path) -> None:
        """Generate `n` images, and write each as PNG while the next one is generated."""
        made = self.pipeline.generate_each(prompt, n, SEED)
        named = ((m.image, ImageMetadata(prompt, SEED, m.index, "", "")) for m in made)
        for _ in save_each(named, folder):
            pass


def torch_contender(checkpoint: Path, compiled: bool, precision: str, device: str) -> Contender:
    """PyTorch in the published order of operations.

    Args:
        checkpoint: one of ours.
        compiled: by `torch.compile`.
        precision: float32, bfloat16 or float16.
        device: cpu or cuda.
    """
    import torch
    from published import in_published_order

    from galip_edge.checkpoints.format import load_checkpoint
    from galip_edge.tokenizer import build_tokenizer

    torch.set_num_threads(available_cores())
    dtype = getattr(torch, precision)
    model = load_checkpoint(checkpoint).model
    in_published_order(model.generator)
    tokenizer = build_tokenizer(model.config.clip)
    text_encoder = model.text_encoder.to(device, dtype)
    generator = model.generator.to(device, dtype)
    if compiled:
        text_encoder, generator = torch.compile(text_encoder), torch.compile(generator)

    def encode(prompt: str) -> Any:
        with torch.inference_mode():
            return text_encoder(torch.from_numpy(tokenizer(prompt)).to(device))

    def draw(sentence: Any, noise: Any) -> Any:
        with torch.inference_mode():
            rows = torch.from_numpy(noise).to(device, dtype)
            images = generator(rows, sentence.expand(len(noise), -1)).clamp(-1, 1)
            levels = (images * 127.5 + 127.5).round().to(torch.uint8)
            return levels.permute(0, 2, 3, 1).cpu().numpy()

    return Contender(encode, draw, model.config.noise_dim)


def onnx_contender(folder: Path, bundle: Path) -> Contender:
    """ONNX Runtime with its defaults, image by image.

    Args:
        folder: of the two ONNX files.
        bundle: ours, for its tokenizer.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    # An idle contender must not spin while others are measured.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def runner(name: str) -> Callable[..., Any]:
        session = onnxruntime.InferenceSession(
            folder / name, options, providers=["CPUExecutionProvider"]
        )
        names = [i.name for i in session.get_inputs()]
        return lambda *rows: session.run(None, dict(zip(names, rows)))[0]

    return _image_by_image(runner("text_encoder.onnx"), runner("generator.onnx"), bundle)


def openvino_contender(folder: Path, precision: str, bundle: Path) -> Contender:
    """OpenVINO with its latency hint, one image at a time, on the exported models without rewrites.

    Args:
        folder: of ONNX or OpenVINO files.
        precision: of layers that are not INT8, f32 or bf16.
        bundle: ours, for its tokenizer.
    """
    from runtime.openvino_core import openvino_core

    core = openvino_core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}

    def runner(name: str) -> Callable[..., Any]:
        model = core.read_model(next(folder.glob(f"{name}.[xo]*")))
        model.reshape({i: [1, *list(i.partial_shape)[1:]] for i in model.inputs})
        request = core.compile_model(model, "CPU", settings).create_infer_request()

        def run(*rows: Any) -> Any:
            request.infer(list(rows))
            return request.get_output_tensor().data.copy()

        return run

    return _image_by_image(runner("text_encoder"), runner("generator"), bundle)


def our_contender(bundle: Path) -> Contender:
    """The runtime with a bundle of ours."""
    from runtime import Pipeline, PipelineOptions

    pipeline = Pipeline.from_bundle(bundle, PipelineOptions(cache=False))

    def draw(sentence: Any, noise: Any) -> Any:
        return pipeline.synthesize(np.repeat(sentence, len(noise), 0), noise)

    return OurContender(
        lambda prompt: pipeline.encode([prompt]), draw, pipeline.manifest.noise_dim, pipeline
    )


def _image_by_image(
    text_encoder: Callable[..., Any], generator: Callable[..., Any], bundle: Path
) -> Contender:
    manifest = read_manifest(bundle)
    merges = (bundle / MERGES).read_text(encoding="utf-8").splitlines()
    tokenizer = Tokenizer(merges, manifest.context_length)

    def draw(sentence: Any, noise: Any) -> Iterator[Any]:
        for i in range(len(noise)):
            yield generator(noise[i : i + 1], sentence)[0]

    return Contender(lambda prompt: text_encoder(tokenizer([prompt])), draw, manifest.noise_dim)
