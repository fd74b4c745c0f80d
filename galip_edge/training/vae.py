"""Pretraining of the generator as the decoder of a conditional variational autoencoder.

A GAN that starts from random weights first has to find out that its noise may decide something,
and often drops part of what images vary in. Here an encoder reads an image and its caption, and
predicts the noise from which the generator should draw that image; a penalty keeps these
predictions near N(0,1) (Kingma and Welling 2014, https://arxiv.org/abs/1312.6114). So the
generator starts adversarial training with noise that decides layout and colors, although blurred.
In adversarial training, part of each batch can keep encoded noise and its distance to the real
images, which keeps this variety (Larsen et al. 2016, https://arxiv.org/abs/1512.09300).

Two optional phases before it make it several times as fast, `autoencoder` and `features`: the
upsampling blocks learn to render as the decoder of an autoencoder of features, and then the noise
encoder and the layers before them learn in these features (`feature_autoencoder`).

Captioned images are all it needs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
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
from galip_edge.training.distances import pyramid_distance
from galip_edge.training.feature_autoencoder import FeatureAutoencoder
from galip_edge.training.micro_batch import MicroBatch
from galip_edge.training.optimized_module import OptimizedModule, StepReport
from galip_edge.training.precision import autocast
from galip_edge.training.pretraining import (
    AuxiliaryLoss,
    Objective,
    Phase,
    PretrainingConfig,
    check_perceptual_weight,
    downsampling,
    joint_step,
    phase_at,
    reconstruction_loss,
)

if TYPE_CHECKING:
    from galip_edge.training.config import TrainConfig
    from galip_edge.training.trainer import Generated, Trainer

_GRID = 8  # largest side of the features that the encoder flattens
_WIDTH, _CHANNELS, _HIDDEN = 128, 48, 512

# The KL divergence starts with a multiple of its weight, which falls to 1 (geometrically) in the
# first part of the phase. So the generator learns first what captions say. Otherwise the encoder
# learns all of an image at once, and random noise overrides the caption.
_KL_FIRST, _KL_FALL = 50.0, 0.3

# Log variances, initial and limits. The prior's 0 would drown the mean of an untrained encoder.
_LOG_VARIANCE, _LEAST, _MOST = -3.0, -8.0, 2.0


@dataclass(frozen=True)
class VAEConfig(PretrainingConfig):
    """Settings of the autoencoder.

    Attributes:
        autoencoder_steps, features_steps: lengths of the phases that train the upsampling blocks,
            and the layers before them; 0 to omit both.
        steps: of all layers, with the distance of pixels.
        features_kl_weight: of the KL divergence in the features phase, in nats per image, relative
            to the mean squared error of features.
        features_kl_start: multiple of `features_kl_weight` at the start of that phase; falls to 1.
            From random weights it may have to be so high (10,000) that the encoder learns nothing
            until the generator draws what captions say.
        features_without_concept: the first fraction of the features phase, in which the generator
            leaves out the visual concept; a step then takes a third of the time.
        perceptual_weight: of the distance in the features of `[projected]`, relative to the
            distance of pixels, where images are compared; 0 for none.
        kl_weight: of the KL divergence of encoded noise from N(0,1), in nats per image, relative
            to the distance of pixels. More gives blurrier images; with less, encoded noise
            resembles random noise less.
        encoded: fraction of each batch of adversarial training whose noise is encoded.
        weight: of the distance of these images from the real ones in the generator's loss.
        learning_rate, betas: Adam's, during pretraining.
        features_learning_rate: instead of `learning_rate` in the features phase; None for the same.
    """

    kind: str = "vae"
    autoencoder_steps: int = 0
    features_steps: int = 0
    steps: int = 0
    features_kl_weight: float = 2e-3
    features_kl_start: float = 10.0
    features_without_concept: float = 0.0
    perceptual_weight: float = 0.0
    kl_weight: float = 1e-4
    encoded: float = 0.0
    weight: float = 0.0
    learning_rate: float = 6e-4
    features_learning_rate: float | None = None
    betas: tuple[float, float] = (0.9, 0.99)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integers(self, 0, "autoencoder_steps", "features_steps", "steps")
        check_not_negative(self, "perceptual_weight", "kl_weight", "features_kl_weight", "weight")
        check_positive(self, "learning_rate", "features_kl_start")
        if self.features_learning_rate is not None:
            check_positive(self, "features_learning_rate")
        check_fractions(self, "encoded", "betas", "features_without_concept")
        if self.weight and not self.encoded:
            raise ValueError(
                f"weight is {self.weight}, but no noise is encoded in adversarial training: set "
                "encoded"
            )
        if self.encoded and not (self.steps or self.features_steps):
            raise ValueError(
                f"encoded is {self.encoded}, but the encoder is not trained: set steps"
            )
        if bool(self.features_steps) != bool(self.autoencoder_steps):
            raise ValueError(
                "autoencoder_steps and features_steps need each other, got "
                f"{self.autoencoder_steps} and {self.features_steps}: set both, or neither"
            )

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Names and lengths of the phases before adversarial training."""
        return (
            ("autoencoder", self.autoencoder_steps),
            ("features", self.features_steps),
            ("all", self.steps),
        )

    def check(self, config: TrainConfig) -> None:
        """Raise ValueError if the data or the model does not suit an autoencoder."""
        if not self.total_steps:
            return
        if config.data.image_size != config.model.image_size:
            raise ValueError(
                f"an autoencoder compares pixels: data.image_size {config.data.image_size} must be "
                f"the model's {config.model.image_size}"
            )
        check_perceptual_weight(self.perceptual_weight, config)

    def build(self, trainer: Trainer) -> VAE | None:
        """The autoencoder of `trainer`; None without steps."""
        return VAE(self, trainer) if self.total_steps else None


class NoiseEncoder(nn.Module):
    """Images and their sentence embeddings to a normal distribution of noise.

    Args:
        config: dimensions of the model.
        features: read the features of `FeatureEncoder` instead of images.
    """

    def __init__(self, config: ModelConfig, features: bool = False) -> None:
        super().__init__()
        layers, width, size = (
            downsampling(config.clip.grid, _GRID, config.block_channels[0], _WIDTH)
            if features
            else downsampling(config.image_size, _GRID)
        )
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
        """Predict noise.

        Args:
            images: (B,3,H,W) in [-1,1], or features (B,C,grid,grid).
            sentence: (B,E) embeddings of their captions.

        Returns:
            Mean and log variance, (B,Z) each, in float32.
        """
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


def kl_factor(step: int, steps: int, first: float = _KL_FIRST) -> float:
    """Factor of the weight of the KL divergence at `step`, from 0, of `steps`: `first` to 1."""
    left = max(0.0, 1 - step / (_KL_FALL * steps))
    return float(first**left)


class VAE:
    """An encoder for `trainer.generator`: a `Pretraining`."""

    def __init__(self, config: VAEConfig, trainer: Trainer) -> None:
        self.config = config
        self.steps = config.total_steps
        self.trainer = trainer
        self._distance = reconstruction_loss(trainer, config.perceptual_weight)
        self._autoencoder: FeatureAutoencoder | None = None
        self._condition = trainer.model.generator.condition
        self._rows: dict[tuple[int, int], Tensor] = {}  # see `_encoded`
        if config.autoencoder_steps:
            self._autoencoder = FeatureAutoencoder(trainer, config.learning_rate, self._distance)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(trainer.config.seed)
            encoder = NoiseEncoder(trainer.model.config, features=bool(config.autoencoder_steps))
            self.encoder = encoder.to(trainer.world.device)
        self._noise_encoder = trainer.optimized("noise_encoder", self.encoder, config.learning_rate)
        self.modules: tuple[OptimizedModule, ...] = (
            *((self._autoencoder.module,) if self._autoencoder else ()),
            self._noise_encoder,
        )
        if config.weight:
            trainer.auxiliary.append(
                AuxiliaryLoss("reconstruction", config.weight, self._reconstruction)
            )

    def noise(self, number: int, keys: Sequence[str], captions: Sequence[str]) -> Tensor | None:
        """None: the autoencoder uses random noise, too."""
        return None

    def step(self, number: int, micro_batches: list[MicroBatch]) -> StepReport | None:
        """Update the modules of the current phase; None during adversarial training."""
        phase = phase_at(number, self.config.phases)
        if phase is None:
            return None
        module, peak = self._noise_encoder, self.config.learning_rate
        if phase.name == "autoencoder":
            assert self._autoencoder is not None
            module = self._autoencoder.module
        if phase.name == "features":
            assert self._autoencoder is not None
            peak = self.config.features_learning_rate or peak
            if phase.step == 0:
                self._autoencoder.shrink_features()
        for updated in (modules := (self.trainer.generator, module)):
            if phase.step == 0:  # parameters without a gradient would follow their old moments
                updated.reset_moments()
            updated.set_rate(peak * phase.rate_factor, self.config.betas)
        terms, loss, captured = self._objective(phase, number)
        micro_batches = self.trainer.capture(captured, micro_batches)
        return joint_step(self.trainer, modules, micro_batches, terms, loss)

    def prepare(self, number: int, micro_batches: list[MicroBatch]) -> list[MicroBatch]:
        """Encode the noise of a fraction of the samples, for adversarial training."""
        if number == self.steps:  # the optimizer's moments are those of another loss
            self.trainer.generator.reset_moments()
        return [self._with_encoded_noise(batch) for batch in micro_batches]

    def _objective(self, phase: Phase, number: int) -> tuple[tuple[str, ...], Objective, Hashable]:
        """The objective of a step.

        Returns:
            Names of the reported terms, the loss of a micro-batch with their values, and the
            signature of the step's passes for `Trainer.capture`.
        """
        if phase.name == "autoencoder":  # draws noise on the CPU
            autoencoder = self._autoencoder
            assert autoencoder is not None
            return (
                self._distance.terms,
                lambda batch: autoencoder.reconstruction(
                    batch, self._condition(batch.noise, batch.sentence), number
                ),
                None,
            )
        if phase.name == "features":
            factor = kl_factor(phase.step, phase.steps, self.config.features_kl_start)
            weight = self.config.features_kl_weight * factor
            concept = phase.step >= self.config.features_without_concept * phase.steps
            return (
                ("features", "kl"),
                lambda batch: self._feature_loss(batch, weight, concept),
                (phase.name, weight, concept),
            )
        factor = 1.0 if self.config.features_steps else kl_factor(phase.step, phase.steps)
        weight = self.config.kl_weight * factor
        return (
            (*self._distance.terms, "kl"),
            lambda batch: self._loss(batch, weight),
            (phase.name, weight),
        )

    def _feature_loss(
        self, batch: MicroBatch, kl_weight: float, concept: bool
    ) -> tuple[Tensor, Tensor]:
        """The negative evidence lower bound of a micro-batch's features, and its terms."""
        assert self._autoencoder is not None
        wanted = self._autoencoder.features(batch.images)
        mean, log_variance = self.encoder(wanted, batch.sentence)
        noise = sample(mean, log_variance, batch.noise)
        terms = [
            self._autoencoder.error(noise, self._condition(noise, batch.sentence), wanted, concept),
            kl_divergence(mean, log_variance).mean(),
        ]
        return terms[0] + kl_weight * terms[1], torch.stack(terms).detach()

    def _encode(self, images: Tensor, sentence: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance (B,Z) of the noise of images (B,3,H,W)."""
        read = self._autoencoder.features(images) if self._autoencoder else images
        found: tuple[Tensor, Tensor] = self.encoder(read, sentence)
        return found

    def _loss(self, batch: MicroBatch, kl_weight: float) -> tuple[Tensor, Tensor]:
        """The negative evidence lower bound of a micro-batch, and its terms."""
        mean, log_variance = self._encode(batch.images, batch.sentence)
        noise = sample(mean, log_variance, batch.noise)
        generated = self.trainer.generate(noise, batch.sentence).float()
        distance, values = self._distance(generated, batch.images)
        divergence = kl_divergence(mean, log_variance).mean()
        return distance + kl_weight * divergence, torch.cat([values, divergence.detach()[None]])

    @torch.no_grad()
    def _with_encoded_noise(self, batch: MicroBatch) -> MicroBatch:
        encoded = self._encoded(batch)
        if not len(encoded):
            return batch
        with autocast(self.trainer.world.device, self.trainer.config.precision):
            mean, log_variance = self._encode(batch.images[encoded], batch.sentence[encoded])
        noise = batch.noise.clone()
        noise[encoded] = sample(mean, log_variance, noise[encoded])
        return replace(batch, noise=noise)

    def _encoded(self, batch: MicroBatch) -> Tensor:
        """Samples with encoded noise: rows of `batch` at even distances in the whole batch."""
        place = batch.first, len(batch.noise)
        if place not in self._rows:
            edges = torch.arange(place[0], sum(place) + 1, dtype=torch.float64)
            passed = (edges * self.config.encoded).floor()
            self._rows[place] = passed.diff().nonzero()[:, 0].to(batch.noise.device)
        return self._rows[place]

    def _reconstruction(self, generated: Generated, batch: MicroBatch) -> Tensor:
        """Mean distance of the images with encoded noise from the real ones."""
        encoded = self._encoded(batch)
        if not len(encoded):
            return generated.images.new_zeros(())
        with autocast(self.trainer.world.device, "float32"):
            distance = pyramid_distance(generated.images[encoded], batch.images[encoded])
        return distance * (len(encoded) / len(batch.noise) / self.config.encoded)
