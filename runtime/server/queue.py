"""Pictures that are waited for, made in the order in which they were asked for.

Whatever requests they belong to, those that wait are made side by side, as a job's are; one alone
gets all cores. The queue is bounded: who comes too late is told when to come again.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from runtime.images import Images
from runtime.keyframes import Blend
from runtime.latent import Latent, blended
from runtime.pipeline import Pipeline

_log = logging.getLogger(__name__)

# Of the time that a picture takes, how much the latest one counts.
_NEW = 0.1


class QueueFullError(Exception):
    """There is no room for more pictures.

    Args:
        seconds: until there may be.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many pictures are waited for: try again in {seconds:.0f} s")
        self.seconds = seconds


@dataclass
class _Waiting:
    wanted: Blend
    future: Future[Images] = field(default_factory=Future)


class PictureQueue:
    """Makes pictures in a thread of its own, until it is closed.

    Args:
        pipeline: of the model; used by this queue alone.
        bound: pictures that may be waited for, also those that are being made; at least 1.
    """

    def __init__(self, pipeline: Pipeline, bound: int) -> None:
        if bound < 1:
            raise ValueError(f"the queue must have room for at least 1 picture, got {bound}")
        self._pipeline, self.bound = pipeline, bound
        self._waiting: deque[_Waiting] = deque()
        self._unfinished = 0  # those and what is being made
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._work, name="pictures", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return self._unfinished

    def ask(self, wanted: list[Blend]) -> list[Future[Images]]:
        """Wait for pictures (H,W,3). One whose future is cancelled is not made, if it is early.

        Raises:
            QueueFullError: there is no room for all of them.
        """
        waiting = [_Waiting(each) for each in wanted]
        with self._changed:
            if self._unfinished + len(waiting) > self.bound:
                raise QueueFullError(max(1.0, self._seconds * self._unfinished))
            self._waiting.extend(waiting)
            self._unfinished += len(waiting)
            self._changed.notify()
        return [each.future for each in waiting]

    def close(self) -> None:
        """Make what was asked for, and no more."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while self._some():
            taken: deque[_Waiting] = deque()
            started, count = time.perf_counter(), len(self._waiting)
            # One that has all cores ends its pass: more may wait by then, to be made side by side.
            most = 1 if self._pipeline.side_by_side(count) == 1 else sys.maxsize
            try:
                for image in self._pipeline.synthesize_each(self._rows(taken, most), count):
                    self._finished(1)
                    taken.popleft().future.set_result(image)
                    now = time.perf_counter()
                    latest, started = now - started, now
                    self._seconds += (latest - self._seconds) * (_NEW if self._seconds else 1)
            except Exception as error:  # noqa: BLE001
                # Whatever it is, those who wait are told.
                _log.exception("pictures could not be made")
                self._finished(len(taken))
                for each in taken:
                    each.future.set_exception(error)

    def _finished(self, count: int) -> None:
        with self._changed:
            self._unfinished -= count

    def _some(self) -> bool:
        """Wait until there is something to do; False when that is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            return bool(self._waiting)

    def _rows(self, taken: deque[_Waiting], most: int) -> Iterator[Latent]:
        """What is to be made now, in order, also what comes meanwhile; `most` of it."""
        for _ in range(most):
            with self._changed:
                if not self._waiting:
                    return
                next_one = self._waiting.popleft()
            if next_one.future.set_running_or_notify_cancel():
                taken.append(next_one)
                yield blended(self._pipeline, next_one.wanted)
            else:
                self._finished(1)
