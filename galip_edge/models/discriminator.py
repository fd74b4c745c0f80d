"""The discriminator: CLIP features of an image and a sentence embedding to a score."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from galip_edge.models.blocks import (
    DownsamplingBlock,
    ReductionBlock,
    TapBlock,
    conv3x3,
    leaky_relu,
)
from galip_edge.models.config import ModelConfig


class Discriminator(nn.Module):
    """The CLIP-based discriminator (paper, section 3.2): extracts features, then scores them.

    Its inputs are CLIP features, not pixels, so gradients with respect to them (the
    matching-aware gradient penalty) are cheap.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self._build_extractor(config)
        grid = config.clip.grid
        # Two unpadded convolutions that together reduce the grid to 1x1 (4 and 4 for a grid of 7).
        first = grid // 2 + 1
        joint = config.discriminator_channels + config.clip.embedding_dim
        self.joint = nn.Conv2d(joint, config.score_channels, first, bias=False)
        self.to_score = nn.Conv2d(config.score_channels, 1, grid - first + 1, bias=False)

    def _build_extractor(self, config: ModelConfig) -> None:
        width = config.clip.vision_width
        self.taps = nn.ModuleList(TapBlock(width) for _ in config.tap_blocks[1:])
        self.reduction = ReductionBlock(width, config.discriminator_channels)

    def extract(self, features: Tensor) -> Tensor:
        """CLIP features (B,taps,C,grid,grid) -> (B,discriminator_channels,grid,grid)."""
        x = features[:, 0]
        for index, block in enumerate(self.taps, start=1):
            x = block(x, features[:, index])
        out: Tensor = self.reduction(x)
        return out

    def score(self, extracted: Tensor, sentence: Tensor) -> Tensor:
        """Extracted features, and sentence embeddings (B,E) -> scores (B,1,1,1)."""
        grid = extracted.shape[-2:]
        repeated = sentence[:, :, None, None].expand(-1, -1, *grid)
        hidden = leaky_relu(self.joint(torch.cat([extracted, repeated], dim=1)))
        out: Tensor = self.to_score(hidden)
        return out

    def forward(self, features: Tensor, sentence: Tensor) -> Tensor:
        """CLIP features (B,taps,C,grid,grid), sentence (B,E) -> scores (B,1,1,1)."""
        return self.score(self.extract(features), sentence)


class ConvolutionalDiscriminator(Discriminator):
    """The discriminator without CLIP, as in DF-GAN: extracts features from pixels.

    It is the paper's ablation; `extract` and the gradient penalty refer to images (B,3,H,W).
    """

    def _build_extractor(self, config: ModelConfig) -> None:
        self.grid = config.clip.grid
        last = config.discriminator_channels
        halvings = (config.image_size // self.grid).bit_length() - 1
        widths = [min(last, max(last // 16, 8) * 2**i) for i in range(halvings)] + [last]
        self.from_rgb = conv3x3(3, widths[0])
        self.downsampling = nn.Sequential(*map(DownsamplingBlock, widths, widths[1:]))

    def extract(self, features: Tensor) -> Tensor:
        """Images (B,3,H,W) -> (B,discriminator_channels,grid,grid)."""
        x = self.downsampling(self.from_rgb(features))
        return F.adaptive_avg_pool2d(x, self.grid)
