"""Locks between processes: files that one process holds, on any platform.

The kernel releases the locks of a process that was killed. Where Python has neither `fcntl` nor
Windows' locks, a file with the owner's process number stands for a lock; the lock of a dead process
of this machine is taken over.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import filelock

# Files in a locked folder that stand for its lock, where the folder itself cannot be locked.
FOLDER_LOCKS = ("lock", "lock.owner")


class Lock:
    """A lock that this process holds until `release`.

    Args:
        held: whether the locked file still exists and is the same.
        release: releases the lock.
    """

    def __init__(self, held: Callable[[], bool], release: Callable[[], None]) -> None:
        self.held, self.release = held, release


def try_lock(file: Path) -> Lock | None:
    """Lock a file, which is created if it does not exist.

    Returns:
        None while another process holds it.

    Raises:
        OSError: the file cannot be opened.
    """
    if not _has_native_locks():
        return _try_soft(file.with_name(f"{file.name}.owner"))
    return _try_native(file, os.O_RDWR | os.O_CREAT)


def try_lock_folder(folder: Path) -> Lock | None:
    """Lock an existing folder.

    Returns:
        None while another process holds it.

    Raises:
        FileNotFoundError: it does not exist, or was removed before it was locked.
        OSError: it cannot be opened.
    """
    if not _has_native_locks():
        return _try_soft(folder / "lock.owner")
    if sys.platform == "win32":  # where folders cannot be opened
        return _try_native(folder / "lock", os.O_RDWR | os.O_CREAT)
    return _try_native(folder, os.O_RDONLY | os.O_DIRECTORY)


def _try_native(path: Path, flags: int) -> Lock | None:
    while True:
        descriptor = os.open(path, flags, 0o644)
        try:
            if not filelock.lock_descriptor(descriptor, blocking=False):
                os.close(descriptor)
                return None
        except BaseException:
            os.close(descriptor)
            raise
        if _is_at(path, descriptor):
            return _native(path, descriptor)
        # It was removed before it was locked.
        os.close(descriptor)


def remove_locked(lock: Lock, path: Path) -> None:
    """Release a lock and remove its file; a waiting process creates a new one."""
    if sys.platform == "win32":  # where an open file cannot be removed
        lock.release()
        _unlink(path)
    else:
        _unlink(path)
        lock.release()


def _has_native_locks() -> bool:
    return filelock.has_fcntl or sys.platform == "win32"


def _try_soft(file: Path) -> Lock | None:
    soft = filelock.SoftFileLock(file, thread_local=False)
    try:
        soft.acquire(blocking=False)
    except filelock.Timeout:
        return None
    status = file.stat()

    def held() -> bool:
        try:
            return os.path.samestat(file.stat(), status)
        except OSError:
            return False

    return Lock(held, soft.release)


# Descriptors of the locks that this process holds, each in a list that `release` empties.
_native_locks: list[list[int]] = []


def _native(path: Path, descriptor: int) -> Lock:
    left = [descriptor]
    _native_locks.append(left)

    def release() -> None:
        if left:
            _native_locks.remove(left)
            os.close(left.pop())

    return Lock(lambda: _is_at(path, descriptor), release)


def _leave_locks_to_the_parent() -> None:
    """A forked child, such as a data worker, must not hold the locks of a killed parent."""
    while _native_locks:
        os.close(_native_locks.pop().pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except OSError:
        return False


def _unlink(path: Path) -> None:
    with suppress(OSError):  # another process may have opened it, on Windows
        path.unlink(missing_ok=True)
