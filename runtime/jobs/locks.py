"""Lock files of a job in a local folder, below `.job/`.

    lock         held by the process that leads the job
    running/     a file for each worker process, which holds it
    held/        a file for each shard that is being written, held by its worker

The locks of a killed process are free (`runtime.locks`).
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.errors import JobError
from runtime.locks import Lock, remove_locked, try_lock

# Whether the locked file still exists under its name.
Held = Callable[[], bool]

# Seconds between two attempts.
_INTERVAL = 0.05
# Times that other processes may remove the folder of a lock while it is taken.
_MOST_REMOVALS = 100

_LOCK, _RUNNING, _HELD = "lock", "running", "held"
# Locked by the workers of earlier versions.
_FORMER_WORKERS = "workers"


@contextmanager
def file_lock(file: Path, seconds: float, busy: str) -> Iterator[Held]:
    """Lock a file, which is created if it does not exist.

    Yields a function that reports whether the locked file still exists under its name.

    Raises JobError with the text `busy` if the lock is not available within `seconds`.
    """
    lock = _locked(file, seconds, busy)
    try:
        yield lock.held
    finally:
        lock.release()


@contextmanager
def leader_lock(state: Path, patience: float, busy: str) -> Iterator[Held]:
    """Be the only process that leads the job whose state is in `state`.

    Raises JobError if another process leads it, or workers of an earlier run do not end within
    `patience` seconds.
    """
    with file_lock(state / _LOCK, 0, busy) as held:
        until = time.monotonic() + patience
        for file in _worker_files(state):
            remove_locked(_locked(file, until - time.monotonic(), busy), file)
        yield held


@contextmanager
def worker_lock(state: Path) -> Iterator[None]:
    """Be a worker of the job."""
    name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.lock"
    with _own_file(state / _RUNNING / name, 0, f"cannot lock {name}"):
        yield


@contextmanager
def shard_lock(state: Path, number: int, seconds: float, busy: str) -> Iterator[None]:
    """Be the only process that writes a shard. Raises JobError with the text `busy`."""
    with _own_file(state / _HELD / f"{number}.lock", seconds, busy):
        yield


def remove_locks(state: Path) -> None:
    """Remove the files of `leader_lock`, while it is held."""
    for name in (_LOCK, f"{_LOCK}.owner", _FORMER_WORKERS):
        with suppress(OSError):  # an open file, on Windows
            (state / name).unlink(missing_ok=True)
    for name in (_RUNNING, _HELD):
        with suppress(OSError):
            (state / name).rmdir()


def _worker_files(state: Path) -> list[Path]:
    names = {path.name.removesuffix(".owner") for path in (state / _RUNNING).glob("*.lock*")}
    former = state / _FORMER_WORKERS
    return [state / _RUNNING / name for name in sorted(names)] + [former] * former.exists()


@contextmanager
def _own_file(file: Path, seconds: float, busy: str) -> Iterator[None]:
    """Hold a file that exists only meanwhile."""
    lock = _locked(file, seconds, busy)
    try:
        yield
    finally:
        remove_locked(lock, file)
        with suppress(OSError):  # not empty
            file.parent.rmdir()


def _locked(file: Path, seconds: float, busy: str) -> Lock:
    until = time.monotonic() + seconds
    removals = 0
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = try_lock(file)
        except OSError as error:
            # The folder was empty, and another process removed it: not a reason to wait or fail.
            # `mkdir` raises FileExistsError if the folder vanishes before its second look.
            removals += 1
            vanished = isinstance(error, FileNotFoundError | FileExistsError)
            if vanished and removals < _MOST_REMOVALS:
                continue
            raise JobError(f"cannot write {file}: {error.strerror}") from error
        if lock is not None:
            return lock
        if time.monotonic() >= until:
            raise JobError(busy)
        time.sleep(_INTERVAL)
