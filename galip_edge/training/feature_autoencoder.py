"""An autoencoder whose decoder is the generator's upsampling blocks.

Training all of a generator at once is slow, because what to render and how are learned through each
other. With this autoencoder the upsampling blocks first learn to render; then the layers before
them learn to predict the encoder's features, which takes a fraction of the time for an image.
Latent diffusion models are trained in two such stages (Rombach et al. 2022,
https://arxiv.org/abs/2112.10752, section 3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from galip_edge.models.config import ModelConfig
from galip_edge.training.distances import ReconstructionLoss
from galip_edge.training.micro_batch import MicroBatch
from galip_edge.training.pretraining import downsampling

if TYPE_CHECKING:
    from galip_edge.training.trainer import Trainer

# Relative to the features' magnitude: the upsampling blocks must tolerate imprecise features.
_FEATURE_NOISE = 0.3

# Factor of the projection to features before they are trained. With its initial weights, Adam's
# first steps overshoot by far, which costs hundreds of steps and limits the learning rate.
_SMALL = 0.05


class FeatureEncoder(nn.Module):
    """Encodes an image to features for the generator's first upsampling block.

    Convolutions halve the image while it is at least twice CLIP's grid; a mean over neighboring
    positions fits other ratios to the grid.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        grid = config.clip.grid
        layers, width, size = downsampling(config.image_size, 2 * grid - 1)
        if size != grid:
            layers.append(nn.AdaptiveAvgPool2d(grid))
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, config.block_channels[0], 1))

    def forward(self, images: Tensor) -> Tensor:
        """images (B,3,H,W) in [-1,1] -> (B,C,grid,grid), of mean square 1 at each position."""
        features: Tensor = self.layers(images)
        return features * torch.rsqrt(features.square().mean(1, keepdim=True) + 1e-6)


class FeatureAutoencoder:
    """A feature encoder for `trainer.generator`.

    Args:
        trainer: its generator renders, and its seed determines initial weights and noise.
        learning_rate: of the encoder.
        loss: of reconstructed images.
    """

    def __init__(self, trainer: Trainer, learning_rate: float, loss: ReconstructionLoss) -> None:
        self._loss = loss
        self._generator = trainer.model.generator
        self._seed = trainer.config.seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            self.encoder = FeatureEncoder(trainer.model.config).to(trainer.world.device)
        self.module = trainer.optimized("feature_encoder", self.encoder, learning_rate)

    def reconstruction(
        self,
        batch: MicroBatch,
        condition: Tensor,
        number: int,
        importance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Loss of images' reconstructions from noisy features, a scalar, and its terms.

        Args:
            batch: its images are reconstructed.
            condition: (B,D) of the upsampling blocks.
            number: step, from 0, which determines the noise of the features.
            importance: (B,1,H,W) weights of the pixels; None for 1.
        """
        features = self.encoder(batch.images)
        noise = feature_noise(self._seed, number, batch.first, features.shape)
        features = features + _FEATURE_NOISE * noise.to(features)
        rendered = self._generator.render(features, condition)
        return self._loss(rendered.float(), batch.images, importance)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """images (B,3,H,W) in [-1,1] -> (B,C,grid,grid) in float32."""
        found: Tensor = self.encoder(images).float()
        return found

    @torch.no_grad()
    def shrink_features(self) -> None:
        """Reduce the generator's features before they are trained."""
        for parameter in self._generator.visual_projection.parameters():
            parameter.mul_(_SMALL)

    def error(
        self, noise: Tensor, condition: Tensor, wanted: Tensor, concept: bool = True
    ) -> Tensor:
        """Mean squared error of the generator's features, a scalar.

        Args:
            noise: (B,Z).
            condition: (B,D).
            wanted: features (B,C,grid,grid) of the images.
            concept: see `Generator.visual_features`.
        """
        found = self._generator.visual_features(noise, condition, concept)
        return (found.float() - wanted).square().mean()


def feature_noise(seed: int, number: int, first: int, shape: torch.Size) -> Tensor:
    """Noise of N(0,1) on features of `shape`, for the samples from `first` on of a batch."""
    rows = [
        np.random.default_rng([seed, number, first + i]).standard_normal(shape[1:], np.float32)
        for i in range(shape[0])
    ]
    return torch.from_numpy(np.stack(rows))
