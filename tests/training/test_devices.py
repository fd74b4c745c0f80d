"""Where training computes, and with how many threads."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from galip_edge import devices
from galip_edge.devices import choose_device, compute_settings, default_threads
from runtime.errors import GalipEdgeError


@pytest.fixture
def gpus(monkeypatch):
    """A machine with two GPUs, as far as choosing one goes."""
    chosen = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    return chosen


def test_auto_takes_cuda_where_it_is_available(gpus):
    assert choose_device("auto") == torch.device("cuda", 0)
    assert choose_device("cuda", process=1) == torch.device("cuda", 1)
    assert gpus == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(GalipEdgeError, match="process 2 .* has no GPU, there are 2"):
        choose_device("auto", process=2)


def test_without_cuda(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(GalipEdgeError, match="finds no CUDA device: use 'cpu'"):
        choose_device("cuda")


@pytest.mark.parametrize(
    ("cores", "environment", "workers", "threads"),
    [
        (8, {}, 0, 8),
        (8, {}, 2, 7),  # one core for the data workers
        (2, {}, 1, 1),
        (1, {}, 2, 1),
        (8, {"LOCAL_WORLD_SIZE": "4"}, 0, 2),
        (8, {"LOCAL_WORLD_SIZE": "16"}, 2, 1),
        (8, {"OMP_NUM_THREADS": "3"}, 2, 3),
    ],
)
def test_default_threads(monkeypatch, cores, environment, workers, threads):
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(devices, "available_cores", lambda: cores)
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    assert default_threads(workers) == threads


def test_settings_are_restored():
    def settings():
        backends = torch.backends
        return (
            torch.get_num_threads(),
            backends.cudnn.benchmark,
            backends.cudnn.allow_tf32,
            backends.cuda.matmul.allow_tf32,
        )

    before = settings()
    with compute_settings(before[0] + 1, tf32=True, cudnn_benchmark=True):
        assert settings() == (before[0] + 1, True, True, True)
    assert settings() == before
    with pytest.raises(ZeroDivisionError), compute_settings(1, tf32=False, cudnn_benchmark=False):
        assert settings() == (1, False, False, False)
        raise ZeroDivisionError
    assert settings() == before


_COUNT_PAGE_FAULTS = """
import resource, torch
from galip_edge.devices import compute_settings
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        kept = [torch.ones(4 << 20) for _ in range(4)]  # 16 MiB each
        del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
outside = faults()
with compute_settings(1):
    inside = faults()
print(outside, inside, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is set")
def test_training_keeps_the_memory_that_it_frees():
    done = subprocess.run(
        [sys.executable, "-c", _COUNT_PAGE_FAULTS], capture_output=True, text=True, check=True
    )
    outside, inside, afterwards = map(int, done.stdout.split())
    assert inside < outside / 4
    assert afterwards > 2 * inside
