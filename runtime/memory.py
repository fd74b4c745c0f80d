"""Memory that this process gives back."""

from __future__ import annotations

import ctypes
import mmap
import os
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
