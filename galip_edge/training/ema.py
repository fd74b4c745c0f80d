"""An exponential moving average of the generator, for samples and export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class MovingAverage:
    """Averages of named parameters: average = decay * average + (1 - decay) * parameter.

    The decay ramps up, min(decay, (1 + n) / (10 + n)) for update n, so early averages follow the
    trained weights instead of the initial ones. The authors used no average; it makes samples less
    dependent on the last step of training.

    Attributes:
        updates: number of updates.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.parameters = dict(parameters)
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Include the current values of the parameters."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(
            list(self.averages.values()), list(self.parameters.values()), 1 - decay
        )
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the parameters have their average values."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.averages[name] = self.averages[name], parameter.data
