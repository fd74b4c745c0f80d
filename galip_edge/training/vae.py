"""Pretraining of the generator as the decoder of a conditional variational autoencoder.

A GAN that starts from random weights first has to find out that its noise may decide something,
and often drops part of what images vary in. Here an encoder reads an image and its caption, and
predicts the noise from which the generator should draw that image; a penalty keeps these
predictions near N(0,1) (Kingma and Welling 2014, https://arxiv.org/abs/1312.6114). So the
generator starts adversarial training with noise that decides layout and colors, although blurred.
In adversarial training, part of each batch can keep encoded noise and its distance to the real
images, which keeps this variety (Larsen et al. 2016, https://arxiv.org/abs/1512.09300).

Captioned images are all it needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from galip_edge.config import (
    check_fractions,
    check_integers,
    check_not_negative,
    check_positive,
)
from galip_edge.models.config import ModelConfig
from galip_edge.training.distances import perceptual_distance, pyramid_distance
from galip_edge.training.micro_batch import MicroBatch
from galip_edge.training.optimized_module import OptimizedModule, StepReport
from galip_edge.training.precision import autocast
from galip_edge.training.pretraining import (
    AuxiliaryLoss,
    PretrainingConfig,
    downsampling,
    joint_step,
    rate_factor,
)

if TYPE_CHECKING:
    from galip_edge.training.config import TrainConfig
    from galip_edge.training.trainer import Generated, Trainer

_GRID = 8  # largest side of the features that the encoder flattens
_CHANNELS, _HIDDEN = 48, 512

# The KL divergence starts with a multiple of its weight, which falls to 1 (geometrically) in the
# first part of the pretraining. So the generator learns first what captions say. Otherwise the
# encoder learns all of an image at once, and random noise overrides the caption.
_KL_FIRST, _KL_FALL = 50.0, 0.3

# Log variances, initial and limits. The prior's 0 would drown the mean of an untrained encoder.
_LOG_VARIANCE, _LEAST, _MOST = -3.0, -8.0, 2.0


@dataclass(frozen=True)
class VAEConfig(PretrainingConfig):
    """Settings of the autoencoder.

    Attributes:
        steps: before adversarial training.
        perceptual_weight: of the distance in the features of `[projected]`, relative to the
            distance of pixels; 0 for none.
        kl_weight: of the KL divergence of encoded noise from N(0,1), in nats per image, relative
            to the distance of pixels. More gives blurrier images; with less, encoded noise
            resembles random noise less.
        encoded: fraction of each batch of adversarial training whose noise is encoded.
        weight: of the distance of these images from the real ones in the generator's loss.
        learning_rate, betas: Adam's, during pretraining.
    """

    kind: str = "vae"
    steps: int = 0
    perceptual_weight: float = 0.0
    kl_weight: float = 1e-4
    encoded: float = 0.0
    weight: float = 0.0
    learning_rate: float = 6e-4
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        check_integers(self, 0, "steps")
        check_not_negative(self, "perceptual_weight", "kl_weight", "weight")
        check_positive(self, "learning_rate")
        check_fractions(self, "encoded", "betas")
        if self.weight and not self.encoded:
            raise ValueError(
                f"weight is {self.weight}, but no noise is encoded in adversarial training: set "
                "encoded"
            )
        if self.encoded and not self.steps:
            raise ValueError(
                f"encoded is {self.encoded}, but the encoder is not trained: set steps"
            )

    def check(self, config: TrainConfig) -> None:
        """Raise ValueError if the data or the model does not suit an autoencoder."""
        if not self.steps:
            return
        if config.data.image_size != config.model.image_size:
            raise ValueError(
                f"an autoencoder compares pixels: data.image_size {config.data.image_size} must be "
                f"the model's {config.model.image_size}"
            )
        if self.perceptual_weight and not config.projected.weight:
            raise ValueError(
                "pretraining.perceptual_weight needs the features of [projected]: set "
                "projected.weight"
            )

    def build(self, trainer: Trainer) -> VAE | None:
        """The autoencoder of `trainer`; None without steps."""
        return VAE(self, trainer) if self.steps else None


class NoiseEncoder(nn.Module):
    """Images and their sentence embeddings to a normal distribution of noise."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        layers, width, size = downsampling(config.image_size, _GRID)
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, _CHANNELS, 1), nn.Flatten())
        self.hidden = nn.Sequential(
            nn.Linear(_CHANNELS * size**2 + config.clip.embedding_dim, _HIDDEN), nn.LeakyReLU(0.2)
        )
        self.to_mean = nn.Linear(_HIDDEN, config.noise_dim)
        self.to_log_variance = nn.Linear(_HIDDEN, config.noise_dim)
        with torch.no_grad():
            self.to_log_variance.weight *= 0.1
            self.to_log_variance.bias.fill_(_LOG_VARIANCE)

    def forward(self, images: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """images (B,3,H,W) in [-1,1], sentence (B,E) -> mean and log variance (B,Z), float32."""
        features = self.layers(images)
        hidden = self.hidden(torch.cat([features, sentence.to(features)], dim=1))
        log_variance = self.to_log_variance(hidden).float().clamp(_LEAST, _MOST)
        return self.to_mean(hidden).float(), log_variance


def sample(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """Standard normal noise (B,Z) as that of N(mean, exp(log_variance)), (B,Z) each -> (B,Z)."""
    return mean + torch.exp(log_variance / 2) * noise


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of N(mean, exp(log_variance)) from N(0,1): (B,Z) each -> (B,) nats."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def kl_factor(step: int, steps: int) -> float:
    """Factor of the weight of the KL divergence at `step`, from 0, of `steps`."""
    left = max(0.0, 1 - step / (_KL_FALL * steps))
    return float(_KL_FIRST**left)


class VAE:
    """An encoder for `trainer.generator`: a `Pretraining`."""

    def __init__(self, config: VAEConfig, trainer: Trainer) -> None:
        self.config = config
        self.steps = config.steps
        self.trainer = trainer
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(trainer.config.seed)
            self.encoder = NoiseEncoder(trainer.model.config).to(trainer.world.device)
        self.modules: tuple[OptimizedModule, ...] = (
            trainer.optimized("noise_encoder", self.encoder, config.learning_rate),
        )
        if config.weight:
            trainer.auxiliary.append(
                AuxiliaryLoss("reconstruction", config.weight, self._reconstruction)
            )

    def noise(self, keys: Sequence[str]) -> Tensor | None:
        """None: the autoencoder uses random noise, too."""
        return None

    def step(self, number: int, micro_batches: list[MicroBatch]) -> StepReport | None:
        """Update generator and encoder; None during adversarial training."""
        if number >= self.steps:
            return None
        modules = (self.trainer.generator, *self.modules)
        rate = self.config.learning_rate * rate_factor(number, self.steps)
        for module in modules:
            module.set_rate(rate, self.config.betas)
        kl_weight = self.config.kl_weight * kl_factor(number, self.steps)
        terms = (
            "reconstruction",
            "kl",
            *(("perceptual",) if self.config.perceptual_weight else ()),
        )
        return joint_step(
            self.trainer, modules, micro_batches, terms, lambda batch: self._loss(batch, kl_weight)
        )

    def prepare(self, number: int, micro_batches: list[MicroBatch]) -> list[MicroBatch]:
        """Encode the noise of a fraction of the samples, for adversarial training."""
        if number == self.steps:  # the optimizer's moments are those of another loss
            self.trainer.generator.reset_moments()
        return [self._with_encoded_noise(batch) for batch in micro_batches]

    def _loss(self, batch: MicroBatch, kl_weight: float) -> tuple[Tensor, Tensor]:
        """The negative evidence lower bound of a micro-batch, and its terms."""
        mean, log_variance = self.encoder(batch.images, batch.sentence)
        noise = sample(mean, log_variance, batch.noise)
        generated = self.trainer.generate(noise, batch.sentence).float()
        terms = [
            pyramid_distance(generated, batch.images),
            kl_divergence(mean, log_variance).mean(),
        ]
        total = terms[0] + kl_weight * terms[1]
        if self.config.perceptual_weight:
            projected = self.trainer.projected
            assert projected is not None  # checked by the configuration
            with torch.no_grad():
                wanted = projected.features(batch.images)
            terms.append(perceptual_distance(projected.features(generated), wanted))
            total = total + self.config.perceptual_weight * terms[-1]
        return total, torch.stack(terms).detach()

    @torch.no_grad()
    def _with_encoded_noise(self, batch: MicroBatch) -> MicroBatch:
        encoded = self._is_encoded(batch)
        if not encoded.any():
            return batch
        with autocast(self.trainer.world.device, self.trainer.config.precision):
            mean, log_variance = self.encoder(batch.images[encoded], batch.sentence[encoded])
        noise = batch.noise.clone()
        noise[encoded] = sample(mean, log_variance, noise[encoded])
        return replace(batch, noise=noise)

    def _is_encoded(self, batch: MicroBatch) -> Tensor:
        """(N,) True for evenly spaced positions of the whole batch."""
        edges = torch.arange(batch.first, batch.first + len(batch.noise) + 1, dtype=torch.float64)
        passed = (edges * self.config.encoded).floor()
        return (passed.diff() > 0).to(batch.noise.device)

    def _reconstruction(self, generated: Generated, batch: MicroBatch) -> Tensor:
        """Mean distance of the images with encoded noise from the real ones."""
        encoded = self._is_encoded(batch)
        if not encoded.any():
            return generated.images.new_zeros(())
        with autocast(self.trainer.world.device, "float32"):
            distance = pyramid_distance(generated.images[encoded], batch.images[encoded])
        return distance * encoded.float().mean() / self.config.encoded
