"""One process or many: torchrun starts them, and a batch is spread over all.

Gradients are summed explicitly, once per network and step. `DistributedDataParallel` would overlap
this with the backward pass, but does not support the gradient penalty's second derivative.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed

from runtime.errors import GalipEdgeError


@dataclass(frozen=True)
class World:
    """The processes that train together; by default this one alone.

    Attributes:
        rank: of this process, from 0; the first one logs and writes.
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
        """Whether this process logs and writes."""
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
        """`rows` (B,...) of all processes in the order of their ranks, (size·B,...)."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.size)]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def copy_from_first_(self, tensors: Sequence[Tensor]) -> None:
        """Replace `tensors` by the first process's."""
        if self.size > 1:
            for tensor in tensors:
                same = tensor.detach().contiguous()  # a copy where memory is channels-last
                distributed.broadcast(same, src=0)
                tensor.data.copy_(same)

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any process."""
        count = torch.tensor([float(flag)], device=self.device)
        self.sum_([count])
        return bool(count)


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """This process's place among those that torchrun started; without torchrun it is alone.

    Args:
        device: `cpu`, `cuda`, or `auto` for CUDA where there is any.

    Raises:
        GalipEdgeError: CUDA was asked for and there is none, or not one GPU per process.
    """
    gpus = torch.cuda.device_count()
    if device == "cuda" and not gpus:
        raise GalipEdgeError("device = 'cuda', but PyTorch sees no CUDA device: use 'cpu'")
    use_cuda = device != "cpu" and gpus > 0
    size, rank, local = (int(os.environ.get(n, d)) for n, d in _TORCHRUN.items())
    if use_cuda and local >= gpus:
        raise GalipEdgeError(
            f"process {local} of this machine has no GPU, there are {gpus}: start torchrun with "
            f"--nproc-per-node {gpus}"
        )
    place = torch.device("cuda", local) if use_cuda else torch.device("cpu")
    if use_cuda:
        torch.cuda.set_device(place)
    if size == 1:
        yield World(device=place)
        return
    distributed.init_process_group("nccl" if use_cuda else "gloo")
    try:
        yield World(rank, size, place)
    finally:
        distributed.destroy_process_group()


_TORCHRUN = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
