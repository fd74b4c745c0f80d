"""What this machine's CPU offers: cores that we may use, and the instructions that matter."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# Flags of /proc/cpuinfo that decide which kernels OpenVINO can use.
_INSTRUCTION_SETS = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "avx512_fp16": "AVX-512 FP16",
    "amx_int8": "AMX INT8",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "asimddp": "NEON DOTPROD",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
}

# Values of ONEDNN_MAX_CPU_ISA that rule VNNI out.
_CAPS_WITHOUT_VNNI = ("SSE41", "AVX", "AVX2", "AVX512_CORE")


def available_cores() -> int:
    """Cores that this process may use: its affinity, further limited by a container's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _container_quota()
    return max(1, min(cores, int(quota))) if quota is not None else cores


def _container_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Cores that the control group (version 2, else 1) grants, or None if it sets no limit."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        microseconds = int((root / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((root / "cpu/cpu.cfs_period_us").read_text())
        return microseconds / period_us if microseconds > 0 else None
    except (OSError, ValueError):
        return None


def cpu_name() -> str:
    """The processor's name, as its vendor wrote it."""
    return _cpuinfo().get("model name", "") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Names of the vector instruction sets that matter for inference (empty if unknown)."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return [name for flag, name in _INSTRUCTION_SETS.items() if flag in flags]


def multiplies_int8_matrices_slowly() -> bool:
    """Whether this is an x86 without the instructions for sums of INT8 products (VNNI, AMX).

    Or one whose kernels are capped below them (`ONEDNN_MAX_CPU_ISA`).
    """
    sets = instruction_sets()
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _CAPS_WITHOUT_VNNI:
        return "AVX2" in sets
    return "AVX2" in sets and not any("VNNI" in name or "AMX" in name for name in sets)


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    block = text.split("\n\n")[0]
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
