"""Before the game begins: the generator learns from images whose noise is known.

All at once this is slow, for what is painted and where and how are learned through each other. So
the upsampling blocks learn to paint first, as the decoder of an autoencoder that sees the image;
then what comes before them learns to say what the encoder said, from noise and sentence alone; and
in the end all learn together. The encoder is thrown away. Two such stages are how latent diffusion
models are trained (Rombach et al. 2022, https://arxiv.org/abs/2112.10752, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from galip_edge.models import GALIP
from galip_edge.models.config import ModelConfig
from galip_edge.training.config import TrainConfig
from galip_edge.training.distributed import World
from galip_edge.training.network import (
    Network,
    Part,
    StepReport,
    Update,
    backward,
    report,
)
from galip_edge.training.precision import autocast
from galip_edge.training.regression import RegressionConfig, pyramid_distance

# Of the features' own size: the upsampling blocks must bear that they are not quite right.
_FEATURE_NOISE = 0.3

# In the first part of each phase the learning rate rises from zero, in the last it falls again.
_RISE, _FALL = 0.02, 0.4


@dataclass(frozen=True)
class Phase:
    """A part of the warm-up.

    Attributes:
        name: `autoencoder`, `features` or `all`.
        step: of the phase, from 0.
        steps: that it has.
    """

    name: str
    step: int
    steps: int

    @property
    def rate_factor(self) -> float:
        """By which the learning rate is multiplied."""
        rise = (self.step + 1) / (_RISE * self.steps)
        return min(1.0, rise, (self.steps - self.step) / (_FALL * self.steps))


def phase_of(number: int, config: RegressionConfig) -> Phase | None:
    """Where step `number`, from 0, is in the warm-up; None after its end."""
    for name, steps in (
        ("autoencoder", config.autoencoder_steps),
        ("features", config.features_steps),
        ("all", config.warmup_steps),
    ):
        if number < steps:
            return Phase(name, number, steps)
        number -= steps
    return None


class FeatureEncoder(nn.Module):
    """An image to what the generator's first upsampling block shall get for it.

    Convolutions halve the image until it has the size of CLIP's grid.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        features, size, width = config.block_channels[0], config.image_size, 16
        layers: list[nn.Module] = []
        before = 3
        while size > config.clip.grid:
            width, size = min(2 * width, 192), size // 2
            layers += [nn.Conv2d(before, width, 4, 2, 1), *_activated(width)]
            before = width
        layers += [nn.Conv2d(width, width, 3, 1, 1), *_activated(width)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, features, 1))

    def forward(self, images: Tensor) -> Tensor:
        """images (B,3,H,W) in [-1,1] -> (B,C,grid,grid), of mean square 1 at each position."""
        features: Tensor = self.layers(images)
        return features * torch.rsqrt(features.square().mean(1, keepdim=True) + 1e-6)


def _activated(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(8, channels), nn.LeakyReLU(0.2)


class WarmUp:
    """Its steps, and the encoder, which is in use only then.

    Args:
        model, config, world: as the trainer's.
        generator: which learns, and goes on to the game.
        generate: noise and sentence to images, by that generator; it may be compiled.
    """

    def __init__(
        self,
        model: GALIP,
        config: TrainConfig,
        world: World,
        generator: Network,
        generate: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self.model = model
        self.config = config
        self.world = world
        self.generator = generator
        self._generate = generate
        self.networks: tuple[Network, ...] = ()
        if config.regression.encodes:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                self.encoder = FeatureEncoder(model.config).to(world.device)
            if config.channels_last:
                self.encoder.to(memory_format=torch.channels_last)
            rate = config.regression.warmup_rate
            self.networks = (Network("feature_encoder", self.encoder, rate, config),)

    def step(self, phase: Phase, number: int, parts: list[Part]) -> StepReport:
        """Update what learns in this phase once.

        Args:
            phase: where the step is in the warm-up.
            number: of the step in training; with the seed it determines the noise on features.
            parts: of this process's share of the batch.
        """
        name, learn = {
            "autoencoder": ("reconstruction", self._reconstruction),
            "features": ("features", self._features),
            "all": ("regression", self._regression),
        }[phase.name]
        networks = (self.generator, *(self.networks if phase.name == "autoencoder" else ()))
        config = self.config.regression
        for network in networks:
            if phase.step == 0:  # of what has no gradient now, moments would go on moving it
                network.forget()
            network.use(config.warmup_rate * phase.rate_factor, config.warmup_betas)
        updates = self._updates(networks, parts, number, name, learn)
        # One scale for all networks: only float16 has any, which they change together.
        scale = self.generator.scale
        while scale.searching and all(u.failed() for u in updates) and scale.lower():
            updates = self._updates(networks, parts, number, name, learn)
        found = report(*updates)
        values = {n: v for n, v in found.values.items() if n.startswith(f"{self.generator.name}/")}
        return StepReport(values, found.skipped)

    def _updates(
        self,
        networks: tuple[Network, ...],
        parts: list[Part],
        number: int,
        name: str,
        learn: Callable[[Part, int], Tensor],
    ) -> list[Update]:
        weight, factor = self.config.regression.weight, self.generator.scale.value
        value = torch.zeros(1, device=self.world.device)
        for part in parts:
            with autocast(self.world.device, self.config.precision):
                loss = learn(part, number)
            backward(weight * loss, part.share * factor)
            value += part.share * loss.detach()
        updates = []
        for network in networks:
            if network.scale.enabled:
                network.scale.value = factor
            shares = value if network is self.generator else torch.zeros_like(value)
            updates.append(network.update(self.world, shares, (name,)))
        return updates

    def _reconstruction(self, part: Part, number: int) -> Tensor:
        """The image, encoded and painted again."""
        features = self.encoder(part.images)
        noise = feature_noise(self.config.seed, number, part.first, features.shape)
        features = features + _FEATURE_NOISE * noise.to(features)
        painted = self.model.generator.paint(features, _condition(part))
        return pyramid_distance(painted.float(), part.images)

    def _features(self, part: Part, number: int) -> Tensor:
        """What the encoder makes of the image, from noise and sentence."""
        with torch.no_grad():
            wanted = self.encoder(part.images).float()
        found = self.model.generator.visual_features(part.noise, _condition(part))
        return (found.float() - wanted).square().mean()

    def _regression(self, part: Part, number: int) -> Tensor:
        """The image from noise and sentence."""
        generated = self._generate(part.noise, part.sentence)
        return pyramid_distance(generated.float(), part.images)


def feature_noise(seed: int, number: int, first: int, shape: torch.Size) -> Tensor:
    """Noise of N(0,1) on the features, of that shape, of samples `first` and following."""
    rows = [
        np.random.default_rng([seed, number, first + i]).standard_normal(shape[1:], np.float32)
        for i in range(shape[0])
    ]
    return torch.from_numpy(np.stack(rows))


def _condition(part: Part) -> Tensor:
    return torch.cat([part.noise, part.sentence], dim=1)
