"""Deviation of a converted model from PyTorch in float32, at fixed prompts and noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from galip_edge.models import GALIP
from runtime.arrays import Floats, Images
from runtime.noise import draw_noise
from runtime.tokenizer import Tokenizer

# Different lengths and subjects; none is a calibration caption.
PROMPTS = (
    "a bird on a branch",
    "a small red bird with a yellow beak, sitting on a rock near the sea",
    "two dogs",
    "a plate of pasta with tomatoes and basil on a wooden table next to a glass of wine",
    "a man riding a wave on top of a surfboard",
    "an old steam train crossing a stone bridge in autumn, seen from the valley below",
    "city skyline at night",
    "a white cat sleeping on a blue sofa",
)


@dataclass(frozen=True)
class Reference:
    """Results of PyTorch in float32.

    Attributes:
        tokens: (B,77) int64.
        noise: (B,Z) float32.
        sentence: (B,E) float32.
        image: (B,H,W,3) float32, clamped to [-1,1].
    """

    tokens: npt.NDArray[np.int64]
    noise: Floats
    sentence: Floats
    image: Floats


@dataclass(frozen=True)
class Fidelity:
    """Differences from the reference, for images in [-1,1], where one of 255 levels is 0.0078.

    Attributes:
        step: conversion step.
        image_psnr_db: over all images, peak to peak 2.
        image_worst_psnr_db: of the worst image.
        image_max_error, image_mean_error: absolute.
        sentence_cosine: of the worst sentence embedding.
    """

    step: str
    image_psnr_db: float
    image_worst_psnr_db: float
    image_max_error: float
    image_mean_error: float
    sentence_cosine: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def make_reference(
    model: GALIP, tokenizer: Tokenizer, on_image: Callable[[], None] = lambda: None
) -> Reference:
    """Run PyTorch on `PROMPTS`, with the noise of seed 0; `on_image` is called after each."""
    tokens = tokenizer(PROMPTS)
    noise = np.stack([draw_noise(0, p, 0, model.config.noise_dim) for p in PROMPTS])
    with torch.inference_mode():
        sentence = model.text_encoder(torch.from_numpy(tokens))
        images = []
        # One by one: the largest blocks of a batch would take gigabytes.
        for i in range(len(PROMPTS)):
            images.append(model.generator(torch.from_numpy(noise[i : i + 1]), sentence[i : i + 1]))
            on_image()
    image = torch.cat(images).clamp(-1, 1).permute(0, 2, 3, 1)
    return Reference(tokens, noise, sentence.numpy(), image.numpy())


def psnr_db(image: Floats, reference: Floats) -> float:
    """Peak signal-to-noise ratio in dB of images in [-1,1]; infinite for equal ones."""
    error = float(np.mean(np.square(image - reference, dtype=np.float64)))
    return float("inf") if error == 0 else float(10 * np.log10(4 / error))


def compare(step: str, reference: Reference, sentence: Floats, image: Images) -> Fidelity:
    """Compare an implementation with the reference, end to end.

    Args:
        step: name in the report.
        reference: from `make_reference`.
        sentence: (B,E), for the reference's tokens.
        image: (B,H,W,3), for these sentences and the reference's noise.
    """
    found = image.astype(np.float32) / 127.5 - 1
    error = np.abs(found - reference.image)
    lengths = np.linalg.norm(sentence, axis=1) * np.linalg.norm(reference.sentence, axis=1)
    cosine = (sentence * reference.sentence).sum(axis=1) / np.maximum(lengths, 1e-12)
    return Fidelity(
        step=step,
        image_psnr_db=psnr_db(found, reference.image),
        image_worst_psnr_db=min(map(psnr_db, found, reference.image)),
        image_max_error=float(error.max()),
        image_mean_error=float(error.mean()),
        sentence_cosine=float(cosine.min()),
    )
