"""One job at a time in a folder, with any number of worker processes.

The kernel lets go of the locks of a process that was killed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import JobError

# For workers of a killed job, which end after the image that they are at.
_PATIENCE_SECONDS = 10.0

# For a worker that a cluster lost sight of, which may go on with its part for a while.
_LOST_SECONDS = 60.0

# Whether a lock's file is still the one that was locked.
Held = Callable[[], bool]


@contextmanager
def locked(folder: Path) -> Iterator[Held]:
    """Be the one process that leads the job whose state is in `folder`.

    Gives a function that says whether the folder is still there, and the same.

    Raises JobError if another process leads it, or if workers of an earlier one do not end.
    """
    busy = f"another process is running the job in {folder.parent}: wait for it, or stop it"
    with _held(folder / "lock", exclusive=True, seconds=0, busy=busy) as held:
        with _held(folder / "workers", exclusive=True, seconds=_PATIENCE_SECONDS, busy=busy):
            pass  # no worker of an earlier job is left
        yield held


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Be a worker of the job whose state is in `folder`."""
    busy = f"the job in {folder.parent} is about to start"
    with _held(folder / "workers", exclusive=False, seconds=_PATIENCE_SECONDS, busy=busy):
        yield


@contextmanager
def held_part(folder: Path, number: int) -> Iterator[None]:
    """Be the one process that makes this part of the job whose state is in `folder`.

    Raises JobError if another one does and does not end.
    """
    busy = f"a lost worker is still at part {number} of the job in {folder.parent}: end it"
    file = folder / "parts.lock"
    with _held(file, exclusive=True, seconds=_LOST_SECONDS, busy=busy, byte=number):
        yield


@contextmanager
def _held(
    file: Path, exclusive: bool, seconds: float, busy: str, byte: int | None = None
) -> Iterator[Held]:
    """Hold the lock of a file, or of one byte of it: there need not be a file for each part."""
    import fcntl

    kind = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
    until = time.monotonic() + seconds
    descriptor = _opened(file)
    try:
        while True:
            try:
                if byte is None:
                    fcntl.flock(descriptor, kind)
                else:
                    fcntl.lockf(descriptor, kind, 1, byte)
            except OSError as error:
                if time.monotonic() >= until:
                    raise JobError(busy) from error
                time.sleep(0.05)
                continue
            if _is_at(file, descriptor):
                break
            # It was removed before it was locked, as a job that could not start does.
            os.close(descriptor)
            descriptor = _opened(file)
        yield lambda: _is_at(file, descriptor)
    finally:
        os.close(descriptor)


def _opened(file: Path) -> int:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise JobError(f"cannot write {file}: {error.strerror}") from error


def _is_at(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except OSError:
        return False
