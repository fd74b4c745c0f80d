"""Pretraining of the generator by regression on images whose noise is known.

Drawn images have their noise, so the generator can learn from pairs, as one-step generators learn
from noise-image pairs of a diffusion model (Yin et al. 2024, https://arxiv.org/abs/2311.18828,
section 3.3). Regression corrects every pixel; in the few steps that a CPU affords, a discriminator
behind a small CLIP gives a much weaker signal.

First the upsampling blocks learn to render, as the decoder of an autoencoder; then the layers
before them learn to predict the encoder's features from noise and sentence (see
`galip_edge.training.feature_autoencoder`); finally all are trained together, first on parts of
images, half of them around the beak. The encoder is discarded.

A mapping network learns to choose the attributes of the scenes, meanwhile, and optionally what
noise alone chooses in their layout; all other layers learn from the true choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from galip_edge.aviary.data.attributes import ATTRIBUTES
from galip_edge.aviary.data.chance import NOISE_DIM, Noise
from galip_edge.aviary.data.config import AviaryConfig
from galip_edge.aviary.data.drawing import LAYOUT_VALUES, Layout, layout_labels, layout_of
from galip_edge.aviary.data.scene import random_labels
from galip_edge.aviary.data.source import AviarySource
from galip_edge.config import (
    check_fractions,
    check_integers,
    check_not_negative,
    check_positive,
)
from galip_edge.data.samples import generator_for
from galip_edge.training.distances import pyramid_distance
from galip_edge.training.feature_autoencoder import FeatureAutoencoder
from galip_edge.training.image_parts import border_weights, check_parts, part_of, render_part
from galip_edge.training.micro_batch import MicroBatch
from galip_edge.training.optimized_module import OptimizedModule, StepReport
from galip_edge.training.pretraining import (
    AuxiliaryLoss,
    Objective,
    Phase,
    PretrainingConfig,
    check_perceptual_weight,
    joint_step,
    phase_at,
    reconstruction_loss,
)
from runtime.arrays import Integers

if TYPE_CHECKING:
    from galip_edge.training.config import TrainConfig
    from galip_edge.training.trainer import Generated, Trainer


_ATTRIBUTE_VALUES = tuple(map(len, ATTRIBUTES.values()))
# Standard deviation of the weight around a beak, in its lengths: the crest of a parrot is 1.8 away.
_BEAK_REACH = 1.2
# Standard deviation of the weight of a bird, in widths and heights of its bounding box.
_BOX_REACH = 1 / 3
# Width of a bird whose weight is not changed by its size, in widths of the image.
_TYPICAL_WIDTH = 0.6
# Shares of the parts of images that show the beak, and the body; the others are anywhere.
_PARTS_AT_BEAKS, _PARTS_AT_BODIES = 0.45, 0.4


@dataclass(frozen=True)
class RegressionConfig(PretrainingConfig):
    """Settings of the regression; with weight 0 there is none.

    Attributes:
        weight: factor of the regression loss.
        adversarial_weight: of the same loss in adversarial training; 0 trains with random noise, on
            captioned images alone. None for `weight`.
        adversarial_detail_weight: of the loss of `detail_steps` in adversarial training; without
            it, what was learned from parts is partly lost again.
        autoencoder_steps, features_steps, detail_steps, warmup_steps: lengths of the four phases
            before adversarial training; the last two train the whole generator by regression alone,
            `detail_steps` on a quarter of each image.
        perceptual_weight: of the distance in the features of `[projected]`, relative to the
            distance of pixels, wherever whole images are compared; 0 for none.
        beak_weight, bird_weight: additional weight of the pixels around the beak and of the whole
            bird, wherever images are compared; larger for small birds. A beak is about 1 % of an
            image, but two of a caption's attributes show on the head.
        features_without_concept: the first fraction of the features phase, in which the generator
            leaves out the visual concept; a step then takes a third of the time.
        warmup_lr, warmup_betas: Adam's settings in these phases. Without an opponent, a smoother
            gradient is better than a more recent one.
        choice_samples: noise vectors for each caption of a batch, from all of which a mapping
            network learns its choices; 0 for that of the image alone.
        features_learning_rate: instead of `warmup_lr` in the features phase; None for the same.
    """

    ALIASES: ClassVar[Mapping[str, str]] = {"warmup_rate": "warmup_lr"}

    weight: float = 0.0
    adversarial_weight: float | None = None
    adversarial_detail_weight: float = 0.0
    autoencoder_steps: int = 0
    features_steps: int = 0
    detail_steps: int = 0
    warmup_steps: int = 0
    perceptual_weight: float = 0.0
    beak_weight: float = 0.0
    bird_weight: float = 0.0
    features_without_concept: float = 0.0
    choice_samples: int = 32
    warmup_lr: float = 8e-4
    features_learning_rate: float | None = None
    warmup_betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "weight", "adversarial_detail_weight", "perceptual_weight")
        check_not_negative(self, "beak_weight", "bird_weight")
        check_positive(self, "warmup_lr")
        if self.features_learning_rate is not None:
            check_positive(self, "features_learning_rate")
        if self.adversarial_weight is not None:
            check_not_negative(self, "adversarial_weight")
        check_fractions(self, "warmup_betas", "features_without_concept")
        if self.adversarial_detail_weight and not (self.weight and self.adversarial_weight != 0):
            raise ValueError(
                f"adversarial_detail_weight is {self.adversarial_detail_weight}, but adversarial "
                "training has no regression loss: set weight, and omit adversarial_weight = 0"
            )
        check_integers(self, 0, "choice_samples")
        for name in ("autoencoder_steps", "features_steps", "detail_steps", "warmup_steps"):
            check_integers(self, 0, name)
            if (count := getattr(self, name)) and not self.weight:
                raise ValueError(f"{name} is {count}, but weight is 0: set weight")
        if self.features_steps and not self.autoencoder_steps:
            raise ValueError(
                f"features_steps is {self.features_steps}, but there is no trained encoder: set "
                "autoencoder_steps"
            )

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Names and lengths of the phases before adversarial training."""
        return (
            ("autoencoder", self.autoencoder_steps),
            ("features", self.features_steps),
            ("details", self.detail_steps),
            ("all", self.warmup_steps),
        )

    def check(self, config: TrainConfig) -> None:
        """Raise ValueError if the data or the model does not suit regression."""
        data, model = config.data, config.model
        if not self.weight:
            return
        check_perceptual_weight(self.perceptual_weight, config)
        if self.detail_steps or self.adversarial_detail_weight:
            check_parts(model)
        if not isinstance(data, AviaryConfig):
            raise ValueError(
                f"regression needs images whose noise is known, and data of kind {data.kind!r} "
                "has none: omit pretraining.weight"
            )
        if data.variety == "narrow" and data.captions > 1:
            raise ValueError(
                "only the first caption of a narrow image leaves open what its noise determines: "
                f"set data.captions = 1, got {data.captions}"
            )
        if model.noise_dim != NOISE_DIM:
            raise ValueError(
                f"model.noise_dim must be the aviary's {NOISE_DIM} for regression, got "
                f"{model.noise_dim}"
            )
        known = (_ATTRIBUTE_VALUES, _ATTRIBUTE_VALUES + LAYOUT_VALUES)
        if model.categories and model.categories not in known:
            raise ValueError(
                "regression teaches the aviary's attributes, and optionally direction and "
                f"composition: set model.categories to {list(known[0])} or {list(known[1])}, got "
                f"{list(model.categories)}"
            )
        if len(model.categories) > len(ATTRIBUTES) and data.variety == "narrow":
            raise ValueError(
                "narrow images have one direction and composition: set model.categories to "
                f"{list(known[0])}"
            )
        sizes = (data.image_size, data.shorter_side)
        if sizes != (model.image_size,) * 2 or (data.augment and data.flip):
            raise ValueError(
                "regression compares pixels: set data.image_size and data.resize to the model's "
                f"{model.image_size}, and data.flip = false; got sizes {sizes}, flip = {data.flip}"
            )

    def build(self, trainer: Trainer) -> Regression | None:
        """The regression of `trainer`; None with weight 0."""
        return Regression(self, trainer) if self.weight else None


class Regression:
    """Regression of `trainer.generator` on the images of the aviary: a `Pretraining`."""

    def __init__(self, config: RegressionConfig, trainer: Trainer) -> None:
        data = trainer.config.data
        assert isinstance(data, AviaryConfig)  # checked by the configuration
        self.config = config
        self.steps = config.total_steps
        self.trainer = trainer
        self.modules: tuple[OptimizedModule, ...] = ()
        self._loss = reconstruction_loss(trainer, config.perceptual_weight)
        self._source = AviarySource(replace(data, cache=None))
        self._generator = trainer.model.generator
        if config.autoencoder_steps:
            self.autoencoder = FeatureAutoencoder(trainer, config.warmup_lr, self._loss)
            self.modules = (self.autoencoder.module,)
        # Of this process's batch: attributes (B,variables), beaks (B,3) by x, y and length, and
        # birds (B,4) by x, y, width and height.
        self._values = torch.empty(0, 0, dtype=torch.int64)
        self._beaks = torch.empty(0, 3)
        self._boxes = torch.empty(0, 4)
        # For each of its captions, other noise and its attributes: (B,K,Z) and (B,K,variables).
        self._more_noise = torch.empty(0, 0, 0)
        self._more_values = torch.empty(0, 0, 0, dtype=torch.int64)
        self._corners = torch.empty(0, 2, dtype=torch.int64)  # of the parts of images
        self._adversarial = (
            config.weight if config.adversarial_weight is None else config.adversarial_weight
        )
        if self._adversarial:
            trainer.auxiliary.append(AuxiliaryLoss("regression", self._adversarial, self._distance))
            if weight := config.adversarial_detail_weight:
                trainer.auxiliary.append(
                    AuxiliaryLoss("details", weight, lambda _, batch: self._details(batch)[0])
                )
            if self._generator.mapping is not None:
                trainer.auxiliary.append(
                    AuxiliaryLoss("choices", 1.0, lambda _, batch: self._choices(batch).sum())
                )

    def noise(self, number: int, keys: Sequence[str], captions: Sequence[str]) -> Tensor | None:
        """Noise (B,Z) from which `captions` give the images `keys`. Raises ValueError without.

        None in adversarial training without regression.
        """
        if number >= self.steps and not self._adversarial:
            return None
        if not keys:
            raise ValueError("regression needs the keys of the images, which determine their noise")
        known = [
            self._source.scene_and_noise(key, caption, generator_for(f"{key} {caption}", number))
            for key, caption in zip(keys, captions, strict=True)
        ]
        noises = np.stack([noise for _, noise, _ in known])
        phase = phase_at(number, self.config.phases)
        if self._generator.mapping is not None:
            labels = np.array([[*scene.labels().values()] for scene, *_ in known])
            values = self._with_layout(labels, noises)
            self._values = self._kept(self._values, values)
            count = self.config.choice_samples * self._teaches_choices(phase)
            # Also once after the last of these phases, to discard what it drew.
            if self._source.variety == "wide" and (count or self._more_noise.numel()):
                rngs = [generator_for(f"choices {key}", number) for key in keys]
                self._draw_choices(labels, [states for *_, states in known], rngs, count)
        by_parts = (
            self.config.adversarial_detail_weight > 0 if phase is None else phase.name == "details"
        )
        if self.config.beak_weight or self.config.bird_weight or by_parts:
            variety = self._source.variety
            layouts = [layout_of(scene, noise, variety) for scene, noise, _ in known]
            beaks = torch.tensor([[at.beak_x, at.beak_y, at.beak_length] for at in layouts])
            self._beaks = self._kept(self._beaks, beaks)
            boxes = [[at.box_x, at.box_y, at.box_width, at.box_height] for at in layouts]
            self._boxes = self._kept(self._boxes, torch.tensor(boxes))
        if by_parts:
            corners = [
                self._corner(layout, generator_for(f"part {key}", number))
                for key, layout in zip(keys, layouts, strict=True)
            ]
            self._corners = self._kept(self._corners, torch.tensor(corners))
        return torch.from_numpy(noises)

    def _draw_choices(
        self,
        labels: Integers,
        states: list[frozenset[str]],
        rngs: list[np.random.Generator],
        count: int,
    ) -> None:
        """Draw `count` noise vectors for each caption, and find the attributes that they choose.

        Args:
            labels: attributes (B,n) of the images.
            states: names of the attributes that their captions state.
            rngs: of the noise.
            count: K.
        """
        shape = (count, NOISE_DIM)
        noise = np.stack([rng.standard_normal(shape, dtype=np.float32) for rng in rngs])
        stated = np.array([[name in each for name in ATTRIBUTES] for each in states])
        given = np.where(stated, labels, -1).repeat(count, axis=0)
        rows = noise.reshape(-1, NOISE_DIM)
        values = self._with_layout(random_labels(rows, given), rows)
        self._more_noise = self._kept(self._more_noise, torch.from_numpy(noise))
        self._more_values = self._kept(
            self._more_values, values.reshape(*noise.shape[:2], values.shape[1])
        )

    def _with_layout(self, labels: Integers, noises: Noise) -> Tensor:
        """Attributes (N,n), and what noises (N,Z) choose in the layout if the network has it."""
        variables = len(self.trainer.model.config.categories)
        return torch.from_numpy(np.hstack([labels, layout_labels(noises)])[:, :variables])

    def _corner(self, layout: Layout, rng: np.random.Generator) -> list[int]:
        """Column and row of an image's part, in the pixels of the first upsampling block."""
        side = self.trainer.model.config.block_sizes[0]
        kind, *share = rng.random(3)
        if kind < _PARTS_AT_BEAKS:
            center = (layout.beak_x, layout.beak_y)
        elif kind < _PARTS_AT_BEAKS + _PARTS_AT_BODIES:
            center = (layout.x + (share[0] - 0.5) / 4, layout.y + (share[1] - 0.5) / 4)
        else:
            center = (0.25 + share[0] / 2, 0.25 + share[1] / 2)
        return [min(max(round(at * side - side / 4), 0), side // 2) for at in center]

    def _kept(self, old: Tensor, new: Tensor) -> Tensor:
        """`new` on this process's device, in the memory of `old`, which captured passes read."""
        if old.shape != new.shape:
            old = torch.empty_like(new, device=self.trainer.world.device)
        return old.copy_(new)

    def step(self, number: int, micro_batches: list[MicroBatch]) -> StepReport | None:
        """Update the modules of the current phase; None during adversarial training."""
        phase = phase_at(number, self.config.phases)
        if self._generator.mapping is not None:
            self._generator.mapping.requires_grad_(self._teaches_choices(phase))
        if phase is None:
            return None
        peak = self.config.warmup_lr
        if phase.name == "features":
            peak = self.config.features_learning_rate or peak
            if phase.step == 0:
                self.autoencoder.shrink_features()
        terms, loss = self._objective(phase, number)
        modules = (
            self.trainer.generator,
            *(self.modules if phase.name == "autoencoder" else ()),
        )
        for module in modules:
            if phase.step == 0:  # parameters without a gradient would follow their old moments
                module.reset_moments()
            module.set_rate(peak * phase.rate_factor, self.config.warmup_betas)

        def weighted(batch: MicroBatch) -> tuple[Tensor, Tensor]:
            value, values = loss(batch)
            choices = self._choices(batch)
            return self.config.weight * value + choices.sum(), torch.cat([values, choices.detach()])

        if self._generator.mapping is not None:
            terms = (*terms, "choices")
        return joint_step(self.trainer, modules, micro_batches, terms, weighted)

    def _teaches_choices(self, phase: Phase | None) -> bool:
        """True while a mapping network is trained, until the features phase has taught it.

        Trained further with the whole generator, its choices became worse (docs/training.md).
        """
        if self.config.features_steps:
            return phase is not None and phase.name in ("autoencoder", "features")
        return phase is not None or not self.steps

    def prepare(self, number: int, micro_batches: list[MicroBatch]) -> list[MicroBatch]:
        """The same micro-batches: their noise is that of the images, or random."""
        return micro_batches

    def _objective(self, phase: Phase, number: int) -> tuple[tuple[str, ...], Objective]:
        """Names of a phase's terms, and the loss of a micro-batch with their values."""
        if phase.name == "autoencoder":
            return self._loss.terms, lambda batch: self.autoencoder.reconstruction(
                batch, self._condition(batch), number, self._importance(batch)
            )
        if phase.name == "features":
            concept = phase.step >= self.config.features_without_concept * phase.steps
            return ("features",), lambda batch: self._features(batch, concept)
        if phase.name == "details":
            return ("regression",), self._details
        return ("regression", *self._loss.terms[1:]), self._regression

    def _features(self, batch: MicroBatch, concept: bool) -> tuple[Tensor, Tensor]:
        """Squared error of features predicted from noise and sentence, also as its term."""
        wanted = self.autoencoder.features(batch.images)
        error = self.autoencoder.error(batch.noise, self._condition(batch), wanted, concept)
        return error, error.detach()[None]

    def _details(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """The pixels' distance in a part of each image, also as its term."""
        condition, corners = self._condition(batch), self._rows(self._corners, batch)
        features = self._generator.visual_features(batch.noise, condition)
        part = render_part(self._generator, features, condition, corners)
        model = self.trainer.model.config
        importance = border_weights(part.shape[-1], part.device)
        if (near_beak := self._importance(batch)) is not None:
            importance = importance * part_of(near_beak, corners, model)
        distance = pyramid_distance(part.float(), part_of(batch.images, corners, model), importance)
        return distance, distance.detach()[None]

    def _regression(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Loss of images generated from the noise and sentences of real ones, and its terms."""
        if self._generator.mapping is None:
            generated = self.trainer.generate(batch.noise, batch.sentence)
        else:
            generated = self._generator.synthesize(batch.noise, self._condition(batch))
        return self._loss(generated.float(), batch.images, self._importance(batch))

    def _condition(self, batch: MicroBatch) -> Tensor:
        """The generator's condition, of the true choices if a mapping network makes them."""
        mapping = self._generator.mapping
        if mapping is None:
            return self._generator.condition(batch.noise, batch.sentence)
        return torch.cat([batch.noise, mapping.given(self._rows(self._values, batch))], dim=1)

    def _choices(self, batch: MicroBatch) -> Tensor:
        """Cross-entropy of a mapping network's choices, summed over variables: (1,), or (0,)."""
        mapping = self._generator.mapping
        if mapping is None:
            return batch.noise.new_zeros(0)
        noise, sentence, values = batch.noise, batch.sentence, self._rows(self._values, batch)
        if count := self._more_noise.shape[1]:
            noise = self._rows(self._more_noise, batch).flatten(0, 1)
            values = self._rows(self._more_values, batch).flatten(0, 1)
            sentence = sentence.repeat_interleave(count, dim=0)
        scores = mapping.logits(noise, sentence)
        losses = [
            nn.functional.cross_entropy(each.float(), value)
            for each, value in zip(scores, values.unbind(1), strict=True)
        ]
        return torch.stack(losses).sum()[None]

    def _importance(self, batch: MicroBatch) -> Tensor | None:
        """Weights of the pixels of a micro-batch, (N,1,H,W); None for 1."""
        if not self.config.beak_weight and not self.config.bird_weight:
            return None
        x, y, length = self._rows(self._beaks, batch).unbind(1)
        box_x, box_y, width, height = self._rows(self._boxes, batch).unbind(1)
        side, reach = batch.images.shape[-1], _BEAK_REACH * length
        weight = self.config.beak_weight * _nearness(side, x, y, reach, reach)
        if self.config.bird_weight:
            size = (width * _BOX_REACH, height * _BOX_REACH)
            weight = weight + self.config.bird_weight * _nearness(side, box_x, box_y, *size)
        return 1 + (_TYPICAL_WIDTH / width[:, None, None, None]) ** 2 * weight

    def _rows(self, values: Tensor, batch: MicroBatch) -> Tensor:
        """The rows of a micro-batch, (N,n), of this process's (B,n)."""
        first = batch.first - self.trainer.world.rank * len(values)
        return values[first : first + len(batch.noise)]

    def _distance(self, generated: Generated, batch: MicroBatch) -> Tensor:
        """The same loss during adversarial training."""
        images = generated.images.float()
        return self._loss(images, batch.images, self._importance(batch))[0]


def _nearness(side: int, x: Tensor, y: Tensor, width: Tensor, height: Tensor) -> Tensor:
    """exp(-d²/2) of each pixel (N,1,side,side), at a distance of d standard deviations.

    Args:
        side: of the images in pixels.
        x, y: centers (N,), in widths of the image.
        width, height: standard deviations (N,).
    """
    centers = (torch.arange(side, device=x.device) + 0.5) / side
    across = ((centers - x[:, None]) / width[:, None]) ** 2
    down = ((centers - y[:, None]) / height[:, None]) ** 2
    return torch.exp(-(down[:, :, None] + across[:, None]) / 2)[:, None]
