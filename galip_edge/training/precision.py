"""Mixed precision: autocast, and the loss scale of float16."""

from __future__ import annotations

import logging
from typing import Literal

import torch

_log = logging.getLogger(__name__)

Precision = Literal["float32", "float16", "bfloat16"]

_START, _GROWTH_INTERVAL = 65536.0, 2000
_FLOOR, _RESET = 64.0, 16384.0


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context of a forward pass; does nothing for float32."""
    dtype, kind = getattr(torch, precision), device.type
    if kind not in ("cpu", "cuda"):  # autocast does not support meta and others
        kind, dtype, precision = "cpu", torch.bfloat16, "float32"
    return torch.autocast(kind, dtype, enabled=precision != "float32")


def fastest_precision(
    device: torch.device, wanted: Precision, without_bfloat16: Precision = "float16"
) -> Precision:
    """`wanted`, or with a warning a replacement for bfloat16 on devices that only emulate it.

    Emulation is up to a hundred times slower on CPUs without AVX-512, for which float32 is the
    replacement, and slow on GPUs before compute capability 8.0, such as T4 and V100.

    Args:
        device: of the computation.
        wanted: precision of the forward passes.
        without_bfloat16: replacement on such a GPU; float16 needs a loss scale.
    """
    if wanted != "bfloat16" or _has_bfloat16(device):
        return wanted
    instead: Precision = "float32" if device.type == "cpu" else without_bfloat16
    name = "CPU" if device.type == "cpu" else "GPU"
    _log.warning(
        "this %s has no bfloat16: training in %s instead, which is much faster", name, instead
    )
    return instead


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cpu":
        return _cpu_has_bfloat16()
    if device.type == "cuda":
        return _gpu_has_bfloat16(device)
    return True


def _cpu_has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _gpu_has_bfloat16(device: torch.device) -> bool:
    if torch.version.hip:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return torch.cuda.get_device_capability(device) >= (8, 0)


class LossScale:
    """Factor of the loss against underflow of float16 gradients; 1 in other precisions.

    Doubled after 2000 finite steps, and halved after a non-finite one, as in torch's GradScaler.
    Instead of falling below 64 it is reset to 16384, as by the authors, so training can recover.

    Attributes:
        enabled: False in other precisions.
        value: the factor.
        searching: True until the first finite gradients. Until then a step is recomputed with a
            lower scale, instead of being skipped.
    """

    def __init__(self, precision: Precision) -> None:
        self.enabled = precision == "float16"
        self.value = _START if self.enabled else 1.0
        self.good_steps = 0
        self.searching = self.enabled

    def lower(self) -> bool:
        """Halve the scale; False without a change at the lower limit."""
        if self.value / 2 < _FLOOR:
            return False
        self.value /= 2
        return True

    def update(self, finite: bool) -> None:
        """Adapt the scale after finite or non-finite gradients."""
        if not self.enabled:
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if finite:
            self.searching = False
        elif not self.lower():
            self.value = _RESET
        if self.good_steps == _GROWTH_INTERVAL:
            self.value, self.good_steps = self.value * 2, 0

    def state(self) -> dict[str, float]:
        """Plain values; `load` is the inverse."""
        return {
            "value": self.value,
            "good_steps": self.good_steps,
            "searching": float(self.searching),
        }

    def load(self, state: dict[str, float]) -> None:
        """Restore `state`, unless the precision has changed."""
        if self.enabled and state["value"] != 1.0:
            self.value, self.good_steps = state["value"], int(state["good_steps"])
            self.searching = bool(state.get("searching", 0.0))
