"""Differentiable augmentation of real and generated images (Zhao et al. 2020,
https://arxiv.org/abs/2006.10738), which keeps the discriminators from memorizing the data."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Random numbers per image: brightness, saturation, contrast, and position of the cutout.
_NUMBERS = 5


@dataclass(frozen=True)
class AugmentConfig:
    """Strengths of the augmentation. The defaults disable it, as published.

    Attributes:
        brightness: largest shift of all values, in units of half the range.
        saturation, contrast: largest relative change of the distance from gray, or from the
            image's mean.
        cutout: side of a gray square at a random position, as a fraction of the image's side.
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
        """True if any strength is set."""
        return self != AugmentConfig()


def step_draws(seed: int, number: int, first: int, count: int) -> Tensor:
    """Uniform numbers in [0,1) for the samples from `first` on of a step: (count,2,5), of the real
    and the generated image. They depend only on the sample's position in the batch."""
    rng = np.random.default_rng([seed, number, 1])
    draws = rng.random((first + count, 2, _NUMBERS), np.float32)[first:]
    return torch.from_numpy(draws)


def augment(images: Tensor, draws: Tensor, config: AugmentConfig) -> Tensor:
    """Change colors, and cut out a square.

    Args:
        images: (B,3,H,W), with or without gradients.
        draws: (B,5) in [0,1), on the images' device; see `step_draws`.
        config: strengths.

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
    """(B,1,H,W): 0 inside the square, 1 elsewhere."""
    height, width = images.shape[2:]

    def outside(length: int, centre: Tensor) -> Tensor:
        at = (torch.arange(length, device=images.device) + 0.5) / length
        return (at - centre[:, None]).abs() > side / 2

    rows, columns = outside(height, places[:, 0]), outside(width, places[:, 1])
    return (rows[:, None, :, None] | columns[:, None, None, :]).to(images.dtype)


def translate(images: Tensor, shifts: Tensor) -> Tensor:
    """Translate each image by whole pixels, with reflected instead of black borders.

    CLIP projects patches of P x P pixels, on a fixed grid, to fewer values than they have pixels.
    The discriminator cannot detect what this projection discards, nor seams between patches, so the
    generator may fill it with noise. Random translations expose all of an image over time.

    Args:
        images: (B,3,H,W), with or without gradients.
        shifts: (B,2) integers, pixels down and right; smaller than H and W in magnitude.

    Returns:
        (B,3,H,W); output[y, x] is image[y - down, x - right].
    """
    margin = int(shifts.abs().max())
    if not margin:
        return images
    padded = F.pad(images, (margin,) * 4, mode="reflect")
    # Slices are faster on a CPU, two operations for the whole batch on a GPU.
    cut = cut_slices if images.device.type == "cpu" else cut_by_index
    return cut(padded, margin - shifts, images.shape[-2:])


def cut_slices(images: Tensor, corners: Tensor, size: torch.Size) -> Tensor:
    """Crop each image (B,3,H,W) at its upper left corner (B,2) -> (B,3,*size)."""
    height, width = size
    crops = [
        image[:, y : y + height, x : x + width]
        for image, (y, x) in zip(images, corners.tolist(), strict=True)
    ]
    return torch.stack(crops)


def cut_by_index(images: Tensor, corners: Tensor, size: torch.Size) -> Tensor:
    """`cut_slices` without an operation per image."""
    channels, (height, width) = images.shape[1], size
    device = images.device
    corners = corners.to(device, non_blocking=True)
    rows = corners[:, 0, None] + torch.arange(height, device=device)
    columns = corners[:, 1, None] + torch.arange(width, device=device)
    rows = rows[:, None, :, None].expand(-1, channels, -1, images.shape[3])
    return images.gather(2, rows).gather(
        3, columns[:, None, None, :].expand(-1, channels, height, -1)
    )
