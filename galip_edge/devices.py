"""Selection and settings of the device for torch."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import torch

from runtime.cpu import available_cores, release_free_memory
from runtime.errors import GalipEdgeError

DeviceName = Literal["auto", "cpu", "cuda"]

# glibc's mallopt: parameters, their values in training, and its defaults.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_KEEPING = {_M_MMAP_THRESHOLD: 1 << 30, _M_TRIM_THRESHOLD: (1 << 31) - 1, _M_TOP_PAD: 1 << 26}
_DEFAULTS = {_M_MMAP_THRESHOLD: 1 << 17, _M_TRIM_THRESHOLD: 1 << 17, _M_TOP_PAD: 1 << 17}


def choose_device(wanted: str = "auto", process: int = 0) -> torch.device:
    """The device of a process.

    Args:
        wanted: `cpu`, `cuda`, or `auto` for CUDA where it is available.
        process: number of the process on this machine, from 0; each one has its own GPU.

    Raises:
        GalipEdgeError: CUDA is not available, or there are fewer GPUs than processes.
    """
    gpus = torch.cuda.device_count() if wanted != "cpu" else 0
    if wanted == "cuda" and not gpus:
        raise GalipEdgeError("device = 'cuda', but PyTorch finds no CUDA device: use 'cpu'")
    if not gpus:
        return torch.device("cpu")
    if process >= gpus:
        raise GalipEdgeError(
            f"process {process} of this machine has no GPU, there are {gpus}: start torchrun with "
            f"--nproc-per-node {gpus}"
        )
    device = torch.device("cuda", process)
    torch.cuda.set_device(device)
    return device


def default_threads(workers: int = 0) -> int:
    """CPU threads for a training process: its share of the machine's cores.

    A thread that waits for a core delays all others, so data workers get one core.
    `OMP_NUM_THREADS` takes precedence.

    Args:
        workers: data-loading processes that run in parallel.
    """
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    processes = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    share = min(available_cores(), torch.get_num_threads()) // processes
    return max(1, share - (1 if workers else 0))


@contextmanager
def compute_settings(
    threads: int, tf32: bool = False, cudnn_benchmark: bool = True
) -> Iterator[None]:
    """Apply torch's global settings, and restore them afterwards.

    Meanwhile, freed memory is kept (`keeping_free_memory`).

    Args:
        threads: of a CPU operation.
        tf32: on CUDA, compute float32 products with 10 bits of mantissa.
        cudnn_benchmark: on CUDA, time convolution algorithms for each new input shape.
    """
    before = torch.get_num_threads()
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    flags = (cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32)
    torch.set_num_threads(threads)
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = cudnn_benchmark, tf32, tf32
    try:
        with keeping_free_memory():
            yield
    finally:
        torch.set_num_threads(before)
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = flags


@contextmanager
def keeping_free_memory() -> Iterator[None]:
    """Let the allocator keep freed memory instead of returning it to the system; glibc only.

    Every step of training allocates tensors of the same sizes. By default, glibc maps each large
    one anew, and the system clears it page by page.
    """
    _set_allocator(_KEEPING)
    try:
        yield
    finally:
        _set_allocator(_DEFAULTS)
        release_free_memory()


def _set_allocator(settings: dict[int, int]) -> None:
    with suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in settings.items():
            mallopt(parameter, value)
