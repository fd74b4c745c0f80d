"""Memory that this process gives back."""

from __future__ import annotations

import ctypes
import mmap
import os
from contextlib import suppress
from pathlib import Path


def release_pages(file: Path) -> None:
    """Give back the memory in which read-only maps of `file` lie.

    What is still needed is read from the file again when it is touched. OpenVINO maps a model's
    weights and keeps the map, though it lays out most of them anew and never looks at it again.
    Does nothing where the kernel is not Linux.
    """
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return
    path = os.fspath(file.resolve())
    for line in maps.splitlines():
        addresses, permissions, *_, name = line.split(maxsplit=5)
        if name == path and "w" not in permissions:
            start, end = (int(address, 16) for address in addresses.split("-"))
            advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def release_free_memory() -> None:
    """Return what the allocator holds free to the system. Does nothing without glibc."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Memory of this process that is in RAM now; 0 where the kernel is not Linux."""
    try:
        fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return int(fields[1]) * mmap.PAGESIZE
