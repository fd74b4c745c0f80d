"""Mixed precision: which operations run in 16 bits, and the loss scale that float16 needs."""

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
    if kind not in ("cpu", "cuda"):  # which autocast may not know, such as meta
        kind, dtype, precision = "cpu", torch.bfloat16, "float32"
    return torch.autocast(kind, dtype, enabled=precision != "float32")


def fastest_precision(
    device: torch.device, wanted: Precision, without_bfloat16: Precision = "float16"
) -> Precision:
    """`wanted`, or a replacement, with a warning, where the device only emulates bfloat16.

    A CPU without AVX-512 does so up to a hundred times slower, and takes float32. So do GPUs
    before compute capability 8.0, such as T4 and V100, which multiply in float16 instead.

    Args:
        device: to compute on.
        wanted: precision of the forward passes.
        without_bfloat16: what such a GPU takes; float16 needs a loss scale.
    """
    if wanted != "bfloat16" or _has_bfloat16(device):
        return wanted
    instead: Precision = "float32" if device.type == "cpu" else without_bfloat16
    name = "CPU" if device.type == "cpu" else "GPU"
    _log.warning(
        "this %s has no bfloat16: training in %s, which is much faster here", name, instead
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
    """The factor that keeps float16 gradients from vanishing; 1 in other precisions.

    Doubled after 2000 good steps and halved after a bad one, as torch's GradScaler does. Below
    64 it is reset to 16384 (the authors' rule), so that one bad stretch does not end training.

    Attributes:
        enabled: False in other precisions.
        value: the factor.
        searching: True until gradients were finite for the first time. Until then a step can be
            computed again with a lower scale, so that it is not lost.
    """

    def __init__(self, precision: Precision) -> None:
        self.enabled = precision == "float16"
        self.value = _START if self.enabled else 1.0
        self.good_steps = 0
        self.searching = self.enabled

    def lower(self) -> bool:
        """Halve the scale; False at the floor, where nothing is changed."""
        if self.value / 2 < _FLOOR:
            return False
        self.value /= 2
        return True

    def update(self, finite: bool) -> None:
        """Adapt to whether the last gradients were finite."""
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
        """Continue from `state`, unless the precision is another one now."""
        if self.enabled and state["value"] != 1.0:
            self.value, self.good_steps = state["value"], int(state["good_steps"])
            self.searching = bool(state.get("searching", 0.0))
