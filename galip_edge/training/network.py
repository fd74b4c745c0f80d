"""What a training step is made of: parts of a batch, networks with their optimizers, a report."""

from __future__ import annotations

from collections.abc import Callable
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
    """As much of the batch as is computed at once.

    `share` is its fraction of the whole, and `first` the place of its first sample in it. Samples
    without a mismatched sentence have `mismatch_weights` 0, all others 1.
    """

    images: Tensor
    sentence: Tensor
    mismatched: Tensor
    mismatch_weights: Tensor
    noise: Tensor
    shifts: Tensor
    draws: Tensor
    share: float
    first: int


class Network:
    """A network in training: trainable parameters and buffers by name, optimizer, loss scale."""

    def __init__(self, name: str, module: nn.Module, rate: float, config: TrainConfig) -> None:
        self.name = name
        self.parameters = {
            f"{name}.{key}": p for key, p in module.named_parameters() if p.requires_grad
        }
        frozen = {key for key, _ in module.named_parameters()}
        self.buffers = {
            f"{name}.{key}": tensor
            for key, tensor in module.state_dict().items()
            if key not in frozen
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

    def update(self, world: World, losses: Tensor, terms: tuple[str, ...]) -> Update:
        """Step along the gradients of all processes together, unless a value is not finite.

        Args:
            world: the processes.
            losses: (n,) this process's shares of the loss's terms.
            terms: their names.
        """
        for parameter in self.parameters.values():
            if parameter.grad is None:  # alike on all processes
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        world.sum_([*gradients, losses])
        torch._foreach_mul_(gradients, 1 / self.scale.value)
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        failed = (norm + losses.sum()).isfinite().logical_not().float()
        # The fused optimizer reads it on the device, so that nothing waits for the value.
        self.optimizer.found_inf = failed  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return Update(self, terms, torch.cat([torch.stack([failed, norm]), losses]))


@dataclass(frozen=True)
class Update:
    """An update that the device may still be computing.

    Attributes:
        network: what is updated.
        terms: names of the loss's terms.
        outcome: (2+n,): 1 if a value was not finite and nothing was changed, otherwise 0; the
            gradients' norm; the terms.
    """

    network: Network
    terms: tuple[str, ...]
    outcome: Tensor

    def failed(self) -> bool:
        """Wait for the update; whether a value was not finite."""
        return bool(self.outcome[0])


def report(*updates: Update) -> StepReport:
    """Wait for `updates` with one transfer from the device, and adapt their loss scales."""
    outcomes = torch.cat([update.outcome for update in updates]).tolist()
    named: dict[str, float] = {}
    skipped = []
    for update in updates:
        network, count = update.network, len(update.outcome)
        (failed, norm, *losses), outcomes = outcomes[:count], outcomes[count:]
        named |= {f"{network.name}/{t}": v for t, v in zip(update.terms, losses, strict=True)}
        named[f"{network.name}/norm"] = norm
        network.scale.update(not failed)
        if network.scale.enabled:
            named[f"{network.name}/loss_scale"] = network.scale.value
        if failed:
            skipped.append(network.name)
    return StepReport(named, tuple(skipped))


def with_fitting_scale(network: Network, compute: Callable[[], Update]) -> Update:
    """Compute an update; in float16 at the beginning of training, until its loss scale fits."""
    update = compute()
    while network.scale.searching and update.failed() and network.scale.lower():
        update = compute()
    return update


def backward(loss: Tensor, factor: float) -> None:
    """Gradients of `factor` times the loss."""
    torch.autograd.backward(loss * factor)
