"""Distances between generated and real images, for losses that compare them directly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_LEVELS = 4  # of the Laplacian pyramid


def pyramid_distance(generated: Tensor, images: Tensor, importance: Tensor | None = None) -> Tensor:
    """Mean absolute difference of the Laplacian pyramids, with equal weight for every level.

    Fine levels compare edges independently of the surrounding color; coarse levels distinguish a
    slightly displaced shape from a missing one (Bojanowski et al. 2018,
    https://arxiv.org/abs/1707.05776, section 2).

    Args:
        generated, images: (B,3,H,W); H and W are halved three times.
        importance: (B,1,H,W) weights of the pixels; None for 1.

    Returns:
        A scalar, the mean over the batch.
    """
    difference = generated - images  # the pyramid is linear
    total = difference.new_zeros(())
    for _ in range(_LEVELS - 1):
        smaller = F.avg_pool2d(difference, 2)
        larger = F.interpolate(smaller, size=difference.shape[-2:], mode="bilinear")
        total = total + _mean_error(difference - larger, importance)
        difference = smaller
        importance = None if importance is None else F.avg_pool2d(importance, 2)
    return torch.as_tensor((total + _mean_error(difference, importance)) / _LEVELS)


def perceptual_distance(
    generated: Sequence[Tensor], images: Sequence[Tensor], importance: Tensor | None = None
) -> Tensor:
    """Mean squared distance of normalized features (Zhang et al. 2018,
    https://arxiv.org/abs/1801.03924, equation 1, with equal weight for every channel).

    Args:
        generated, images: features (B,C,h,w) at several scales, the same for both.
        importance: (B,1,H,W) weights of the images' pixels; None for 1.

    Returns:
        A scalar, the mean over batch, positions and scales; at most 4 without `importance`.
    """
    terms = []
    for a, b in zip(generated, images, strict=True):
        distance = (_normalized(a) - _normalized(b)).square().sum(1, keepdim=True)
        if importance is not None:
            distance = distance * F.adaptive_avg_pool2d(
                importance, (distance.shape[2], distance.shape[3])
            )
        terms.append(distance.mean())
    return torch.stack(terms).mean()


@dataclass(frozen=True)
class ReconstructionLoss:
    """The loss of reconstructed images: their distance of pixels, and of features if weighted.

    Attributes:
        features: images (B,3,H,W) to features at several scales.
        weight: of the distance of features, relative to that of pixels; 0 for none.
    """

    features: Callable[[Tensor], Sequence[Tensor]] | None
    weight: float

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the reported terms."""
        return ("reconstruction", "perceptual") if self.weight else ("reconstruction",)

    def __call__(
        self, generated: Tensor, images: Tensor, importance: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images (B,3,H,W) to the loss, a scalar, and the values of `terms`.

        `importance` (B,1,H,W) weights the pixels; None for 1.
        """
        total = pyramid_distance(generated, images, importance)
        values = [total.detach()]
        if self.weight:
            assert self.features is not None  # checked by the configuration
            with torch.no_grad():
                wanted = self.features(images)
            distance = perceptual_distance(self.features(generated), wanted, importance)
            total = total + self.weight * distance
            values.append(distance.detach())
        return total, torch.stack(values)


def _mean_error(difference: Tensor, importance: Tensor | None) -> Tensor:
    """Weighted mean absolute value, quadratic below 0.1, where errors are negligible."""
    error = F.smooth_l1_loss(difference, torch.zeros_like(difference), beta=0.1, reduction="none")
    return (error if importance is None else error * importance).mean()


def _normalized(features: Tensor) -> Tensor:
    """Features (B,C,h,w) in float32, of length 1 at each position."""
    features = features.float()
    return features * torch.rsqrt(features.square().sum(1, keepdim=True) + 1e-6)
