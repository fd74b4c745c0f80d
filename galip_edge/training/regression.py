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
        autoencoder_steps, features_steps, warmup_steps: of the phases before the game, see
            warmup.py. The last have this loss alone.
        warmup_rate, warmup_betas: Adam's in them. There is no opponent yet, and a smoother
            gradient is worth more than a fresh one.
    """

    weight: float = 0.0
    autoencoder_steps: int = 0
    features_steps: int = 0
    warmup_steps: int = 0
    warmup_rate: float = 8e-4
    warmup_betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight must not be negative, got {self.weight!r}")
        steps = {
            name: getattr(self, name)
            for name in ("autoencoder_steps", "features_steps", "warmup_steps")
        }
        for name, count in steps.items():
            if count < 0:
                raise ValueError(f"{name} must not be negative, got {count!r}")
            if count and not self.weight:
                raise ValueError(f"{name} is {count}: set weight, or they would learn nothing")
        if self.features_steps and not self.autoencoder_steps:
            raise ValueError(
                f"features_steps is {self.features_steps}, but no encoder has learned what "
                "features to want: set autoencoder_steps"
            )
        if not self.warmup_rate > 0:
            raise ValueError(f"warmup_rate must be positive, got {self.warmup_rate!r}")
        if not all(0 <= beta < 1 for beta in self.warmup_betas):
            raise ValueError(f"warmup_betas must be in [0, 1), got {self.warmup_betas}")

    @property
    def steps(self) -> int:
        """Steps before adversarial training begins."""
        return self.autoencoder_steps + self.features_steps + self.warmup_steps

    @property
    def encodes(self) -> bool:
        """Whether an encoder learns at the beginning."""
        return self.autoencoder_steps > 0


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
        total = total + _mean_error(difference - larger)
        difference = smaller
    return torch.as_tensor((total + _mean_error(difference)) / levels)


def _mean_error(difference: Tensor) -> Tensor:
    """Mean of absolute values, but squares below a tenth: nearly right is left alone."""
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), beta=0.1)
