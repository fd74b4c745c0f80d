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
    height, width = images.shape[2:]
    margin = int(shifts.abs().max())
    if not margin:
        return images
    padded = F.pad(images, (margin,) * 4, mode="reflect")
    corners = (margin - shifts).tolist()
    moved = [
        image[:, y : y + height, x : x + width]
        for image, (y, x) in zip(padded, corners, strict=True)
    ]
    return torch.stack(moved)
