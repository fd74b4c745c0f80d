"""OpenVINO's core, one for the process, and protection of the process's locale."""

from __future__ import annotations

import locale
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from threading import Lock

import openvino as ov


@cache
def openvino_core() -> ov.Core:
    """The shared core, never destroyed.

    Each core replaces the signal stack of the main thread, and restores it when it is destroyed.
    Two cores destroyed in the order of their creation leave the thread with a freed stack, and its
    next signal kills the process (seen with 2026.4).
    """
    return ov.Core()


class _Locale:
    """The process's locale, restored when the last nested block ends."""

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
    """Block in which OpenVINO reads or imports a model.

    OpenVINO sets the process's locale to C temporarily; two threads at once leave it there, and the
    process loses UTF-8 (seen with 2026.4).
    """
    return _locale().kept()
