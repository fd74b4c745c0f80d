"""One training step: the discriminator's update, then the generator's."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from galip_edge.models import GALIP
from galip_edge.training.config import TrainConfig
from galip_edge.training.diff_augment import augment, step_draws
from galip_edge.training.distributed import World
from galip_edge.training.ema import MovingAverage
from galip_edge.training.frozen import use_training_copy
from galip_edge.training.losses import (
    DiscriminatorLoss,
    GeneratorLoss,
    discriminator_loss,
    generator_loss,
)
from galip_edge.training.network import (
    Network,
    Part,
    StepReport,
    Update,
    backward,
    report,
    with_fitting_scale,
)
from galip_edge.training.precision import autocast
from galip_edge.training.projected import TERMS as PROJECTED_TERMS
from galip_edge.training.projected import ProjectedDiscriminator, ProjectedLoss
from galip_edge.training.regression import pyramid_distance
from galip_edge.training.translation import translate
from galip_edge.training.warmup import WarmUp, phase_of
from runtime.noise import draw_noise_rows


@dataclass(frozen=True)
class _Generated:
    """Images of a part, and what the discriminators read of them.

    Attributes:
        images: as generated.
        features, embedding: CLIP's, of the augmented images.
        scales: features for the projected discriminator; empty without it.
    """

    images: Tensor
    features: Tensor
    embedding: Tensor
    scales: list[Tensor]


class Trainer:
    """Both networks and all that a step changes or reads, in one place.

    Args:
        model: on any device; moved to this process's.
        config: precision, rates, batch sizes and weights.
        world: the processes among which each batch is divided.

    Attributes:
        stream: version of the random streams.
    """

    def __init__(self, model: GALIP, config: TrainConfig, world: World) -> None:
        self.model = model.to(world.device)
        self.config = config
        self.world = world
        self.stream = STREAM
        if config.channels_last:
            model.to(memory_format=torch.channels_last)
        use_training_copy(model, config.precision)
        rates = config.optimizer
        self.generator = Network("generator", model.generator, rates.generator_rate, config)
        self.discriminator = Network(
            "discriminator", model.discriminator, rates.discriminator_rate, config
        )
        compiled: Callable[[Any], Any] = torch.compile if config.compile else lambda module: module
        self._generate = compiled(model.generator)
        self._encode_images = compiled(model.image_encoder)
        self._discriminator_loss = compiled(discriminator_loss)
        self._generator_loss = compiled(generator_loss)
        self.warmup = WarmUp(model, config, world, self.generator, self._generate)
        self.networks = (self.generator, self.discriminator, *self.warmup.networks)
        self.projected: ProjectedDiscriminator | None = None
        if config.projected.weight:
            self.projected = ProjectedDiscriminator(
                model.config.image_size,
                model.config.clip.embedding_dim,
                config.projected,
                config.seed,
            ).to(world.device)
            if config.channels_last:
                self.projected.to(memory_format=torch.channels_last)
            self.heads = Network(
                "projected", self.projected.heads, config.projected.learning_rate, config
            )
            self.networks = (*self.networks, self.heads)
        self.average = (
            MovingAverage(self.generator.parameters, config.ema_decay) if config.ema_decay else None
        )
        world.copy_from_first_([p for n in self.networks for p in n.parameters.values()])

    def step(
        self, number: int, images: Tensor, sentence: Tensor, noise: Tensor | None = None
    ) -> StepReport:
        """Update both networks once; while regression warms up, only the generator.

        The result does not depend on how the batch is divided among processes and parts, but for
        rounding.

        Args:
            number: of the step, from 0; with the seed it determines the noise.
            images: (B,3,H,W) in [-1,1], this process's share of the batch; B is the same on all.
            sentence: (B,E) embeddings of their captions.
            noise: (B,Z) of the images, for regression.

        Raises:
            ValueError: there is regression, and no noise.
        """
        parts = self._split(number, images, sentence, noise)
        usual = self.config.optimizer
        if phase := phase_of(number, self.config.regression):
            return self._averaging(self.warmup.step(phase, number, parts))
        self.generator.use(usual.generator_rate, usual.betas)
        # With a single part, the generated images' graph is kept for the generator's update; with
        # several it would not fit, and they are generated again.
        kept: list[_Generated] = []
        first = with_fitting_scale(
            self.discriminator, lambda: self._update_discriminator(parts, kept)
        )
        updates = [first]
        if self.projected:
            updates.append(with_fitting_scale(self.heads, lambda: self._update_heads(parts, kept)))
        if number < self.config.regression.steps + usual.generator_delay:
            return report(*updates)
        updates.append(
            with_fitting_scale(self.generator, lambda: self._update_generator(parts, kept))
        )
        return self._averaging(report(*updates))

    def _update_discriminator(self, parts: list[Part], kept: list[_Generated]) -> Update:
        """Phase 1. What was generated for a single part is put into `kept`."""
        single = len(parts) == 1
        kept.clear()
        self.model.discriminator.requires_grad_(True)
        values = torch.zeros(len(_D_TERMS), device=self.world.device)
        for part in parts:
            with self._autocast():
                with torch.no_grad():
                    real, _ = self._encode_images(self._show(part, part.images, 0))
                with torch.set_grad_enabled(single):
                    generated = self._generate_part(part)
                loss = self._discriminator_loss(
                    self.model.discriminator,
                    real,
                    generated.features,
                    part.sentence,
                    part.mismatched,
                    self.config.loss,
                    self.discriminator.scale.value,
                    part.mismatch_weights,
                )
            backward(loss.total, part.share * self.discriminator.scale.value)
            values += part.share * _values(loss, _D_TERMS)
            if single:
                kept.append(generated)
        return self.discriminator.update(self.world, values, _D_TERMS)

    def _update_heads(self, parts: list[Part], kept: list[_Generated]) -> Update:
        """Phase 1 of the projected discriminator, on the same images."""
        assert self.projected is not None
        self.projected.heads.requires_grad_(True)
        self.projected.refine_norms()
        values = torch.zeros(len(PROJECTED_TERMS), device=self.world.device)
        for part in parts:
            with self._autocast():
                with torch.no_grad():
                    real = self.projected.features(self._show(part, part.images, 0))
                    generated = kept[0] if kept else self._generate_part(part)
                loss = self.projected.discriminator_loss(
                    real, generated.scales, part.sentence, part.mismatched, part.mismatch_weights
                )
            backward(loss.total, part.share * self.heads.scale.value)
            values += part.share * _values(loss, PROJECTED_TERMS)
        return self.heads.update(self.world, values, PROJECTED_TERMS)

    def _update_generator(self, parts: list[Part], kept: list[_Generated]) -> Update:
        """Phase 2, against the discriminator as it is now. What is in `kept` is used up."""
        self.model.discriminator.requires_grad_(False)
        weight = self.config.regression.weight
        terms = (
            *_G_TERMS,
            *(("projected",) if self.projected else ()),
            *(("regression",) if weight else ()),
        )
        if self.projected:
            self.projected.heads.requires_grad_(False)
        values = torch.zeros(len(terms), device=self.world.device)
        for part in parts:
            with self._autocast():
                generated = kept.pop() if kept else self._generate_part(part)
                loss = self._generator_loss(
                    self.model.discriminator,
                    generated.features,
                    generated.embedding,
                    part.sentence,
                    self.config.loss,
                )
                total, found = loss.total, _values(loss, _G_TERMS)
                if self.projected:
                    score = self.projected.adversarial(generated.scales, part.sentence)
                    total = total + self.config.projected.weight * score
                    found = torch.cat([found, score.detach()[None]])
            if weight:
                distance = pyramid_distance(generated.images, part.images)
                total = total + weight * distance
                found = torch.cat([found, distance.detach()[None]])
            backward(total, part.share * self.generator.scale.value)
            values += part.share * found
        return self.generator.update(self.world, values, terms)

    def _averaging(self, report: StepReport) -> StepReport:
        if self.average and not report.skipped:
            self.average.update()
        return report

    @torch.no_grad()
    def sample(self, noise: Tensor, sentence: Tensor) -> Tensor:
        """Images (B,3,H,W) in [-1,1] of noise (B,Z) and sentences (B,E), by the average if any."""
        with self.averaged(), self._autocast():
            image: Tensor = self.model.generator(noise, sentence)
        return image.float().clamp(-1, 1)

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the generator has its average weights, if an average is kept."""
        return self.average.applied() if self.average else nullcontext()

    def _autocast(self) -> torch.autocast:
        return autocast(self.world.device, self.config.precision)

    def _generate_part(self, part: Part) -> _Generated:
        images = self._generate(part.noise, part.sentence).float()
        shown = self._show(part, images, 1)
        features, embedding = self._encode_images(shown)
        scales = self.projected.features(shown) if self.projected else []
        return _Generated(images, features, embedding, scales)

    def _show(self, part: Part, images: Tensor, kind: int) -> Tensor:
        """Images as the discriminators are shown them; `kind` is 0 for real, 1 for generated."""
        if self.config.translation:
            images = translate(images, part.shifts[:, kind])
        return augment(images, part.draws[:, kind], self.config.augmentation)

    def _split(
        self, number: int, images: Tensor, sentence: Tensor, noise: Tensor | None
    ) -> list[Part]:
        """This process's parts of the batch; only here is the batch seen as a whole.

        A mismatched sentence is the next one in the whole batch that differs, and noise belongs to
        the sample's place in it, unless it belongs to the image; so neither depends on the
        division.
        """
        device, count = self.world.device, len(images)
        images = images.to(
            device,
            non_blocking=True,
            memory_format=torch.channels_last
            if self.config.channels_last
            else torch.preserve_format,
        )
        sentence = sentence.to(device)
        first, total = self.world.rank * count, self.world.size * count
        mismatched, weights = mismatched_sentences(self.world.gather(sentence), first, count)
        if not self.config.regression.weight:
            noise = step_noise(self.config.seed, number, first, count, self.model.config.noise_dim)
        if noise is None:
            raise ValueError("regression needs the noise of the images")
        noise = noise.to(device)
        furthest = round(self.config.translation * images.shape[-1])
        draw_shifts = step_shifts if self.stream > 1 else step_shifts_1
        shifts = draw_shifts(self.config.seed, number, first, count, furthest)
        draws = step_draws(self.config.seed, number, first, count).to(device)
        size = self.config.micro_batch_size or count
        return [
            Part(
                images[at : at + size],
                sentence[at : at + size],
                mismatched[at : at + size],
                weights[at : at + size],
                noise[at : at + size],
                shifts[at : at + size],
                draws[at : at + size],
                share=min(size, count - at) / total,
                first=first + at,
            )
            for at in range(0, count, size)
        ]


def mismatched_sentences(sentences: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """For each sample the next sentence of the batch that is not its own.

    Captions repeat in a batch, and the same text cannot match an image and mismatch it.

    Args:
        sentences: (B,E) of the whole batch.
        first, count: the samples that mismatched sentences are wanted for.

    Returns:
        (count,E) sentences, and (count,) weights: 0 where all sentences of the batch are the same,
        otherwise 1.
    """
    mine, total = sentences[first : first + count], len(sentences)
    own = torch.arange(first, first + count, device=sentences.device)
    order = (own[:, None] + torch.arange(1, total, device=sentences.device)) % total
    # Embeddings of one text may differ in the last bits where processes computed them.
    apart = torch.cdist(mine.float(), sentences.float(), p=math.inf)
    same = apart <= _SAME * mine.float().abs().amax(dim=1, keepdim=True)
    differs = same.logical_not().gather(1, order)
    partner = order.gather(1, differs.int().argmax(dim=1, keepdim=True))[:, 0]
    return sentences[partner], differs.any(dim=1).to(torch.float32)


_SAME = 1e-5

# Version of the random streams, in a run's state; an older run is continued with its own.
STREAM = 2


def step_noise(seed: int, number: int, first: int, count: int, size: int) -> Tensor:
    """Noise (count,size) of samples `first` and following of a step's batch, from N(0,1)."""
    places = range(first, first + count)
    return torch.from_numpy(draw_noise_rows(seed, f"step {number}", places, size))


def step_shifts(seed: int, number: int, first: int, count: int, furthest: int) -> Tensor:
    """Shifts of a step's images, each uniform in [-furthest,furthest].

    Returns:
        (count,2,2) pixels, of the real and the generated image, down and to the right; of samples
        `first` and following of the batch.
    """
    random = np.random.default_rng([seed, number])
    rows = random.integers(-furthest, furthest + 1, (first + count, 2, 2))
    return torch.from_numpy(rows[first:])


def step_shifts_1(seed: int, number: int, first: int, count: int, furthest: int) -> Tensor:
    """`step_shifts` of stream version 1, which has one generator for each sample."""
    rows = [
        np.random.default_rng([seed, number, first + i]).integers(-furthest, furthest + 1, (2, 2))
        for i in range(count)
    ]
    return torch.from_numpy(np.stack(rows))


_D_TERMS = tuple(f.name for f in fields(DiscriminatorLoss))
_G_TERMS = tuple(f.name for f in fields(GeneratorLoss))


def _values(
    loss: DiscriminatorLoss | GeneratorLoss | ProjectedLoss, terms: tuple[str, ...]
) -> Tensor:
    return torch.stack([getattr(loss, term).detach().mean() for term in terms])
