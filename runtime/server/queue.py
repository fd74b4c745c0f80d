"""A bounded queue of images, generated in the order of their requests.

Queued images run in parallel across requests; a single one uses all cores. When the queue is full,
requests are rejected with a time to retry after.
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

from runtime.arrays import Images
from runtime.latent import Interpolation, Latent, interpolation_latent
from runtime.pipeline import Pipeline

_log = logging.getLogger(__name__)

# Weight of the latest image in the moving average of the time per image.
_NEW = 0.1


class QueueFullError(Exception):
    """The queue is full.

    Args:
        seconds: estimated time until it accepts images.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the queue is full: try again in {seconds:.0f} s")
        self.seconds = seconds


@dataclass
class _Queued:
    blend: Interpolation
    future: Future[Images] = field(default_factory=Future)


class GenerationQueue:
    """Generates images in its own thread until it is closed.

    Args:
        pipeline: of the model; used by this queue alone.
        bound: queued images, including those in progress; at least 1.
    """

    def __init__(self, pipeline: Pipeline, bound: int) -> None:
        if bound < 1:
            raise ValueError(f"the queue must hold at least 1 image, got {bound}")
        self._pipeline, self.bound = pipeline, bound
        self._queued: deque[_Queued] = deque()
        self._unfinished = 0  # queued and in progress
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = 0.0
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return self._unfinished

    def submit(self, blends: list[Interpolation]) -> list[Future[Images]]:
        """Queue images (H,W,3); cancelling a future before its turn skips the image.

        Raises:
            QueueFullError: the queue cannot hold all of them.
        """
        queued = [_Queued(blend) for blend in blends]
        with self._changed:
            if self._unfinished + len(queued) > self.bound:
                raise QueueFullError(max(1.0, self._seconds * self._unfinished))
            self._queued.extend(queued)
            self._unfinished += len(queued)
            self._changed.notify()
        return [each.future for each in queued]

    def close(self) -> None:
        """Generate the queued images, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while self._wait_for_work():
            taken: deque[_Queued] = deque()
            started, count = time.perf_counter(), len(self._queued)
            # A single image ends its pass: more may be queued by then, for a parallel pass.
            most = 1 if self._pipeline.parallel_images(count) == 1 else sys.maxsize
            try:
                for image in self._pipeline.synthesize_each(self._rows(taken, most), count):
                    self._finished(1)
                    taken.popleft().future.set_result(image)
                    now = time.perf_counter()
                    latest, started = now - started, now
                    self._seconds += (latest - self._seconds) * (_NEW if self._seconds else 1)
            except Exception as error:  # noqa: BLE001
                # Any failure is returned to its requests; the thread keeps running.
                _log.exception("generation failed")
                self._finished(len(taken))
                for each in taken:
                    each.future.set_exception(error)

    def _finished(self, count: int) -> None:
        with self._changed:
            self._unfinished -= count

    def _wait_for_work(self) -> bool:
        """Wait until something is queued; False when the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._queued or self._closed)
            return bool(self._queued)

    def _rows(self, taken: deque[_Queued], most: int) -> Iterator[Latent]:
        """At most `most` latents in order, including images queued in the meantime."""
        for _ in range(most):
            with self._changed:
                if not self._queued:
                    return
                each = self._queued.popleft()
            if each.future.set_running_or_notify_cancel():
                taken.append(each)
                yield interpolation_latent(self._pipeline, each.blend)
            else:
                self._finished(1)
