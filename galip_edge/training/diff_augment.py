"""Differentiable augmentation of real and generated images (Zhao et al. 2020,
https://arxiv.org/abs/2006.10738), which keeps the discriminators from memorizing the data."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from galip_edge.config import check_integers

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
        blur: initial standard deviation of a Gaussian blur, as a fraction of the image's width. It
            falls linearly to 0 in the first `blur_steps` steps, so that the discriminators compare
            shapes before textures, as in StyleGAN3 (Karras et al. 2021,
            https://arxiv.org/abs/2106.12423).
        blur_steps: steps of adversarial training until the blur is 0.
    """

    brightness: float = 0.0
    saturation: float = 0.0
    contrast: float = 0.0
    cutout: float = 0.0
    blur: float = 0.0
    blur_steps: int = 0

    def __post_init__(self) -> None:
        check_integers(self, 0, "blur_steps")
        for name in ("brightness", "saturation", "contrast", "cutout", "blur"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)!r}")
        if bool(self.blur) != bool(self.blur_steps):
            raise ValueError(
                f"blur and blur_steps need each other, got {self.blur} and {self.blur_steps}: set "
                "both, or neither"
            )

    @property
    def changes(self) -> bool:
        """True if any strength is set, apart from that of the blur."""
        return replace(self, blur=0.0, blur_steps=0) != AugmentConfig()

    def blur_at(self, step: int) -> float:
        """Standard deviation of the blur at `step`, from 0, of adversarial training."""
        return self.blur * max(0.0, 1 - step / self.blur_steps) if self.blur else 0.0


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


def blur(images: Tensor, deviation: float) -> Tensor:
    """Gaussian blur, with reflected borders.

    Args:
        images: (B,3,H,W), with or without gradients.
        deviation: standard deviation in pixels; below 0.2 there is no blur. Its tails are cut at
            three times as much, or at the image's side.

    Returns:
        (B,3,H,W).
    """
    kernel = gaussian_kernel(deviation, min(images.shape[-2:]))
    return images if kernel is None else filter_both_ways(images, kernel)


def gaussian_kernel(deviation: float, side: int, radius: int = 0) -> Tensor | None:
    """Weights of a Gaussian blur (2r+1,), on the CPU; None below 0.2 pixels.

    Args:
        deviation: standard deviation in pixels. Tails are cut at three times as much.
        side: of the images; r is smaller.
        radius: smallest r; weights outside the tails are 0.
    """
    if deviation < 0.2:
        return None
    tail = min(math.ceil(3 * deviation), side - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-tail, tail + 1.0) / deviation).square())
    return F.pad(kernel / kernel.sum(), (max(0, radius - tail),) * 2)


def filter_both_ways(images: Tensor, kernel: Tensor) -> Tensor:
    """Filter rows and columns of images (B,3,H,W) with `kernel` (2r+1,), reflected at borders."""
    channels, radius = images.shape[1], len(kernel) // 2
    kernel = kernel.to(images).expand(channels, 1, 1, -1)
    images = F.pad(images, (radius,) * 4, mode="reflect")
    images = F.conv2d(images, kernel, groups=channels)
    return F.conv2d(images, kernel.transpose(2, 3), groups=channels)


def translate(images: Tensor, shifts: Tensor, furthest: int) -> Tensor:
    """Translate each image by whole pixels, with reflected instead of black borders.

    CLIP projects patches of P x P pixels, on a fixed grid, to fewer values than they have pixels.
    The discriminator cannot detect what this projection discards, nor seams between patches, so the
    generator may fill it with noise. Random translations expose all of an image over time.

    Args:
        images: (B,3,H,W), with or without gradients.
        shifts: (B,2) integers, pixels down and right; smaller than H and W in magnitude.
        furthest: bound of their magnitudes.

    Returns:
        (B,3,H,W); output[y, x] is image[y - down, x - right].
    """
    padded = F.pad(images, (furthest,) * 4, mode="reflect")
    # Slices are faster on a CPU, two operations for the whole batch on a GPU.
    cut = cut_slices if images.device.type == "cpu" else cut_by_index
    return cut(padded, furthest - shifts, images.shape[-2:])


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
