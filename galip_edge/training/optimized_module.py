"""A trained module with its optimizer and loss scale, and the report of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from galip_edge.training.distributed import World
from galip_edge.training.precision import LossScale, Precision


@dataclass(frozen=True)
class StepReport:
    """The outcome of a step.

    Attributes:
        values: by name, losses, their terms, and gradient norms over the whole batch.
        skipped: modules that were not updated because a value was not finite.
    """

    values: dict[str, float]
    skipped: tuple[str, ...]


class OptimizedModule:
    """Trainable parameters and buffers of a module by name, its Adam optimizer and loss scale."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        learning_rate: float,
        betas: tuple[float, float],
        precision: Precision,
    ) -> None:
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
            self.parameters.values(), lr=learning_rate, betas=betas, fused=True
        )
        self.scale = LossScale(precision)

    def set_rate(self, learning_rate: float, betas: tuple[float, float]) -> None:
        """Change the optimizer's settings, and keep its moments."""
        for group in self.optimizer.param_groups:
            group["lr"], group["betas"] = learning_rate, betas

    def reset_moments(self) -> None:
        """Discard the optimizer's moments."""
        self.optimizer.state.clear()

    def update(
        self,
        world: World,
        losses: Tensor,
        terms: tuple[str, ...],
        max_norm: float | None = None,
    ) -> Update:
        """Step along the gradients summed over all processes, unless a value is not finite.

        Args:
            world: the processes.
            losses: (n,) this process's share of each loss term.
            terms: names of the terms.
            max_norm: a gradient of larger norm is clipped to it; None for no clipping.
        """
        for parameter in self.parameters.values():
            if parameter.grad is None:  # the same parameters on all processes
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        world.sum_([*gradients, losses])
        torch._foreach_mul_(gradients, 1 / self.scale.value)
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        if max_norm is not None:
            torch._foreach_mul_(gradients, (max_norm / norm).clamp(max=1))
        failed = (norm + losses.sum()).isfinite().logical_not().float()
        # The fused optimizer reads it on the device, without synchronization.
        self.optimizer.found_inf = failed  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return Update(self, terms, torch.cat([torch.stack([failed, norm]), losses]))


@dataclass(frozen=True)
class Update:
    """An update, possibly still running on the device.

    Attributes:
        module: the updated module.
        terms: names of the loss terms.
        outcome: (2+n,): 1 if a value was not finite and nothing was changed, otherwise 0; the
            gradient norm; the terms.
    """

    module: OptimizedModule
    terms: tuple[str, ...]
    outcome: Tensor

    def failed(self) -> bool:
        """Wait for the update; True if a value was not finite."""
        return bool(self.outcome[0])


def report(*updates: Update) -> StepReport:
    """Wait for `updates` with one transfer from the device, and adapt their loss scales."""
    outcomes = torch.cat([update.outcome for update in updates]).tolist()
    named: dict[str, float] = {}
    skipped = []
    for update in updates:
        module, count = update.module, len(update.outcome)
        (failed, norm, *losses), outcomes = outcomes[:count], outcomes[count:]
        named |= {f"{module.name}/{t}": v for t, v in zip(update.terms, losses, strict=True)}
        named[f"{module.name}/norm"] = norm
        module.scale.update(not failed)
        if module.scale.enabled:
            named[f"{module.name}/loss_scale"] = module.scale.value
        if failed:
            skipped.append(module.name)
    return StepReport(named, tuple(skipped))


def with_loss_scale_search(module: OptimizedModule, compute: Callable[[], Update]) -> Update:
    """Compute an update; at the start of float16 training, repeat it until its scale fits."""
    update = compute()
    while module.scale.searching and update.failed() and module.scale.lower():
        update = compute()
    return update


def backward(loss: Tensor, factor: float) -> None:
    """Accumulate the gradients of `factor` times the loss."""
    torch.autograd.backward(loss * factor)
