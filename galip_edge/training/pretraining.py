"""The interface of a pretraining: steps that train the generator before adversarial training.

`galip_edge.extensions` lists the implementations; the section `[pretraining]` of a training
configuration selects one by its `kind`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from galip_edge import extensions
from galip_edge.training.micro_batch import MicroBatch
from galip_edge.training.optimized_module import OptimizedModule, StepReport

if TYPE_CHECKING:
    from galip_edge.training.config import TrainConfig
    from galip_edge.training.trainer import Trainer


class Pretraining(Protocol):
    """A pretraining of `Trainer.generator`.

    Attributes:
        steps: number of steps before adversarial training.
        modules: trained modules in addition to generator and discriminator.
    """

    steps: int
    modules: tuple[OptimizedModule, ...]

    def noise(self, keys: Sequence[str]) -> Tensor | None:
        """Noise (B,Z) for the images `keys`; None for random noise."""
        ...

    def step(self, number: int, micro_batches: list[MicroBatch]) -> StepReport | None:
        """Perform step `number`; None if it belongs to adversarial training."""
        ...


@dataclass(frozen=True)
class PretrainingConfig:
    """Base of the settings of a pretraining.

    Attributes:
        kind: name in `galip_edge.extensions`.
    """

    kind: str = "regression"

    @classmethod
    def class_for(cls, values: Mapping[str, Any]) -> type[PretrainingConfig]:
        """The class of the kind in `values`. Raises GalipEdgeError if it is missing."""
        found: type[PretrainingConfig] = extensions.require(
            "pretraining", str(values.get("kind", cls.kind))
        )
        return found

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
