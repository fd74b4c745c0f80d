"""Differentiable augmentation: what the discriminators are shown is altered at random, real and
generated images alike, so that they cannot memorize the data (Zhao et al. 2020,
https://arxiv.org/abs/2006.10738). Translation is in translation.py."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

# Random numbers of one image: brightness, saturation, contrast, and place of the cutout.
_NUMBERS = 5


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths. The defaults change nothing, as published.

    Attributes:
        brightness: largest shift of all values, in units of half the range.
        saturation, contrast: largest relative change of the distance from gray, or from the
            image's mean.
        cutout: side of a gray square at a random place, as a fraction of the image's.
    """

    brightness: float = 0.0
    saturation: float = 0.0
    contrast: float = 0.0
    cutout: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) <= 1:
                value = getattr(self, field.name)
                raise ValueError(f"{field.name} must be in [0, 1], got {value!r}")

    @property
    def changes(self) -> bool:
        """Whether any strength is set."""
        return self != AugmentConfig()


def step_draws(seed: int, number: int, first: int, count: int) -> Tensor:
    """Uniform numbers in [0,1) for samples `first` and following of a step: (count,2,5), of the
    real and the generated image. They depend on the sample's place in the batch alone."""
    rng = np.random.default_rng([seed, number, 1])
    draws = rng.random((first + count, 2, _NUMBERS), np.float32)[first:]
    return torch.from_numpy(draws)


def augment(images: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """Change colors, and cut a square out.

    Args:
        images: (B,3,H,W), with or without history.
        draws: (B,5) in [0,1), on the images' device; see `step_draws`.
        config: how strongly.

    Returns:
        (B,3,H,W).
    """
    if not config.changes:
        return images
    brightness, saturation, contrast = (2 * draws[:, :3] - 1).T[..., None, None, None]
    gray = images.mean(1, keepdim=True)
    images = gray + (images - gray) * (1 + config.saturation * saturation)
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * (1 + config.contrast * contrast)
    images = images + config.brightness * brightness
    return images * _kept(images, draws[:, 3:], config.cutout) if config.cutout else images


def _kept(images: Tensor, places: Tensor, side: float) -> Tensor:
    """(B,1,H,W): 0 inside of the square, 1 elsewhere."""
    height, width = images.shape[2:]

    def outside(length: int, centre: Tensor) -> Tensor:
        at = (torch.arange(length, device=images.device) + 0.5) / length
        return (at - centre[:, None]).abs() > side / 2

    rows, columns = outside(height, places[:, 0]), outside(width, places[:, 1])
    return (rows[:, None, :, None] | columns[:, None, None, :]).to(images.dtype)
