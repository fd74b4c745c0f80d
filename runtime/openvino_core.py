"""OpenVINO's core, one for the whole process, and what else of the process it touches."""

from __future__ import annotations

import locale
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from threading import Lock

import openvino as ov


@cache
def openvino_core() -> ov.Core:
    """The core that everything shares, and that is never destroyed.

    Each core gives the main thread another stack for signals and takes it away again when it is
    destroyed. Two that do not go in the reverse order of their coming leave the thread with memory
    that is no longer there, and its next signal kills the process (seen with 2026.4).
    """
    return ov.Core()


class _Locale:
    """The process's locale, to be put back when the last of those who changed it has left."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._saved = ""

    @contextmanager
    def kept(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._saved = locale.setlocale(locale.LC_ALL)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    locale.setlocale(locale.LC_ALL, self._saved)


@cache
def _locale() -> _Locale:
    return _Locale()


def keep_locale() -> AbstractContextManager[None]:
    """To be entered where OpenVINO reads a model or takes one from its cache.

    It sets the process's locale to C meanwhile, and two threads at once leave it so: then no text
    of this process is UTF-8 any more (seen with 2026.4).
    """
    return _locale().kept()
