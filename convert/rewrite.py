"""Rewrites of the generator for deployment: the same function, computed in another order.

Each takes a module and returns another one that computes the same from the same inputs, exactly
but for floating-point rounding.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convert.transformers import LeanViT
from galip_edge.models import Generator
from galip_edge.models.blocks import Affine, UpsamplingBlock


class _Slice(nn.Module):
    """A module that reads only some of the condition's columns."""

    def __init__(self, first: int, last: int, module: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.module = module

    def forward(self, condition: Tensor) -> Tensor:
        out: Tensor = self.module(condition[:, self.first : self.last])
        return out


class MergedAffines(nn.Module):
    """A generator whose affine networks share one first layer. Made by `merge_affines`."""

    def __init__(self, generator: Generator, hidden: nn.Linear) -> None:
        super().__init__()
        self.generator = generator
        self.hidden = hidden

    def forward(self, noise: Tensor, sentence: Tensor) -> Tensor:
        """As `Generator.forward`."""
        condition = torch.cat([noise, sentence], dim=1)
        extended = torch.cat([self.hidden(condition), condition], dim=1)
        image: Tensor = self.generator.synthesize(noise, extended)
        return image


def merge_affines(generator: Generator) -> MergedAffines:
    """Compute the first layers of all affine networks as one.

    They all read the same condition: 80 products of a vector and a small matrix become one with a
    large matrix, which reads memory at full speed. It also keeps OpenVINO from fusing each small
    network into a kernel of its own, which it does or leaves depending on the number of threads:
    pictures would depend on it, and the fused INT8 kernel of some widths is wrong (2026.4).
    """
    generator = _copy(generator)
    affines = [module for module in generator.modules() if isinstance(module, Affine)]
    predictors = [(affine, name) for affine in affines for name in ("gamma", "beta")]
    weights, biases, first = [], [], 0
    for affine, name in predictors:
        # The activation stays behind the slice, so that each network keeps a quantizer of its own.
        layer, activation, last = getattr(affine, name)
        weights.append(layer.weight)
        biases.append(layer.bias)
        rest = nn.Sequential(activation, last)
        setattr(affine, name, _Slice(first, first + len(layer.weight), rest))
        first += len(layer.weight)
    hidden = nn.Linear(generator.config.condition_dim, first).to(weights[0])
    with torch.no_grad():
        hidden.weight.copy_(torch.cat(weights))
        hidden.bias.copy_(torch.cat(biases))
    if generator.config.prompt_blocks:
        generator.prompt_predictor = _Slice(  # type: ignore[assignment]
            first, first + generator.config.condition_dim, generator.prompt_predictor
        )
    return MergedAffines(generator, hidden).eval()


class PhaseConvolution(nn.Module):
    """A 3x3 convolution of an image doubled by nearest resize, computed before the doubling.

    In an image where each pixel is there twice, three neighbours are two different pixels, so each
    of the four phases of the output is a 2x2 convolution of the small image, whose kernel has sums
    of the original taps: 16 products in place of 36. All four are one convolution; with the phases
    in reverse order, depth to space and a crop of one pixel on each side put each in its place.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.detach()
        # Rows: taps of the small image, columns: taps of the doubled one. An output of phase 1 has
        # its last tap in the next small pixel, one of phase 0 its first in the one before.
        phase1 = weight.new_tensor([[1, 1, 0], [0, 0, 1]])
        phase0 = weight.new_tensor([[1, 0, 0], [0, 1, 1]])
        kernels = [
            torch.einsum("ya,xb,oiab->oiyx", rows, columns, weight)
            for rows in (phase1, phase0)
            for columns in (phase1, phase0)
        ]
        self.conv = nn.Conv2d(conv.in_channels, 4 * conv.out_channels, 2, padding=1).to(weight)
        with torch.no_grad():
            self.conv.weight.copy_(torch.stack(kernels, 1).flatten(0, 1))
            bias = conv.bias if conv.bias is not None else weight.new_zeros(conv.out_channels)
            self.conv.bias.copy_(bias.repeat_interleave(4))  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """(B,C_in,h,w) -> (B,C_out,2h,2w)."""
        return F.pixel_shuffle(self.conv(x), 2)[:, :, 1:-1, 1:-1]


class PhasedBlock(nn.Module):
    """An upsampling block that doubles the size. Made by `convolve_before_doubling`."""

    def __init__(self, block: UpsamplingBlock) -> None:
        super().__init__()
        self.block = block
        self.conv1 = PhaseConvolution(block.conv1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """As `UpsamplingBlock.forward`."""
        block = self.block
        residual = self.conv1(block.fusion1(x, condition))
        residual = block.conv2(block.fusion2(residual, condition))
        return block.resize(block.shortcut(x)) + residual


def convolve_before_doubling(generator: Generator) -> Generator:
    """Use `PhaseConvolution` in each block that doubles the size; others stay as they are."""
    generator = _copy(generator)
    sizes = (generator.config.clip.grid, *generator.config.block_sizes)
    for index, block in enumerate(generator.upsampling):
        if isinstance(block, UpsamplingBlock) and block.size == 2 * sizes[index]:
            generator.upsampling[index] = PhasedBlock(block)
    return generator


def read_tokens_only(generator: Generator) -> Generator:
    """Compute only those tokens of the ViT that somebody reads."""
    generator = _copy(generator)
    generator.vit = LeanViT(generator.vit)  # type: ignore[assignment]
    return generator


def deployed(generator: Generator) -> nn.Module:
    """The generator with all rewrites: noise (B,Z), sentence (B,E) -> images (B,3,H,W)."""
    return merge_affines(read_tokens_only(convolve_before_doubling(generator)))


def _copy(generator: Generator) -> Generator:
    """A copy to change, which shares the ViT: it is large, and nobody changes it."""
    return copy.deepcopy(generator, {id(generator.vit): generator.vit})
