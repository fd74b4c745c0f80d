"""The building blocks of generator and discriminator."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NEGATIVE_SLOPE = 0.2


def leaky_relu(x: Tensor) -> Tensor:
    """LeakyReLU with the model's slope."""
    return F.leaky_relu(x, NEGATIVE_SLOPE)


def conv3x3(in_channels: int, out_channels: int, bias: bool = True) -> nn.Conv2d:
    """3x3 convolution that keeps the size."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)


class Affine(nn.Module):
    """Scale and shift each channel by what two small networks predict from the condition."""

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.gamma = self._predictor(condition_dim, channels, start=1.0)
        self.beta = self._predictor(condition_dim, channels, start=0.0)

    @staticmethod
    def _predictor(condition_dim: int, channels: int, start: float) -> nn.Sequential:
        last = nn.Linear(channels, channels)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, start)
        return nn.Sequential(nn.Linear(condition_dim, channels), nn.ReLU(), last)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B,C,H,W), condition (B,D) -> (B,C,H,W)."""
        gamma, beta = self.gamma(condition), self.beta(condition)
        return x * gamma[:, :, None, None] + beta[:, :, None, None]


class DeepFusion(nn.Module):
    """Two affine transformations, each followed by LeakyReLU (DF-GAN's deep fusion block)."""

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.affine0 = Affine(condition_dim, channels)
        self.affine1 = Affine(condition_dim, channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B,C,H,W), condition (B,D) -> (B,C,H,W)."""
        x = leaky_relu(self.affine0(x, condition))
        return leaky_relu(self.affine1(x, condition))


class BridgeBlock(nn.Module):
    """One residual block of the bridge feature predictor, at constant size."""

    def __init__(self, condition_dim: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, hidden)
        self.fusion1 = DeepFusion(condition_dim, hidden)
        self.conv2 = conv3x3(hidden, channels)
        self.fusion2 = DeepFusion(condition_dim, channels)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B,C,H,W), condition (B,D) -> (B,C,H,W)."""
        residual = self.fusion1(self.conv1(x), condition)
        residual = self.fusion2(self.conv2(residual), condition)
        return x + residual


class UpsamplingBlock(nn.Module):
    """Resize, then a residual pair of fused convolutions, with a 1x1 shortcut if channels change.

    The published order is resize, fusion, convolution. Nearest resize copies pixels, and fusion
    and shortcut act on each pixel alone, so both are done before the resize: the same function
    with a quarter of the memory traffic.
    """

    def __init__(self, condition_dim: int, in_channels: int, out_channels: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.fusion1 = DeepFusion(condition_dim, in_channels)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.fusion2 = DeepFusion(condition_dim, out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.shortcut: nn.Module = (
            nn.Conv2d(in_channels, out_channels, 1)
            if in_channels != out_channels
            else nn.Identity()
        )

    def resize(self, x: Tensor, size: int | None = None) -> Tensor:
        """Nearest resize to `size`, by default this block's."""
        size = size or self.size
        return F.interpolate(x, size=(size, size))

    def forward(self, x: Tensor, condition: Tensor, size: int | None = None) -> Tensor:
        """x (B,C_in,h,w), condition (B,D) -> (B,C_out,size,size); without `size`, this block's."""
        residual = self.conv1(self.resize(self.fusion1(x, condition), size))
        residual = self.conv2(self.fusion2(residual, condition))
        return self.resize(self.shortcut(x), size) + residual


class ResidualPair(nn.Module):
    """conv, LeakyReLU, conv, LeakyReLU: the discriminator's residual R, without biases."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, bias=False)
        self.conv2 = conv3x3(out_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C_in,H,W) -> (B,C_out,H,W)."""
        return leaky_relu(self.conv2(leaky_relu(self.conv1(x))))


class TapBlock(nn.Module):
    """x + gamma R(x) + beta tap: joins the next CLIP layer's features; gamma, beta start at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.beta = nn.Parameter(torch.zeros(1))
        self.residual = ResidualPair(channels, channels)

    def forward(self, x: Tensor, tap: Tensor) -> Tensor:
        """x and tap (B,C,H,W) -> (B,C,H,W)."""
        return x + self.gamma * self.residual(x) + self.beta * tap


class ReductionBlock(nn.Module):
    """shortcut(x) + gamma R(x), changing the number of channels; gamma starts at 0."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.residual = ResidualPair(in_channels, out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C_in,H,W) -> (B,C_out,H,W)."""
        return self.shortcut(x) + self.gamma * self.residual(x)


class DownsamplingBlock(nn.Module):
    """shortcut(x) + gamma R(x) at half the size: the plain discriminator's; gamma starts at 0."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.conv1 = nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False)
        self.conv2 = conv3x3(out_channels, out_channels, bias=False)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C_in,H,W) -> (B,C_out,H/2,W/2)."""
        residual = leaky_relu(self.conv2(leaky_relu(self.conv1(x))))
        return self.shortcut(F.avg_pool2d(x, 2)) + self.gamma * residual
