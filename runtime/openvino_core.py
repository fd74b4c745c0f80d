"""OpenVINO's core: one for the whole process."""

from __future__ import annotations

from functools import cache

import openvino as ov


@cache
def openvino_core() -> ov.Core:
    """The core that everything shares, and that is never destroyed.

    Each core gives the main thread another stack for signals and takes it away again when it is
    destroyed. Two that do not go in the reverse order of their coming leave the thread with memory
    that is no longer there, and its next signal kills the process (seen with 2026.4).
    """
    return ov.Core()
