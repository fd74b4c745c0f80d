"""OpenVINO's devices, and how each of them is used.

A device has OpenVINO's name: CPU, GPU (or GPU.1, the second one), NPU. AUTO is the fastest one on
this machine within tolerance of the bundle's golden numbers (`runtime.selection`). It is not
OpenVINO's own AUTO, which begins on the CPU and moves to another device while requests run, so that
an image would depend on when it was generated.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from dataclasses import asdict, dataclass
from typing import Any

import openvino as ov

from runtime.cpu import cpu_name, instruction_sets
from runtime.errors import GalipEdgeError
from runtime.openvino_core import openvino_core

AUTO, CPU = "AUTO", "CPU"

_NAME = re.compile(r"(CPU|GPU|NPU)(\.\d{1,3})?|AUTO")

# Names of OpenVINO's capabilities that are precisions.
_PRECISIONS = {"FP32": "f32", "FP16": "f16", "BF16": "bf16", "INT8": "int8"}

# Names of a device's memory among its properties.
_MEMORY = {"GPU": "GPU_DEVICE_TOTAL_MEM_SIZE", "NPU": "NPU_DEVICE_TOTAL_MEM_SIZE"}

# Releases of OpenVINO whose blobs without weights were tested, on x86-64 only: they rely on how its
# CPU plugin finds constants in the file of weights (tests/runtime/test_compiled_cache.py).
_WEIGHTLESS_RELEASES = ("2026.3", "2026.4")
_X86_64 = ("x86_64", "amd64")

# Images in parallel on a device that is not the CPU, unless the user asks for more.
_STREAMS = 1


class DeviceError(GalipEdgeError):
    """The requested device does not exist on this machine."""


@dataclass(frozen=True)
class Device:
    """A device of this machine.

    Attributes:
        name: OpenVINO's, such as GPU.1.
        full_name: the vendor's.
        precisions: of its arithmetic, of f32, f16, bf16 and int8.
        memory: bytes that it can use; None if unknown.
        driver: its version, where OpenVINO reports one.
    """

    name: str
    full_name: str
    precisions: tuple[str, ...]
    memory: int | None = None
    driver: str | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.full_name})"

    @property
    def kind(self) -> str:
        """CPU, GPU or NPU."""
        return self.name.partition(".")[0]

    @property
    def is_cpu(self) -> bool:
        """True for the CPU."""
        return self.kind == CPU

    @property
    def prefers_float16(self) -> bool:
        """True if float16 is its fast floating point: GPUs, NPUs, and CPUs other than x86."""
        return "f16" in self.precisions and not (self.is_cpu and is_x86())

    def precision(self, of_bundle: str) -> str:
        """Precision of layers that are not INT8.

        Args:
            of_bundle: the bundle's on x86 CPUs, f32 or bf16.
        """
        if self.prefers_float16:
            return "f16"
        return of_bundle if of_bundle in self.precisions else "f32"

    @property
    def keeps_weightless(self) -> bool:
        """True if compiled models are cached without weights (`runtime.compiled_cache`).

        Otherwise OpenVINO's own cache is used, with a second copy of the weights.
        """
        release = ".".join(ov.__version__.split(".")[:2])
        return self.is_cpu and is_x86() and release in _WEIGHTLESS_RELEASES

    def properties(self, precision: str, streams: int, threads: int) -> dict[str, Any]:
        """OpenVINO's settings for compiling a model.

        Args:
            precision: of layers that are not INT8: f32, f16 or bf16.
            streams: images computed in parallel.
            threads: cores of the CPU, for all streams together.
        """
        found: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        }
        if self.is_cpu:
            found |= {
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": threads,
                # Pinned threads of two processes on one machine would queue for the same cores.
                "ENABLE_CPU_PINNING": False,
            }
        elif self.kind == "GPU":
            found["NUM_STREAMS"] = streams
        return found

    def streams(self, threads: int) -> int:
        """Number of images to compute in parallel when many are generated.

        Args:
            threads: cores of the CPU that may be used.
        """
        return threads if self.is_cpu else _STREAMS

    @property
    def identity(self) -> str:
        """Text that differs where compiled models differ: hardware, driver, enabled kernels."""
        if self.is_cpu:
            capped = [os.environ.get(name) for name in ("ONEDNN_MAX_CPU_ISA", "OV_CPU_MAX_ISA")]
            return f"{self.name} {cpu_name()} {instruction_sets()} {capped}"
        return f"{self.name} {self.full_name} {self.driver}"

    def described(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "precisions": list(self.precisions)}


def is_x86() -> bool:
    """True on x86-64."""
    return platform.machine().lower() in _X86_64


def checked_name(value: object) -> str:
    """A device's name in capitals. Raises ValueError if it is not one."""
    name = value.upper() if isinstance(value, str) else ""
    if not _NAME.fullmatch(name):
        raise ValueError(f"device must be CPU, GPU, GPU.1, NPU or AUTO, got {value!r:.60}")
    return name


def available_devices() -> list[Device]:
    """The devices of this machine, the CPU first."""
    names = [name for name in openvino_core().available_devices if _NAME.fullmatch(name)]
    return [_device(name) for name in sorted(names, key=lambda name: (name != CPU, name))]


def device_named(name: str) -> Device:
    """The device of this name; GPU means GPU.0 where there are several.

    Raises:
        DeviceError: this machine does not have it.
        ValueError: it is not a device's name, or it is AUTO.
    """
    name = checked_name(name)
    if name == AUTO:
        raise ValueError("AUTO is not one device")
    names = openvino_core().available_devices
    if name in names:
        return _device(name)
    if "." not in name and (first := next((n for n in names if n.startswith(f"{name}.")), None)):
        return _device(first)
    if name.endswith(".0") and (only := name.partition(".")[0]) in names:
        return _device(only)
    have = ", ".join(map(str, available_devices())) or "none"
    raise DeviceError(f"OpenVINO finds no {name} on this machine{_advice(name)}; available: {have}")


def devices_for(asked: str) -> list[Device]:
    """The candidates for the name `asked`: several for AUTO only.

    Raises DeviceError if the device does not exist.
    """
    return available_devices() if asked == AUTO else [device_named(asked)]


def total_memory() -> int | None:
    """Bytes of the machine's memory; None if unknown."""
    if sys.platform == "win32":
        return _windows_memory()
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _advice(name: str) -> str:
    drivers = {"GPU": "Intel's OpenCL runtime", "NPU": "Intel's NPU driver"}
    driver = drivers.get(name.partition(".")[0])
    return f" (it needs {driver})" if driver else ""


def _device(name: str) -> Device:
    capabilities = _property(name, "OPTIMIZATION_CAPABILITIES") or ()
    precisions = tuple(_PRECISIONS[each] for each in capabilities if each in _PRECISIONS)
    kind = name.partition(".")[0]
    if kind == CPU:
        return Device(name, _cpu_full_name(), precisions, total_memory())
    memory, driver = _property(name, _MEMORY[kind]), _property(name, f"{kind}_DRIVER_VERSION")
    return Device(
        name,
        str(_property(name, "FULL_DEVICE_NAME") or name),
        precisions,
        int(memory) if memory else None,
        None if driver is None else str(driver),
    )


def _cpu_full_name() -> str:
    # Some vendors put several spaces in a row.
    return " ".join(str(_property(CPU, "FULL_DEVICE_NAME") or cpu_name()).split())


def _property(device: str, name: str) -> Any:
    """A property; None where the device does not have it."""
    try:
        return openvino_core().get_property(device, name)
    except RuntimeError:
        return None


def _windows_memory() -> int | None:
    import ctypes

    class Status(ctypes.Structure):
        """MEMORYSTATUSEX."""

        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            ("total", ctypes.c_ulonglong),
            ("others", ctypes.c_ulonglong * 6),
        )

    status = Status(length=ctypes.sizeof(Status))
    windll: Any = getattr(ctypes, "windll", None)
    if windll is None or not windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.total)
