"""Progress of a conversion: named steps, and counts within long ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

OnStep = Callable[[str], None]
OnCount = Callable[[int, int], None]


@dataclass
class Progress:
    """Progress reports to two functions.

    Attributes:
        on_step: called with a few words at the start of a step.
        on_count: called with the finished and the total count; one thread at a time.
    """

    on_step: OnStep = lambda _: None
    on_count: OnCount = lambda _, __: None
    _done: int = 0
    _total: int = 0
    _lock: Lock = field(default_factory=Lock)

    def step(self, text: str, total: int = 0) -> None:
        """Begin a step; `total` is the number of calls of `advance` that follow, 0 if unknown."""
        self._done, self._total = 0, total
        self.on_step(text)

    def advance(self) -> None:
        """Count one more. Thread-safe."""
        with self._lock:
            self._done += 1
            self.on_count(self._done, self._total)
