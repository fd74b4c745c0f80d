"""What a training step is made of: parts of a batch, networks with their optimizers, a report."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from galip_edge.training.config import TrainConfig
from galip_edge.training.distributed import World
from galip_edge.training.precision import LossScale


@dataclass(frozen=True)
class StepReport:
    """What came of a step.

    Attributes:
        values: losses, their terms, and gradient norms, over the whole batch; by name.
        skipped: the networks that were not updated because a value was not finite.
    """

    values: dict[str, float]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """As much of the batch as is computed at once; `share` is its fraction of the whole,
    and `first` the place of its first sample in it."""

    images: Tensor
    sentence: Tensor
    mismatched: Tensor
    noise: Tensor
    shifts: Tensor
    share: float
    first: int


class Network:
    """A network in training: its trainable parameters by name, its optimizer and loss scale."""

    def __init__(self, name: str, module: nn.Module, rate: float, config: TrainConfig) -> None:
        self.name = name
        self.parameters = {
            f"{name}.{key}": p for key, p in module.named_parameters() if p.requires_grad
        }
        self.optimizer = torch.optim.Adam(
            self.parameters.values(), lr=rate, betas=config.optimizer.betas, fused=True
        )
        self.scale = LossScale(config.precision)

    def use(self, rate: float, betas: tuple[float, float]) -> None:
        """Let the optimizer go on with other settings."""
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = rate, betas

    def forget(self) -> None:
        """Let the optimizer begin anew."""
        self.optimizer.state.clear()

    def update(self, world: World, losses: Tensor) -> tuple[bool, float]:
        """Step along the gradients of all processes together.

        Args:
            world: the processes.
            losses: (n,) values whose sums over all processes are wanted as well; in place.

        Returns:
            Whether all values were finite, otherwise nothing was changed; and the gradients'
            norm.
        """
        for parameter in self.parameters.values():
            if parameter.grad is None:  # alike on all processes
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        world.sum_([*gradients, losses])
        torch._foreach_mul_(gradients, 1 / self.scale.value)
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        finite = bool((norm + losses.sum()).isfinite())
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.scale.update(finite)
        return finite, norm.item()


def finish(network: Network, world: World, values: Tensor, terms: tuple[str, ...]) -> StepReport:
    """Step along the gradients; `values` (n,) are this process's shares of the loss's terms."""
    finite, norm = network.update(world, values)
    named = {f"{network.name}/{t}": v for t, v in zip(terms, values.tolist(), strict=True)}
    named[f"{network.name}/norm"] = norm
    if network.scale.enabled:
        named[f"{network.name}/loss_scale"] = network.scale.value
    return StepReport(named, () if finite else (network.name,))


def backward(loss: Tensor, factor: float) -> None:
    """Gradients of `factor` times the loss."""
    torch.autograd.backward(loss * factor)
