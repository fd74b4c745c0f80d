"""Division of epochs into batches, and of batches among processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from galip_edge.data.errors import DataError
from galip_edge.data.samples import Draw, generator_for


@dataclass(frozen=True)
class Position:
    """Position of training in its data; the same on all processes.

    Attributes:
        epoch: from 0.
        samples: finished samples of this epoch, over all processes.
    """

    epoch: int = 0
    samples: int = 0

    def __post_init__(self) -> None:
        if self.epoch < 0 or self.samples < 0:
            raise ValueError(f"epoch and samples must not be negative, got {self}")


@dataclass(frozen=True)
class Schedule:
    """Division of an epoch into global batches, each with one share per process.

    The shares of a global batch, concatenated by rank, are the batch of a single process with batch
    size `batch_size * world_size`.

    Attributes:
        length: samples in an epoch.
        batch_size: of one process.
        rank: of this process, from 0.
        world_size: number of processes.
    """

    length: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.length < 1 or self.batch_size < 1:
            raise ValueError(f"length and batch_size must be positive, got {self}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be in 0..{self.world_size - 1}, got {self.rank}")
        if self.length < self.global_batch:
            raise DataError(
                f"an epoch has {self.length} samples, too few for one batch of "
                f"{self.batch_size} on each of {self.world_size} process(es): reduce the batch size"
            )

    @property
    def global_batch(self) -> int:
        """Samples of a step, over all processes."""
        return self.batch_size * self.world_size

    @property
    def batches_per_epoch(self) -> int:
        """Batches of every process in an epoch."""
        return self.length // self.global_batch

    def after(self, position: Position) -> Position:
        """The position after the batch at `position`."""
        samples = position.samples + self.global_batch
        if samples + self.global_batch > self.length:
            return Position(position.epoch + 1)
        return Position(position.epoch, samples)

    def valid(self, position: Position) -> Position:
        """`position`, or the start of the next epoch if no batch fits after it.

        This happens if the batch size has changed.
        """
        fits = position.samples + self.global_batch <= self.length
        return position if fits else Position(position.epoch + 1)

    def draws(self, start: Position, seed: int) -> Iterator[list[Draw]]:
        """Yield the draws of this process for each batch from `start` on, without end.

        The order of an epoch depends only on (seed, epoch).
        """
        position, order_of, order = start, -1, np.arange(self.length)
        while True:
            if order_of != position.epoch:
                order_of = position.epoch
                order = generator_for("order", seed, order_of).permutation(self.length)
            first = position.samples + self.rank * self.batch_size
            indices = order[first : first + self.batch_size].tolist()
            yield [Draw(position.epoch, index) for index in indices]
            position = self.after(position)
