"""Models for evaluation: PyTorch checkpoints and bundles, with one interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from galip_edge.checkpoints.clip_weights import Activation
from galip_edge.checkpoints.format import load_checkpoint
from galip_edge.tokenizer import build_tokenizer
from runtime.arrays import Floats, Images
from runtime.noise import draw_noise


class EvaluatedModel(Protocol):
    """Prompts to images, the same noise for the same (seed, prompt, index) in every model."""

    name: str
    """Name of the file or folder."""

    sha256: str
    """Hash of the checkpoint, or the bundle's model hash."""

    image_size: int
    """Side of the images in pixels."""

    def images(self, prompts: Sequence[str], indices: Sequence[int], seed: int) -> Images:
        """(len(prompts),H,W,3) uint8; `indices` are those of the images of a prompt."""
        ...

    def float_images(self, prompts: Sequence[str], indices: Sequence[int], seed: int) -> Tensor:
        """(len(prompts),3,H,W) in [-1,1], without rounding unless the model rounds."""
        ...

    def midpoints(self, starts: Sequence[str], ends: Sequence[str], seed: int) -> Images:
        """(len(starts),H,W,3) uint8, halfway between image 0 of two prompts."""
        ...


class CheckpointModel:
    """A checkpoint in PyTorch, in float32."""

    def __init__(
        self,
        path: str | Path,
        clip: str | Path | None = None,
        device: torch.device | None = None,
        clip_activation: Activation | None = None,
    ) -> None:
        loaded = load_checkpoint(path, clip, clip_activation=clip_activation)
        self.name, self.sha256 = str(path), loaded.sha256
        self.device = device or torch.device("cpu")
        self.model = loaded.model.to(self.device)
        self.image_size = loaded.model.config.image_size
        self._tokenize = build_tokenizer(loaded.model.config.clip)

    def images(self, prompts: Sequence[str], indices: Sequence[int], seed: int) -> Images:
        return to_pixels(self.float_images(prompts, indices, seed))

    def float_images(self, prompts: Sequence[str], indices: Sequence[int], seed: int) -> Tensor:
        size = self.model.config.noise_dim
        return self._synthesize(noises(prompts, indices, seed, size), self._encode(prompts))

    def midpoints(self, starts: Sequence[str], ends: Sequence[str], seed: int) -> Images:
        noise, sentence = halfway(starts, ends, seed, self.model.config.noise_dim, self._encode)
        return to_pixels(self._synthesize(noise, sentence))

    @torch.inference_mode()
    def _encode(self, prompts: Sequence[str]) -> Floats:
        tokens = torch.from_numpy(self._tokenize(list(prompts)))
        return self.model.text_encoder(tokens.to(self.device)).cpu().numpy()

    @torch.inference_mode()
    def _synthesize(self, noise: Floats, sentence: Floats) -> Tensor:
        latent = (torch.from_numpy(part).to(self.device) for part in (noise, sentence))
        return self.model.generator(*latent).clamp(-1, 1)


def noises(prompts: Sequence[str], indices: Sequence[int], seed: int, size: int) -> Floats:
    """Noise (N,size) for an image of each prompt."""
    return np.stack([draw_noise(seed, p, i, size) for p, i in zip(prompts, indices)])


def halfway(
    starts: Sequence[str],
    ends: Sequence[str],
    seed: int,
    size: int,
    encode: Callable[[Sequence[str]], Floats],
) -> tuple[Floats, Floats]:
    """Noise (N,size) and sentences (N,E) halfway on the spherical paths of `interpolate`."""
    from runtime.latent import slerp  # lazily: it needs OpenVINO, training does not

    zeros = [0] * len(starts)
    pairs = (
        (noises(starts, zeros, seed, size), noises(ends, zeros, seed, size)),
        (encode(starts), encode(ends)),
    )
    noise, sentence = (
        np.stack([slerp(a, b, 0.5) for a, b in zip(first, second)]) for first, second in pairs
    )
    return noise, sentence


def to_pixels(images: Tensor) -> Images:
    """Images (B,3,H,W) in [-1,1] -> (B,H,W,3) uint8."""
    pixels = ((images + 1) * 127.5).round().byte()
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


class BundleModel:
    """A bundle in the runtime, in its own precision, on a device of OpenVINO's."""

    def __init__(self, folder: str | Path, device: str = "CPU") -> None:
        # Training evaluates checkpoints, without OpenVINO.
        from runtime.pipeline import Pipeline, PipelineOptions

        self._pipeline = Pipeline.from_bundle(folder, PipelineOptions(cache=False, device=device))
        self.name, self.sha256 = str(folder), self._pipeline.manifest.model_hash
        self.image_size = self._pipeline.manifest.image_size

    def images(self, prompts: Sequence[str], indices: Sequence[int], seed: int) -> Images:
        noise = noises(prompts, indices, seed, self._pipeline.manifest.noise_dim)
        return self._pipeline.synthesize(self._pipeline.encode(prompts), noise)

    def midpoints(self, starts: Sequence[str], ends: Sequence[str], seed: int) -> Images:
        size = self._pipeline.manifest.noise_dim
        noise, sentence = halfway(starts, ends, seed, size, self._pipeline.encode)
        return self._pipeline.synthesize(sentence, noise)

    def float_images(self, prompts: Sequence[str], indices: Sequence[int], seed: int) -> Tensor:
        """Images with the rounding of a bundle to 8 bits."""
        pixels = torch.from_numpy(self.images(prompts, indices, seed))
        return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def open_model(
    path: str | Path,
    clip: str | Path | None = None,
    device: torch.device | None = None,
    clip_activation: Activation | None = None,
    bundle_device: str = "CPU",
) -> CheckpointModel | BundleModel:
    """A bundle if `path` is a folder, otherwise a checkpoint on `device`. Raises GalipEdgeError."""
    path = Path(path)
    if path.is_dir():
        return BundleModel(path, bundle_device)
    return CheckpointModel(path, clip, device, clip_activation)
