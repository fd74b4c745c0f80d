"""Moving images by whole pixels before they are judged (differentiable augmentation,
https://arxiv.org/abs/2006.10738, with reflected instead of black borders)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def translate(images: Tensor, shifts: Tensor) -> Tensor:
    """Move each image; what comes in at the border is the image's own reflection.

    CLIP projects patches of P x P pixels to fewer numbers than they have pixels, always on the same
    grid. What the projection leaves out, and seams between patches, no discriminator behind it can
    see, and the generator is free to fill it with noise. Moved at random, an image shows all of
    itself sooner or later.

    Args:
        images: (B,3,H,W), with or without history.
        shifts: (B,2) integers, pixels down and to the right; less than H and W in magnitude.

    Returns:
        (B,3,H,W); output[y, x] is image[y - down, x - right].
    """
    margin = int(shifts.abs().max())
    if not margin:
        return images
    padded = F.pad(images, (margin,) * 4, mode="reflect")
    # Copies of slices are faster on a CPU, and two operations for the whole batch on a GPU.
    cut = cut_slices if images.device.type == "cpu" else cut_by_index
    return cut(padded, margin - shifts, images.shape[-2:])


def cut_slices(images: Tensor, corners: Tensor, size: torch.Size) -> Tensor:
    """The part of each image (B,3,H,W) at its upper left corner (B,2): (B,3,*size)."""
    height, width = size
    parts = [
        image[:, y : y + height, x : x + width]
        for image, (y, x) in zip(images, corners.tolist(), strict=True)
    ]
    return torch.stack(parts)


def cut_by_index(images: Tensor, corners: Tensor, size: torch.Size) -> Tensor:
    """`cut_slices`, without an operation for each image."""
    channels, (height, width) = images.shape[1], size
    device = images.device
    corners = corners.to(device, non_blocking=True)
    rows = corners[:, 0, None] + torch.arange(height, device=device)
    columns = corners[:, 1, None] + torch.arange(width, device=device)
    rows = rows[:, None, :, None].expand(-1, channels, -1, images.shape[3])
    return images.gather(2, rows).gather(
        3, columns[:, None, None, :].expand(-1, channels, height, -1)
    )
