"""Rendering a part of an image alone: details are learned from more images in the same time."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor

from galip_edge.models.blocks import UpsamplingBlock, leaky_relu
from galip_edge.models.config import ModelConfig
from galip_edge.models.generator import Generator

# Weight of pixels near the border of a part, where the network misses their surroundings.
_BORDER_WEIGHT = 0.25


def check_parts(model: ModelConfig) -> None:
    """Raise ValueError if parts of the model's images cannot be rendered alone."""
    sizes = model.block_sizes
    if sizes[0] % 4 or any(larger % smaller for smaller, larger in pairwise(sizes)):
        raise ValueError(
            "parts of images can be rendered if the first of model.block_sizes is a multiple of 4, "
            f"and each of them a multiple of the one before, got {list(sizes)}"
        )


def render_part(
    generator: Generator, features: Tensor, condition: Tensor, corners: Tensor
) -> Tensor:
    """A quarter of the image that `generator.render` returns, up to values near its border.

    Args:
        generator: `check_parts` has accepted its configuration.
        features: (B,block_channels[0],grid,grid).
        condition: (B,D).
        corners: (B,2) columns and rows in the pixels of the first upsampling block.

    Returns:
        (B,3,H/2,W/2).
    """
    first, *rest = (cast(UpsamplingBlock, block) for block in generator.upsampling)
    x = cut(first(features, condition), corners, first.size // 2)
    for block in rest:
        x = block(x, condition, block.size // 2)
    image: Tensor = generator.to_rgb(leaky_relu(x))
    return image


def part_of(images: Tensor, corners: Tensor, model: ModelConfig) -> Tensor:
    """The part of images (B,C,H,W) that `render_part` renders: (B,C,H/2,W/2)."""
    return cut(images, corners * (model.image_size // model.block_sizes[0]), model.image_size // 2)


def cut(x: Tensor, corners: Tensor, side: int) -> Tensor:
    """x (B,C,H,W) -> (B,C,side,side), from `corners` (B,2) of columns and rows on."""
    steps = torch.arange(side, device=x.device)
    columns, rows = corners[:, 0, None] + steps, corners[:, 1, None] + steps
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return x.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def border_weights(side: int, device: torch.device) -> Tensor:
    """Weights of a part's pixels, (1,1,side,side)."""
    weights = torch.full((1, 1, side, side), _BORDER_WEIGHT, device=device)
    weights[..., side // 8 : -side // 8, side // 8 : -side // 8] = 1
    return weights
