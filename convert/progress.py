"""Progress of a conversion: steps in words, and counts inside of long ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

OnStep = Callable[[str], None]
OnCount = Callable[[int, int], None]


@dataclass
class Progress:
    """Reports to two functions.

    Attributes:
        on_step: called with a few words when a step begins.
        on_count: called with what is done of the step and how much there is; by one thread at a
            time.
    """

    on_step: OnStep = lambda _: None
    on_count: OnCount = lambda _, __: None
    _done: int = 0
    _total: int = 0
    _lock: Lock = field(default_factory=Lock)

    def step(self, text: str, total: int = 0) -> None:
        """Begin a step; `total` is the number of calls of `advance` to come, if it is known."""
        self._done, self._total = 0, total
        self.on_step(text)

    def advance(self) -> None:
        """Count one more; from any thread."""
        with self._lock:
            self._done += 1
            self.on_count(self._done, self._total)
