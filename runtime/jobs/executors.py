"""Executors of a job: this process, or several processes with their share of the cores each."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

from runtime.cpu import available_cores
from runtime.errors import GalipEdgeError, JobError, log_to_stderr
from runtime.jobs.shards import Shard
from runtime.jobs.storage import open_storage
from runtime.jobs.worker import Completed, JobSpec, Resumed, Worker

# A shard that killed this many processes ends the job.
_MAX_DEATHS = 3

# Seconds between checks whether the job was stopped.
_POLL = 0.2


class Executor(Protocol):
    """Distributes the shards of a job to workers."""

    def run(
        self, spec: JobSpec, shards: Iterator[Shard], stopped: Callable[[], bool]
    ) -> Iterator[Resumed | Completed]:
        """Yield the events of `Worker.run` for each shard, in any order of the shards.

        Args:
            spec: what to do with each shard.
            shards: consumed as needed, so that there may be any number of them.
            stopped: polled often; images in flight are finished then.

        Raises:
            GalipEdgeError: the model cannot be loaded, or a file cannot be written.
        """


class SerialExecutor(Executor):
    """One shard after the other, in this process."""

    def run(
        self, spec: JobSpec, shards: Iterator[Shard], stopped: Callable[[], bool]
    ) -> Iterator[Resumed | Completed]:
        worker = Worker(spec)
        for shard in shards:
            if stopped():
                return
            yield from worker.run(shard, stopped)


@dataclass
class _Process:
    """A worker process and its shard.

    Attributes:
        kept: items of the shard that earlier runs did; None before the first event.
        reported: positions of the shard's items that were yielded, also by processes that died.
    """

    process: BaseProcess
    connection: Connection
    shard: Shard | None = None
    kept: int | None = None
    reported: set[tuple[int, int]] = field(default_factory=set)

    def receive(self, event: Resumed | Completed) -> Iterator[Resumed | Completed]:
        """Yield the event, less what a process that died with this shard reported already."""
        if isinstance(event, Completed):
            position = event.entry["row"], event.entry["index"]
            if position not in self.reported:
                self.reported.add(position)
                yield event
            return
        # The dead process may have completed items without reporting them.
        first, reported = self.kept is None, len(self.reported)
        before = 0 if self.kept is None else self.kept + reported
        self.kept = max(self.kept or 0, event.kept - reported)
        # Entries of an unfinished shard file are generated again, and were reported before.
        yield Resumed(max(0, event.kept - before), event.lost if first else 0)


class ProcessExecutor(Executor):
    """Several worker processes.

    A process that dies, for example out of memory, is replaced, and another one completes its
    shard.

    Args:
        count: number of processes, at least 1.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"workers must be at least 1, got {count}")
        self._count = count

    def run(
        self, spec: JobSpec, shards: Iterator[Shard], stopped: Callable[[], bool]
    ) -> Iterator[Resumed | Completed]:
        cores = spec.options.threads or available_cores()
        share = replace(spec.options, threads=max(1, cores // self._count))
        context = multiprocessing.get_context("spawn")  # a fork would copy OpenVINO's threads
        stop = context.Event()
        pool: list[_Process] = []
        orphaned: list[_Process] = []  # died; their shards go to other processes
        deaths: dict[int, int] = {}

        def start() -> _Process:
            ours, theirs = context.Pipe()
            arguments = (replace(spec, options=share), theirs, stop)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            return _Process(process, ours)

        def assign(worker: _Process) -> bool:
            """Assign the next shard, if there is one and the job was not stopped."""
            worker.shard = None
            if stopped():
                stop.set()
                return False
            if orphaned:
                dead = orphaned.pop()
                worker.shard, worker.kept, worker.reported = dead.shard, dead.kept, dead.reported
            elif (shard := next(shards, None)) is not None:
                worker.shard, worker.kept, worker.reported = shard, None, set()
            if worker.shard is None:
                return False
            with suppress(OSError):  # it just died, which the next receive notices
                worker.connection.send(worker.shard)
            return True

        try:
            while len(pool) < self._count:
                pool.append(start())
                if not assign(pool[-1]):
                    break
            while busy := [worker for worker in pool if worker.shard is not None]:
                if stopped():
                    stop.set()
                for ready in wait([worker.connection for worker in busy], _POLL):
                    worker = next(w for w in busy if w.connection is ready)
                    shard = worker.shard
                    assert shard is not None
                    try:
                        message: Any = worker.connection.recv()
                    except (EOFError, OSError):
                        deaths[shard.number] = deaths.get(shard.number, 0) + 1
                        if deaths[shard.number] == _MAX_DEATHS:
                            raise JobError(_died(shard)) from None
                        orphaned.append(worker)
                        pool.remove(worker)
                        pool.append(start())
                        assign(pool[-1])
                        continue
                    if isinstance(message, GalipEdgeError):
                        raise message
                    if message is None:  # the shard is complete
                        assign(worker)
                    else:
                        yield from worker.receive(message)
        finally:
            stop.set()
            for worker in pool:
                worker.connection.close()  # ends the process
            for worker in pool:
                worker.process.join()


def _died(shard: Shard) -> str:
    rows = [item.row for item in shard.items] or [0]
    return (
        f"a worker process died {_MAX_DEATHS} times at rows {min(rows)} to {max(rows)}; if memory "
        "ran out, use fewer --workers"
    )


def _serve(spec: JobSpec, connection: Connection, stop: Any) -> None:
    """Main function of a worker process."""
    # The leader decides when workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    log_to_stderr()  # warnings may quote the bundle or the prompts

    def stopped() -> bool:
        return bool(stop.is_set()) or (parent is not None and not parent.is_alive())

    try:
        with open_storage(spec.out).join():
            worker = Worker(spec)
            while True:
                shard: Shard = connection.recv()
                for event in worker.run(shard, stopped):
                    connection.send(event)
                connection.send(None)
    except GalipEdgeError as error:
        connection.send(error)
    except (EOFError, OSError):
        pass  # the leader died, or has no more shards
