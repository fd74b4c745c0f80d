"""The interface of a pretraining: steps that train the generator before adversarial training.

`galip_edge.extensions` lists the implementations; the section `[pretraining]` of a training
configuration selects one by its `kind`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from galip_edge import extensions
from galip_edge.config import check_positive
from galip_edge.training.distances import ReconstructionLoss
from galip_edge.training.micro_batch import MicroBatch
from galip_edge.training.optimized_module import (
    OptimizedModule,
    StepReport,
    Update,
    report,
)

if TYPE_CHECKING:
    from galip_edge.training.config import TrainConfig
    from galip_edge.training.trainer import Trainer

# Fractions of a phase in which the learning rate rises from zero, and falls to zero.
_RISE, _FALL = 0.02, 0.4

# Phases for which `trains_layers_apart` is true.
_LAYERS_APART = ("autoencoder", "features")

# A micro-batch to its loss, and the values of the reported terms (n,); both are means over samples.
Objective = Callable[[MicroBatch], tuple[Tensor, Tensor]]


class Pretraining(Protocol):
    """A pretraining of `Trainer.generator`.

    Attributes:
        steps: number of steps before adversarial training.
        modules: trained modules in addition to generator and discriminator.
    """

    steps: int
    modules: tuple[OptimizedModule, ...]

    def noise(self, number: int, keys: Sequence[str], captions: Sequence[str]) -> Tensor | None:
        """Noise (B,Z) for step `number`, the images `keys` and their captions; None if random."""
        ...

    def step(self, number: int, micro_batches: list[MicroBatch]) -> StepReport | None:
        """Perform step `number`; None if it belongs to adversarial training."""
        ...

    def prepare(self, number: int, micro_batches: list[MicroBatch]) -> list[MicroBatch]:
        """The micro-batches that adversarial step `number` uses."""
        ...


@dataclass(frozen=True)
class PretrainingConfig:
    """Base of the settings of a pretraining.

    Attributes:
        kind: `vae`, or a name in `galip_edge.extensions`.
        max_grad_norm: maximal norm of each module's gradient, to which larger ones are clipped;
            None for no clipping.
    """

    kind: str = "regression"
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        if self.max_grad_norm is not None:
            check_positive(self, "max_grad_norm")

    @classmethod
    def class_for(cls, values: Mapping[str, Any]) -> type[PretrainingConfig]:
        """The class of the kind in `values`. Raises GalipEdgeError if it is missing."""
        if values.get("kind") == "vae":
            from galip_edge.training.vae import VAEConfig

            return VAEConfig
        found: type[PretrainingConfig] = extensions.require(
            "pretraining", str(values.get("kind", cls.kind))
        )
        return found

    @property
    def phases(self) -> tuple[tuple[str, int], ...]:
        """Names and lengths of the phases before adversarial training."""
        return ()

    @property
    def total_steps(self) -> int:
        """Steps before adversarial training."""
        return sum(steps for _, steps in self.phases)

    def trains_layers_apart(self, number: int) -> bool:
        """True for steps that train some layers of the generator without the others."""
        phase = phase_at(number, self.phases)
        return phase is not None and phase.name in _LAYERS_APART

    def check(self, config: TrainConfig) -> None:
        """Raise ValueError if `config` does not suit this pretraining."""

    def build(self, trainer: Trainer) -> Pretraining | None:
        """The pretraining of `trainer`; None if the settings disable it."""
        raise NotImplementedError


@dataclass(frozen=True)
class AuxiliaryLoss:
    """A term that is added to the generator's loss (L_G).

    Attributes:
        name: of the term in reports.
        weight: factor in the loss.
        compute: generated images and their micro-batch to a scalar.
    """

    name: str
    weight: float
    compute: Callable[[Any, MicroBatch], Tensor]


def check_perceptual_weight(weight: float, config: TrainConfig) -> None:
    """Raise ValueError if a distance of features has a weight, but there are no features."""
    if weight and not config.projected.weight:
        raise ValueError(
            "pretraining.perceptual_weight needs the features of [projected]: set projected.weight"
        )


def reconstruction_loss(trainer: Trainer, perceptual_weight: float) -> ReconstructionLoss:
    """The loss of reconstructed images, with the features of `[projected]` if weighted."""
    projected = trainer.projected if perceptual_weight else None
    return ReconstructionLoss(projected.features if projected else None, perceptual_weight)


def rate_factor(step: int, steps: int) -> float:
    """Factor of the learning rate at `step`, from 0, of a phase of `steps`."""
    return min(1.0, (step + 1) / (_RISE * steps), (steps - step) / (_FALL * steps))


@dataclass(frozen=True)
class Phase:
    """Position in the phases of a pretraining.

    Attributes:
        name: of the phase.
        step: of the phase, from 0.
        steps: length of the phase.
    """

    name: str
    step: int
    steps: int

    @property
    def rate_factor(self) -> float:
        """Factor of the learning rate."""
        return rate_factor(self.step, self.steps)


def phase_at(number: int, phases: Sequence[tuple[str, int]]) -> Phase | None:
    """The phase of step `number`, from 0, of phases with names and lengths; None after them."""
    for name, steps in phases:
        if number < steps:
            return Phase(name, number, steps)
        number -= steps
    return None


def joint_step(
    trainer: Trainer,
    modules: tuple[OptimizedModule, ...],
    micro_batches: list[MicroBatch],
    terms: tuple[str, ...],
    loss: Objective,
) -> StepReport:
    """Update several modules along the gradients of one loss.

    Args:
        trainer: device, precision, and the generator, whose loss scale all modules share.
        modules: updated.
        micro_batches: of this process.
        terms: names of the reported values.
        loss: a micro-batch to its loss and the values of `terms` (n,), both means over samples.

    Returns:
        A report of the generator's values; `skipped` lists all modules.
    """
    scale = trainer.generator.scale

    def compute() -> StepReport:
        updates = _joint_updates(trainer, modules, micro_batches, terms, loss)
        while scale.searching and all(u.failed() for u in updates) and scale.lower():
            updates = _joint_updates(trainer, modules, micro_batches, terms, loss)
        return report(*updates)

    found, prefix = trainer.passes(compute), f"{trainer.generator.name}/"
    values = {name: value for name, value in found.values.items() if name.startswith(prefix)}
    return StepReport(values, found.skipped)


def _joint_updates(
    trainer: Trainer,
    modules: tuple[OptimizedModule, ...],
    micro_batches: list[MicroBatch],
    terms: tuple[str, ...],
    loss: Objective,
) -> list[Update]:
    world, scale = trainer.world, trainer.generator.scale.value
    config = trainer.config.pretraining
    limit = config.max_grad_norm if config is not None else None
    values = trainer.accumulate(modules, micro_batches, len(terms), loss)
    updates = []
    for module in modules:
        if module.scale.enabled:
            module.scale.value = scale
        # Every module takes part in the sum over processes; the values are reported once.
        mine = values if module is trainer.generator else torch.zeros_like(values)
        updates.append(module.update(world, mine, terms, limit))
    return updates


def downsampling(
    size: int, least: int, channels: int = 3, width: int = 16
) -> tuple[list[nn.Module], int, int]:
    """Convolutions that halve (B,channels,size,size) until the side is at most `least`.

    Args:
        size, channels: of the input.
        least: largest side of the result.
        width: channels of the result, if nothing is halved. Each convolution doubles them, up to
            192.

    Returns:
        The layers, the channels of their result, and its side.
    """
    layers: list[nn.Module] = []
    before = channels
    while size > least:
        width, size = min(2 * width, 192), size // 2
        layers += [nn.Conv2d(before, width, 4, 2, 1), *_activated(width)]
        before = width
    return [*layers, nn.Conv2d(before, width, 3, 1, 1), *_activated(width)], width, size


def _activated(channels: int) -> tuple[nn.Module, nn.Module]:
    return nn.GroupNorm(8, channels), nn.LeakyReLU(0.2)
