"""Rewrites for deployment: the same function, computed in another order.

Each takes a module and returns another one that computes the same from the same inputs, exactly
but for floating-point rounding.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from galip_edge.models import Generator
from galip_edge.models.blocks import Affine


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
    generator = copy.deepcopy(generator, {id(generator.vit): generator.vit})
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
