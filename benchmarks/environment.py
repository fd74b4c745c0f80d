"""Hardware and versions, without which a figure means nothing."""

from __future__ import annotations

import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from runtime.cpu import available_cores, cpu_name, instruction_sets

_PACKAGES = ("torch", "openvino", "nncf", "onnxruntime", "diffusers", "galip-edge")


def environment() -> dict[str, Any]:
    """Facts about this machine, for JSON."""
    return {
        "date": date.today().isoformat(),
        "cpu": cpu_name(),
        "cores": available_cores(),
        "instruction_sets": instruction_sets(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
    }


def has_cuda() -> bool:
    """True if PyTorch finds a GPU."""
    import torch

    return torch.cuda.is_available()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
