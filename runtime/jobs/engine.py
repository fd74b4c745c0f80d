"""Who does the work of a job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from runtime.jobs.journal import Entry
from runtime.jobs.parts import Part
from runtime.jobs.worker import Kept, Work, Worker


class Engine(Protocol):
    """Has all parts of a job made."""

    def run(
        self, work: Work, parts: Iterator[Part], stopped: Callable[[], bool]
    ) -> Iterator[Kept | Entry]:
        """What `Worker.run` gives of each part, in any order of the parts.

        Args:
            work: what is done with each part.
            parts: taken as they are needed, so that there may be any number of them.
            stopped: asked often; what is in flight is finished then.

        Raises:
            GalipEdgeError: the model cannot be loaded, or a file cannot be written.
        """


class InProcess:
    """All in this process, one part after the other."""

    def run(
        self, work: Work, parts: Iterator[Part], stopped: Callable[[], bool]
    ) -> Iterator[Kept | Entry]:
        """See Engine."""
        worker = Worker(work)
        for part in parts:
            if stopped():
                return
            yield from worker.run(part, stopped)
