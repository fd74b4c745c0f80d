"""Cores, instruction sets and memory that this process may use."""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from contextlib import suppress
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

# Values of ONEDNN_MAX_CPU_ISA that exclude VNNI.
_CAPS_WITHOUT_VNNI = ("SSE41", "AVX", "AVX2", "AVX512_CORE")


def available_cores() -> int:
    """Cores that this process may use: its affinity, further limited by its CPU quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _cpu_quota()
    return max(1, min(cores, int(quota))) if quota is not None else cores


def _cpu_quota(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> float | None:
    """Cores that the process's control groups grant, or None without a limit.

    A group is also limited by its ancestors: the smallest quota up to the root counts. Inside a
    container the root is the container's own group; a systemd unit's group lies below the root.

    Args:
        root: mount point of the control group file systems.
        membership: the process's groups, one `ID:CONTROLLERS:PATH` a line.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    quotas = []
    for line in [*lines, "0::/", "0:cpu:/"]:  # always the roots
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            mounts, read = [root, root / "unified"], _quota_v2
        elif "cpu" in controllers.split(","):
            mounts, read = [root / "cpu", root / controllers], _quota_v1
        else:
            continue
        for mount in mounts:
            quotas += [read(group) for group in _group_and_ancestors(mount, path)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _group_and_ancestors(mount: Path, path: str) -> list[Path]:
    # `..` stands for groups outside of a namespace, which cannot be read from inside.
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return [mount.joinpath(*parts[:length]) for length in range(len(parts), -1, -1)]


def _quota_v2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(group: Path) -> float | None:
    try:
        microseconds = int((group / "cpu.cfs_quota_us").read_text())
        period_us = int((group / "cpu.cfs_period_us").read_text())
        return microseconds / period_us if microseconds > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def cpu_name() -> str:
    """Name of the processor, as reported by its vendor."""
    return _cpuinfo().get("model name", "") or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Names of the vector instruction sets that matter for inference (empty if unknown)."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return [name for flag, name in _INSTRUCTION_SETS.items() if flag in flags]


def lacks_vnni() -> bool:
    """True if this x86 CPU lacks instructions for sums of INT8 products (VNNI or AMX).

    Also where `ONEDNN_MAX_CPU_ISA` excludes them. False on other architectures.
    """
    sets = instruction_sets()
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in _CAPS_WITHOUT_VNNI:
        return "AVX2" in sets
    return "AVX2" in sets and not any("VNNI" in name or "AMX" in name for name in sets)


def release_free_memory() -> None:
    """Return free memory of the allocator to the system; glibc only."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Resident memory of this process; 0 except on Linux."""
    try:
        fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return int(fields[1]) * mmap.PAGESIZE


def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    block = text.split("\n\n")[0]
    pairs = (line.partition(":") for line in block.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
