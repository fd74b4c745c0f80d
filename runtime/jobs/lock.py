"""One job at a time in a folder, with any number of worker processes.

The kernel lets go of the locks of a process that was killed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import JobError

# For workers of a killed job, which end after the image that they are at.
_PATIENCE_SECONDS = 10.0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the one process that leads the job whose state is in `folder`.

    Raises JobError if another one does, or if workers of an earlier one do not end.
    """
    busy = f"another process works on the job in {folder.parent}: wait for it, or stop it"
    with _held(folder / "lock", exclusive=True, seconds=0, busy=busy):
        with _held(folder / "workers", exclusive=True, seconds=_PATIENCE_SECONDS, busy=busy):
            pass  # no worker of an earlier job is left
        yield


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Be a worker of the job whose state is in `folder`."""
    busy = f"the job in {folder.parent} is about to start"
    with _held(folder / "workers", exclusive=False, seconds=_PATIENCE_SECONDS, busy=busy):
        yield


@contextmanager
def _held(file: Path, exclusive: bool, seconds: float, busy: str) -> Iterator[None]:
    import fcntl

    kind = (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB
    until = time.monotonic() + seconds
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise JobError(f"cannot write {file}: {error.strerror}") from error
    try:
        while True:
            try:
                fcntl.flock(descriptor, kind)
                break
            except OSError as error:
                if time.monotonic() >= until:
                    raise JobError(busy) from error
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)
