"""Data-parallel training with any number of processes, started by torchrun.

Gradients are summed explicitly, once per module and step. `DistributedDataParallel` would overlap
this with the backward pass, but does not support the second derivative of the gradient penalty.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from torch import Tensor, distributed

from galip_edge.devices import choose_device
from runtime.errors import GalipEdgeError


@dataclass(frozen=True)
class World:
    """The processes of a training run; by default only this one.

    Attributes:
        rank: of this process, from 0; the first process logs and writes.
        size: number of processes.
        device: of this process.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank must be in 0..{self.size - 1}, got {self.rank}")

    @property
    def is_first(self) -> bool:
        """True for the process that logs and writes."""
        return self.rank == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace float32 `tensors` by their sums over all processes."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, total in zip(
            tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True
        ):
            tensor.copy_(total.view(tensor.shape))

    def gather(self, rows: Tensor) -> Tensor:
        """`rows` (B,...) of all processes, ordered by rank: (size·B,...)."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def copy_from_first_(self, tensors: Sequence[Tensor]) -> None:
        """Replace `tensors` by those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                same = tensor.detach().contiguous()  # a copy where memory is channels-last
                distributed.broadcast(same, src=0)
                tensor.data.copy_(same)

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, True if it is set on any process."""
        if self.size == 1:
            return flags
        counts = torch.tensor(flags, dtype=torch.float32, device=self.device)
        self.sum_([counts])
        return tuple(count > 0 for count in counts.tolist())

    def raise_any(self, error: Exception | None) -> None:
        """Raise `error` on this process, and its message on all others.

        Every process must call this at the same point; `error` is None without a failure.

        Raises:
            GalipEdgeError: another process failed; with the message of the first failure.
        """
        if self.size > 1 and self.any(error is not None)[0]:
            messages: list[str | None] = [None] * self.size
            distributed.all_gather_object(messages, _message(error))
            if error is None:
                rank, message = next((r, m) for r, m in enumerate(messages) if m is not None)
                raise GalipEdgeError(f"{message} (process {rank})")
        if error is not None:
            raise error

    @contextmanager
    def together(self) -> Iterator[None]:
        """A context, without collective operations, in which any failure ends all processes."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 - it is reraised
            failure = error
        self.raise_any(failure)


def _message(error: Exception | None) -> str | None:
    if error is None:
        return None
    return str(error) if isinstance(error, GalipEdgeError) else f"{type(error).__name__}: {error}"


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the processes that torchrun started; a single process without torchrun.

    Args:
        device: `cpu`, `cuda`, or `auto` for CUDA where it is available.

    Raises:
        GalipEdgeError: CUDA is not available, or there are fewer GPUs than processes.
    """
    size, rank, local = (int(os.environ.get(n, d)) for n, d in _TORCHRUN.items())
    place = choose_device(device, local)
    if size == 1:
        yield World(device=place)
        return
    distributed.init_process_group(
        "nccl" if place.type == "cuda" else "gloo", timeout=_LONGEST_WAIT
    )
    try:
        yield World(rank, size, place)
    finally:
        distributed.destroy_process_group()


_TORCHRUN = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}

# The others wait while the first process evaluates or writes a checkpoint.
_LONGEST_WAIT = timedelta(hours=2)
