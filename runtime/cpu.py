"""Cores, instruction sets and memory that this process may use."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

# Flags, by their names in Linux's /proc/cpuinfo, that decide which kernels OpenVINO can use.
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
    "asimdhp": "NEON FP16",
    "asimddp": "NEON DOTPROD",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
    "sme": "SME",
}

# The same flags by macOS's names, after `hw.optional.`.
_MAC_FLAGS = {
    "AdvSIMD": "asimd",
    "neon": "asimd",
    "arm.FEAT_FP16": "asimdhp",
    "arm.FEAT_DotProd": "asimddp",
    "arm.FEAT_I8MM": "i8mm",
    "arm.FEAT_BF16": "bf16",
    "arm.FEAT_SME": "sme",
}

# Names of Arm's cores by their part number, which is all that Linux reports.
_ARM = "0x41"
_ARM_CORES = {
    "0xd03": "Cortex-A53",
    "0xd05": "Cortex-A55",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
}

# Values of ONEDNN_MAX_CPU_ISA that exclude VNNI.
_CAPS_WITHOUT_VNNI = ("SSE41", "AVX", "AVX2", "AVX512_CORE")


def available_cores() -> int:
    """Cores that this process may use: its affinity, further limited by its CPU quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, min(cores, int(quota))) if quota is not None else cores


_CGROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def cpu_quota(root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> float | None:
    """Cores that the process's control groups grant, or None without a limit.

    Args:
        root: mount point of the control group file systems.
        membership: the process's groups, one `ID:CONTROLLERS:PATH` a line.
    """
    return _least("cpu", _quota_v2, _quota_v1, root, membership)


def memory_limit(root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int | None:
    """Bytes that the process's control groups grant, or None without a limit.

    Arguments as of `cpu_quota`.
    """
    found = _least("memory", _memory_v2, _memory_v1, root, membership)
    return None if found is None else int(found)


def _least(
    controller: str,
    read_v2: Callable[[Path], float | None],
    read_v1: Callable[[Path], float | None],
    root: Path,
    membership: Path,
) -> float | None:
    """The smallest limit of a controller.

    A group is also limited by its ancestors: the smallest limit up to the root counts. Inside a
    container the root is the container's own group; a systemd unit's group lies below the root.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    limits = []
    for line in [*lines, "0::/", f"0:{controller}:/"]:  # always the roots
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            mounts, read = [root, root / "unified"], read_v2
        elif controller in controllers.split(","):
            mounts, read = [root / controller, root / controllers], read_v1
        else:
            continue
        for mount in mounts:
            limits += [read(group) for group in _group_and_ancestors(mount, path)]
    return min((limit for limit in limits if limit is not None), default=None)


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


# Version 1's value for no limit: the largest multiple of a page.
_NO_MEMORY_LIMIT = 1 << 62


def _memory_v2(group: Path) -> float | None:
    try:
        return int((group / "memory.max").read_text())
    except (OSError, ValueError):  # no such file, or `max`
        return None


def _memory_v1(group: Path) -> float | None:
    try:
        limit = int((group / "memory.limit_in_bytes").read_text())
    except (OSError, ValueError):
        return None
    return limit if limit < _NO_MEMORY_LIMIT else None


def cpu_name() -> str:
    """Name of the processor, as reported by its vendor."""
    return _processor().name or platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Names of the vector instruction sets that matter for inference (empty if unknown)."""
    flags = _processor().flags
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
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Resident memory of this process; 0 except on Linux."""
    try:
        fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return int(fields[1]) * mmap.PAGESIZE


@dataclass(frozen=True)
class _Processor:
    """Processor as the system describes it; empty if it does not.

    Attributes:
        name: the vendor's.
        flags: instruction sets by Linux's names.
    """

    name: str = ""
    flags: frozenset[str] = frozenset()


def _processor() -> _Processor:
    if sys.platform == "darwin":
        return _of_mac(_sysctl())
    if sys.platform == "win32":
        return _of_windows()
    return _of_linux(_cpuinfo())


def _cpuinfo(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Fields of the first processor, and those after the last one."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    info: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        info.setdefault(key.strip(), value.strip())
    return info


def _of_linux(info: dict[str, str]) -> _Processor:
    flags = frozenset((info.get("flags") or info.get("Features") or "").split())
    if name := info.get("model name"):
        return _Processor(name, flags)
    core = _ARM_CORES.get(info.get("CPU part", "")) if info.get("CPU implementer") == _ARM else None
    board = info.get("Model", "")
    return _Processor(f"{core} ({board})" if core and board else core or board, flags)


@functools.cache
def _sysctl() -> str:
    command = ["/usr/sbin/sysctl", "machdep.cpu.brand_string", "hw.optional"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def _of_mac(sysctl: str) -> _Processor:
    """From the output of sysctl, one `key: value` per line."""
    info = dict(line.split(": ", 1) for line in sysctl.splitlines() if ": " in line)
    flags = {flag for name, flag in _MAC_FLAGS.items() if info.get(f"hw.optional.{name}") == "1"}
    return _Processor(info.get("machdep.cpu.brand_string", "").strip(), frozenset(flags))


@functools.cache
def _of_windows() -> _Processor:
    """From the CPUID instruction: Windows itself does not report VNNI."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where it can read nothing
        try:
            from archspec.cpu import brand_string, detect

            return _Processor(brand_string() or "", frozenset(detect.detected_info().features))
        except (ImportError, OSError, AttributeError):
            return _Processor()
