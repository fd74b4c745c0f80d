"""Adversarial training of GALIP (paper, section 3.4).

A step has two phases. The discriminator learns from real, mismatched and generated images with
the hinge loss and the matching-aware gradient penalty (L_D); then the generator learns
against it, with CLIP similarity (L_G). `losses.py` has both losses.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from galip_edge.models import GALIP
from galip_edge.training.config import TrainConfig
from galip_edge.training.cuda_graphs import CaptureError, CUDAGraphs, capturing_stream
from galip_edge.training.diff_augment import (
    augment,
    blur,
    filter_both_ways,
    gaussian_kernel,
    translate,
)
from galip_edge.training.distributed import World
from galip_edge.training.ema import MovingAverage
from galip_edge.training.fast_attention import use_training_copy
from galip_edge.training.fast_blocks import use_fast_blocks
from galip_edge.training.losses import (
    DiscriminatorLoss,
    GeneratorLoss,
    discriminator_loss,
    generator_loss,
)
from galip_edge.training.micro_batch import STREAM, BatchDivision, MicroBatch
from galip_edge.training.optimized_module import (
    OptimizedModule,
    StepReport,
    Update,
    backward,
    report,
    with_loss_scale_search,
)
from galip_edge.training.precision import autocast
from galip_edge.training.pretraining import AuxiliaryLoss
from galip_edge.training.projected import ProjectedDiscriminator, ProjectedLoss

_log = logging.getLogger(__name__)

_REAL, _GENERATED = 0, 1  # second index of random numbers in a micro-batch


def _names(loss: type) -> tuple[str, ...]:
    return tuple(f.name for f in fields(loss))


_D_TERMS, _G_TERMS = map(_names, (DiscriminatorLoss, GeneratorLoss))
_P_TERMS = tuple(name for name in _names(ProjectedLoss) if name != "matching_each")


@dataclass(frozen=True)
class Generated:
    """Generated images, and the features that the discriminators read.

    Attributes:
        images: (N,3,H,W).
        features, embedding: CLIP features and embeddings of the augmented images.
        scales: features for the projected discriminator; empty without it.
    """

    images: Tensor
    features: Tensor
    embedding: Tensor
    scales: list[Tensor]


class Trainer:
    """Generator and discriminator with their optimizers.

    Args:
        model: moved to this process's device.
        config: precision, learning rates, batch sizes and loss weights.
        world: the processes that share each batch.

    Attributes:
        stream: version of the random streams.
        modules: all trained modules.
        auxiliary: further terms of the generator's loss.
    """

    def __init__(self, model: GALIP, config: TrainConfig, world: World) -> None:
        self.model = model.to(world.device)
        self.config = config
        self.world = world
        self.stream = STREAM
        if config.channels_last:
            model.to(memory_format=torch.channels_last)
        use_training_copy(model, config.precision)
        if world.device.type == "cpu" and config.precision != "float32":
            use_fast_blocks(model.generator)
        self.generator = self.optimized("generator", model.generator, config.optimizer.generator_lr)
        self.discriminator = self.optimized(
            "discriminator", model.discriminator, config.optimizer.discriminator_lr
        )
        self.modules = [self.generator, self.discriminator]
        compiled: Callable[[Any], Any] = torch.compile if config.compile else lambda module: module
        self.generate = compiled(model.generator)
        self._encode_images = compiled(model.image_encoder)
        self._discriminator_loss = compiled(discriminator_loss)
        self._generator_loss = compiled(generator_loss)
        self._divide = BatchDivision(
            world,
            config.seed,
            config.micro_batch_size,
            model.config.noise_dim,
            config.translation,
            config.channels_last,
        )
        self._blur = 0.0  # standard deviation, as a fraction of the width
        self._blur_kernels: dict[int, Tensor] = {}  # by width, which captured passes read
        self._graphs: CUDAGraphs | None = None
        if config.cuda_graphs and world.device.type == "cuda" and config.precision != "float16":
            self._graphs = CUDAGraphs(capturing_stream(world.device))
        self._matched: dict[int, Tensor] = {}  # `matching_each` by a micro-batch's first sample
        self.auxiliary: list[AuxiliaryLoss] = []
        self.projected: ProjectedDiscriminator | None = None
        if config.projected.weight:
            self.projected = self._add_projected()
        self.pretraining = config.pretraining.build(self) if config.pretraining else None
        if self.pretraining:
            self.modules += self.pretraining.modules
        self.average = (
            MovingAverage(self.generator.parameters, config.ema_decay) if config.ema_decay else None
        )
        world.copy_from_first_([p for m in self.modules for p in m.parameters.values()])

    def optimized(
        self, name: str, module: torch.nn.Module, learning_rate: float
    ) -> OptimizedModule:
        """`module` with an optimizer, in this trainer's precision and memory layout."""
        if self.config.channels_last:
            module.to(memory_format=torch.channels_last)
        return OptimizedModule(
            name, module, learning_rate, self.config.optimizer.betas, self.config.precision
        )

    def _add_projected(self) -> ProjectedDiscriminator:
        config = self.config.projected
        projected = ProjectedDiscriminator(
            self.model.config.image_size,
            self.model.config.clip.embedding_dim,
            config,
            self.config.seed,
        ).to(self.world.device)
        if self.config.channels_last:
            projected.to(memory_format=torch.channels_last)
        self.heads = self.optimized("projected", projected.heads, config.learning_rate)
        self.modules.append(self.heads)
        self.auxiliary.append(
            AuxiliaryLoss(
                "projected",
                config.weight,
                lambda generated, batch: projected.adversarial(generated.scales, batch.sentence),
            )
        )
        if config.matching_weight:
            self.auxiliary.append(
                AuxiliaryLoss(
                    "matching",
                    config.matching_weight,
                    lambda generated, batch: projected.matching(
                        generated.scales,
                        batch.sentence,
                        batch.sentences,
                        self._matched[batch.first],
                    ),
                )
            )
        return projected

    def step(
        self,
        number: int,
        images: Tensor,
        sentence: Tensor,
        keys: Sequence[str] = (),
        captions: Sequence[str] = (),
    ) -> StepReport:
        """Update discriminator and generator once.

        Apart from rounding, the result does not depend on the division into processes and
        micro-batches.

        Args:
            number: step, from 0; with the seed it determines the noise.
            images: (B,3,H,W) in [-1,1], this process's share of the batch; the same B on all.
            sentence: (B,E) embeddings of their captions.
            keys, captions: names and captions of the images, for pretraining.
        """
        noise = self.pretraining.noise(number, keys, captions) if self.pretraining else None
        micro_batches = self._divide(number, images, sentence, noise, self.stream)
        if self.pretraining and (done := self.pretraining.step(number, micro_batches)):
            return self._with_average(done)
        if self.pretraining:
            micro_batches = self.pretraining.prepare(number, micro_batches)
        settings = self.config.optimizer
        self.generator.set_rate(settings.generator_lr, settings.betas)
        first = self.pretraining.steps if self.pretraining else 0
        self._set_blur(number - first)
        updates_generator = number >= first + settings.generator_delay
        captured = ("adversarial", updates_generator, tuple(self._blur_kernels))
        micro_batches = self.capture(captured, micro_batches)
        done = self.passes(lambda: self._adversarial(micro_batches, updates_generator))
        if self.projected:
            self.projected.remember(micro_batches[0].sentences)
        return self._with_average(done) if updates_generator else done

    def _adversarial(self, micro_batches: list[MicroBatch], updates_generator: bool) -> StepReport:
        """Both phases of a step."""
        # A single micro-batch keeps the graph of its generated images for phase 2. Several would
        # not fit into memory together, so they are generated again.
        kept: list[Generated] = []

        # Phase 1: discriminator, L_D.
        updates = [
            with_loss_scale_search(
                self.discriminator, lambda: self._update_discriminator(micro_batches, kept)
            )
        ]
        if self.projected:
            updates.append(
                with_loss_scale_search(self.heads, lambda: self._update_heads(micro_batches, kept))
            )
        if not updates_generator:
            return report(*updates)

        # Phase 2: generator, L_G.
        updates.append(
            with_loss_scale_search(
                self.generator, lambda: self._update_generator(micro_batches, kept)
            )
        )
        return report(*updates)

    def _update_discriminator(
        self, micro_batches: list[MicroBatch], kept: list[Generated]
    ) -> Update:
        """Phase 1; adds the generated images of a single micro-batch to `kept`."""
        single = len(micro_batches) == 1
        kept.clear()
        self.model.discriminator.requires_grad_(True)

        def loss(batch: MicroBatch) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                real, _ = self._encode_images(self._augment(batch, batch.images, _REAL))
            with torch.set_grad_enabled(single):
                generated = self._generate(batch)
            if single:
                kept.append(generated)
            terms = self._discriminator_loss(
                self.model.discriminator,
                real,
                generated.features,
                batch.sentence,
                batch.mismatched,
                self.config.loss,
                self.discriminator.scale.value,
                batch.mismatch_weights,
            )
            return terms.total, _values(terms, _D_TERMS)

        return self.update(self.discriminator, micro_batches, _D_TERMS, loss)

    def _update_heads(self, micro_batches: list[MicroBatch], kept: list[Generated]) -> Update:
        """Phase 1 of the projected discriminator, on the same images."""
        projected = self.projected
        assert projected is not None
        projected.heads.requires_grad_(True)
        projected.refine_norms()

        def loss(batch: MicroBatch) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                real = projected.features(self._augment(batch, batch.images, _REAL))
                generated = kept[-1] if kept else self._generate(batch)
            terms = projected.discriminator_loss(
                real,
                generated.scales,
                batch.sentence,
                batch.mismatched,
                batch.mismatch_weights,
                batch.sentences,
            )
            self._matched[batch.first] = terms.matching_each
            return terms.total, _values(terms, names)

        matches = self.config.projected.matching_weight > 0
        names = _P_TERMS if matches else tuple(n for n in _P_TERMS if n != "matching")
        return self.update(self.heads, micro_batches, names, loss)

    def _update_generator(self, micro_batches: list[MicroBatch], kept: list[Generated]) -> Update:
        """Phase 2, against the updated discriminators; consumes `kept`."""
        self.model.discriminator.requires_grad_(False)
        if self.projected:
            self.projected.heads.requires_grad_(False)

        def loss(batch: MicroBatch) -> tuple[Tensor, Tensor]:
            generated = kept.pop() if kept else self._generate(batch)
            terms = self._generator_loss(
                self.model.discriminator,
                generated.features,
                generated.embedding,
                batch.sentence,
                self.config.loss,
            )
            total, values = terms.total, [_values(terms, _G_TERMS)]
            for term in self.auxiliary:
                value = term.compute(generated, batch)
                total = total + term.weight * value
                values.append(value.detach()[None])
            return total, torch.cat(values)

        terms = (*_G_TERMS, *(term.name for term in self.auxiliary))
        return self.update(self.generator, micro_batches, terms, loss)

    def update(
        self,
        module: OptimizedModule,
        micro_batches: list[MicroBatch],
        terms: tuple[str, ...],
        loss: Callable[[MicroBatch], tuple[Tensor, Tensor]],
    ) -> Update:
        """Accumulate gradients over the micro-batches, and step along them.

        Args:
            module: updated.
            micro_batches: of this process.
            terms: names of the reported values.
            loss: a micro-batch to its loss and the values of `terms`, both means over samples.
        """
        values = self.accumulate((module,), micro_batches, len(terms), loss)
        return module.update(self.world, values, terms)

    def accumulate(
        self,
        modules: Sequence[OptimizedModule],
        micro_batches: list[MicroBatch],
        count: int,
        loss: Callable[[MicroBatch], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """Accumulate gradients of `modules` over the micro-batches.

        Args:
            modules: all with the loss scale of the first.
            micro_batches: of this process.
            count: of values.
            loss: a micro-batch to its loss and values (count,), both means over samples.

        Returns:
            This process's share of the values, (count,).
        """
        scale = modules[0].scale.value

        def compute() -> Tensor:
            values = torch.zeros(count, device=self.world.device)
            for batch in micro_batches:
                with autocast(self.world.device, self.config.precision):
                    total, found = loss(batch)
                backward(total, batch.share * scale)
                values += batch.share * found
            return values

        if self._graphs is None:
            return compute()
        parameters = [p for module in modules for p in module.parameters.values()]
        return self._graphs.run("+".join(m.name for m in modules), parameters, compute)

    def capture(self, signature: Hashable, micro_batches: list[MicroBatch]) -> list[MicroBatch]:
        """Prepare a step whose passes CUDA graphs may capture, if they are enabled.

        Args:
            signature: of the passes: all that differs between steps, apart from the tensors of
                micro-batches. None: the passes cannot be captured.
            micro_batches: of the step; several are not captured.

        Returns:
            The micro-batches that the passes must use.
        """
        if self._graphs is None or len(micro_batches) > 1:
            return micro_batches
        return [self._graphs.begin(signature, micro_batches[0])]

    def passes(self, compute: Callable[[], StepReport]) -> StepReport:
        """Run the passes of a step; without CUDA graphs from now on if these fail."""
        if self._graphs is None:
            return compute()
        try:
            return self._graphs.step(self.modules, compute)
        except CaptureError as error:
            _log.warning("continuing without CUDA graphs: %s", error)
        self._graphs = None
        for module in self.modules:
            module.optimizer.zero_grad()
        return compute()

    def _set_blur(self, step: int) -> None:
        """Set the blur of adversarial step `step`, from 0."""
        settings = self.config.augmentation
        self._blur = settings.blur_at(step)
        if self._graphs is None:
            self._blur_kernels.clear()
            return
        for width in (self.model.config.image_size, self.config.data.image_size):
            widest = gaussian_kernel(settings.blur * width, width)
            radius = 0 if widest is None else len(widest) // 2
            kernel = gaussian_kernel(self._blur * width, width, radius)
            if kernel is None:
                self._blur_kernels.pop(width, None)
            elif width in self._blur_kernels:
                self._blur_kernels[width].copy_(kernel)
            else:
                self._blur_kernels[width] = kernel.to(self.world.device)

    def _generate(self, batch: MicroBatch) -> Generated:
        images = self.generate(batch.noise, batch.sentence).float()
        augmented = self._augment(batch, images, _GENERATED)
        features, embedding = self._encode_images(augmented)
        scales = self.projected.features(augmented) if self.projected else []
        return Generated(images, features, embedding, scales)

    def _augment(self, batch: MicroBatch, images: Tensor, kind: int) -> Tensor:
        """Differentiable augmentation, of real and generated images alike."""
        with autocast(self.world.device, "float32"):
            if (width := images.shape[-1]) in self._blur_kernels:
                images = filter_both_ways(images, self._blur_kernels[width])
            elif self._graphs is None:
                images = blur(images, self._blur * width)
        if self.config.translation:
            furthest = self._divide.furthest(images)
            images = translate(images, batch.shifts[:, kind], furthest)
        return augment(images, batch.draws[:, kind], self.config.augmentation)

    def _with_average(self, report: StepReport) -> StepReport:
        """`report`, after the moving average has followed an update."""
        if self.average and not report.skipped:
            self.average.update()
        return report

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the generator has its average weights, if there is an average."""
        return self.average.applied() if self.average else nullcontext()

    @torch.no_grad()
    def sample(self, noise: Tensor, sentence: Tensor) -> Tensor:
        """Noise (B,Z) and sentences (B,E) to images (B,3,H,W) in [-1,1], with average weights."""
        with self.averaged(), autocast(self.world.device, self.config.precision):
            image: Tensor = self.model.generator(noise, sentence)
        return image.float().clamp(-1, 1)


def _values(
    loss: DiscriminatorLoss | GeneratorLoss | ProjectedLoss, terms: tuple[str, ...]
) -> Tensor:
    return torch.stack([getattr(loss, term).detach().mean() for term in terms])
