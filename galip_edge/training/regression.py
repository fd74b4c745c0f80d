"""Regression: data that knows the noise of its images shows the generator what to make of it.

Images that come from a procedure, or from a teacher, have their noise. The generator can then learn
from pairs, as one-step generators learn from noise-image pairs of a diffusion model (Yin et al.
2024, https://arxiv.org/abs/2311.18828, section 3.3). Pixel by pixel it is told what to change; a
discriminator behind a small CLIP, in the few steps that a CPU affords, only tells that something is
wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class RegressionConfig:
    """How much is learned from pairs. The defaults leave it out, as published.

    Attributes:
        weight: of the distance between what is generated and the image that has its noise.
        warmup_steps: at the beginning, so many steps have this loss alone; they take about half
            of the time.
        warmup_rate, warmup_betas: Adam's in them. There is no opponent yet, and a smoother
            gradient is worth more than a fresh one.
    """

    weight: float = 0.0
    warmup_steps: int = 0
    warmup_rate: float = 3e-4
    warmup_betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight must not be negative, got {self.weight!r}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must not be negative, got {self.warmup_steps!r}")
        if not self.warmup_rate > 0:
            raise ValueError(f"warmup_rate must be positive, got {self.warmup_rate!r}")
        if not all(0 <= beta < 1 for beta in self.warmup_betas):
            raise ValueError(f"warmup_betas must be in [0, 1), got {self.warmup_betas}")
        if self.warmup_steps and not self.weight:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}: set weight, or they would learn nothing"
            )


def pyramid_distance(generated: Tensor, images: Tensor, levels: int = 4) -> Tensor:
    """Mean absolute difference of the Laplacian pyramids, every level counting the same.

    Fine levels tell edges, whatever the colour around them; coarse ones tell a shape that is a
    little displaced from one that is missing (Bojanowski et al. 2018,
    https://arxiv.org/abs/1707.05776, section 2).

    Args:
        generated, images: (B,3,H,W); H and W are divided by 2 `levels - 1` times.
        levels: of the pyramid, the last being what remains.

    Returns:
        A scalar, the mean over the batch.
    """
    difference = generated - images  # the pyramid is linear
    total = difference.new_zeros(())
    for _ in range(levels - 1):
        smaller = F.avg_pool2d(difference, 2)
        larger = F.interpolate(smaller, size=difference.shape[-2:], mode="bilinear")
        total = total + (difference - larger).abs().mean()
        difference = smaller
    return torch.as_tensor((total + difference.abs().mean()) / levels)
