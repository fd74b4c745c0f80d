"""Parts made by several processes of this machine, each with its share of the cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from runtime.cpu import available_cores
from runtime.errors import GalipEdgeError, JobError
from runtime.jobs.journal import Entry
from runtime.jobs.parts import Part
from runtime.jobs.place import place_of
from runtime.jobs.worker import Kept, Work, Worker

# A part that ended so many processes is not given to another one.
_DEATHS = 3

# Seconds after which a worker that waits looks whether it shall stop.
_PATIENCE = 0.2


@dataclass
class _Process:
    process: BaseProcess
    connection: Connection
    part: Part | None = None
    # Of the part, by this process and those that died of it: what earlier runs did, and the entries
    # that were told. None before anything.
    known: int | None = None
    told: set[tuple[int, int]] = field(default_factory=set)


class Processes:
    """An engine of `count` processes.

    One that dies, as by a lack of memory, is replaced, and what it was at is done by another.

    Args:
        count: at least 1.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"workers must be at least 1, got {count}")
        self._count = count

    def run(
        self, work: Work, parts: Iterator[Part], stopped: Callable[[], bool]
    ) -> Iterator[Kept | Entry]:
        """See Engine."""
        cores = work.options.threads or available_cores()
        share = replace(work.options, threads=max(1, cores // self._count))
        context = multiprocessing.get_context("spawn")  # a fork would copy OpenVINO's threads
        stop = context.Event()
        pool: list[_Process] = []
        again: list[_Process] = []
        deaths: dict[int, int] = {}

        def start() -> _Process:
            ours, theirs = context.Pipe()
            arguments = (replace(work, options=share), theirs, stop)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            return _Process(process, ours)

        def give(worker: _Process) -> bool:
            """The next part, if there is one and we go on."""
            worker.part = None
            if stopped():
                stop.set()
                return False
            if again:
                dead = again.pop()
                worker.part, worker.known, worker.told = dead.part, dead.known, dead.told
            elif (part := next(parts, None)) is not None:
                worker.part, worker.known, worker.told = part, None, set()
            if worker.part is None:
                return False
            with suppress(OSError):  # of one that just died, which is noticed when it is heard
                worker.connection.send(worker.part)
            return True

        try:
            while len(pool) < self._count:
                pool.append(start())
                if not give(pool[-1]):
                    break
            while busy := [worker for worker in pool if worker.part is not None]:
                if stopped():
                    stop.set()
                for ready in wait([worker.connection for worker in busy], _PATIENCE):
                    worker = next(w for w in busy if w.connection is ready)
                    part = worker.part
                    assert part is not None
                    try:
                        message: Any = worker.connection.recv()
                    except (EOFError, OSError):
                        deaths[part.number] = deaths.get(part.number, 0) + 1
                        if deaths[part.number] == _DEATHS:
                            raise JobError(_died(part)) from None
                        again.append(worker)
                        pool.remove(worker)
                        pool.append(start())
                        give(pool[-1])
                        continue
                    if isinstance(message, GalipEdgeError):
                        raise message
                    if message is None:
                        give(worker)
                    elif isinstance(message, Kept):
                        # One that died may have made some that it could not tell of any more.
                        first, told = worker.known is None, len(worker.told)
                        before = 0 if worker.known is None else worker.known + told
                        worker.known = max(worker.known or 0, message.count - told)
                        # Entries of a shard that was not finished come again, and are not told.
                        kept = max(0, message.count - before)
                        yield Kept(kept, message.lost if first else 0)
                    else:
                        place = message["row"], message["index"]
                        if place not in worker.told:
                            worker.told.add(place)
                            yield message
        finally:
            stop.set()
            for worker in pool:
                worker.connection.close()  # which ends the process
            for worker in pool:
                worker.process.join()


def _died(part: Part) -> str:
    rows = [item.row for item in part.items] or [0]
    return (
        f"a worker process died {_DEATHS} times at rows {min(rows)} to {max(rows)}; if memory ran "
        "out, use fewer --workers"
    )


def _serve(work: Work, connection: Connection, stop: Any) -> None:
    """What a process does: parts, until there are no more."""
    # The first process decides when all end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = os.getppid()

    def stopped() -> bool:
        return bool(stop.is_set()) or os.getppid() != parent

    try:
        with place_of(work.out).share():
            worker = Worker(work)
            while True:
                part: Part = connection.recv()
                for known_or_entry in worker.run(part, stopped):
                    connection.send(known_or_entry)
                connection.send(None)
    except GalipEdgeError as error:
        connection.send(error)
    except (EOFError, OSError):
        pass  # the first process has gone, or wants no more
