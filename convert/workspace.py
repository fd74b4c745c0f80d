"""The working folder of a conversion, which holds everything it writes until it is complete.

It lies next to the output: space is needed on one disk only, and a rename publishes the bundle. Its
name depends only on the output: its lock keeps a second conversion out, and the next conversion
finds the leftovers of a killed one.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convert.errors import ConversionError
from runtime.files import sync_folder
from runtime.locks import FOLDER_LOCKS, Lock, try_lock_folder

# Subfolder for the replaced output, between two renames.
_OLD = "old"
# Free bytes below which a failed write is attributed to a full disk.
_NEARLY_FULL = 1 << 30

# Outputs whose workspaces this process holds.
_held: set[Path] = set()


@contextmanager
def workspace(out: Path) -> Iterator[Path]:
    """Provide an empty folder for a conversion to `out`, and remove it in the end.

    Raises ConversionError if another conversion to `out` is running, the folder cannot be
    written, or the disk is full.
    """
    folder = workspace_of(out)
    try:
        lock = _locked(folder, out)
    except OSError as error:
        raise ConversionError(_explained(error, out)) from error
    _held.add(out)
    try:
        _clear(folder, out)
        yield folder
    except OSError as error:
        raise ConversionError(_explained(error, out)) from error
    finally:
        if sys.platform == "win32":  # where a folder with an open file cannot be removed
            lock.release()
        _remove(out)
        _held.discard(out)
        lock.release()


def workspace_of(out: Path) -> Path:
    """Working folder of a conversion to `out`."""
    return out.with_name(f".{out.name}.converting.tmp")


def remove_workspaces() -> None:
    """Remove the folders of this process's conversions, which must not continue.

    For a signal handler that ends the process: a library could swallow an exception.
    """
    for out in _held:
        _remove(out)


def _remove(out: Path) -> None:
    folder = workspace_of(out)
    with suppress(OSError):
        _clear(folder, out)
    shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, out: Path, replace: bool) -> None:
    """Move the finished `folder` to `out`, which may exist only with `replace`.

    Raises OSError.
    """
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
    if out.exists():
        if not replace:
            raise FileExistsError(errno.EEXIST, "it appeared during the conversion")
        out.rename(workspace_of(out) / _OLD)
    folder.rename(out)
    sync_folder(out.parent)


def _locked(folder: Path, out: Path) -> Lock:
    """The lock of the folder, which is created if it does not exist."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = try_lock_folder(folder)
        except FileNotFoundError:  # another process removed the folder meanwhile
            continue
        if lock is None:
            raise ConversionError(
                f"another conversion to {out} is running: wait for it, or choose another folder "
                "with -o"
            )
        return lock


def _clear(folder: Path, out: Path) -> None:
    """Empty the folder, and restore an output whose replacement was interrupted."""
    old = folder / _OLD
    if old.exists() and not out.exists():
        old.rename(out)
    for entry in folder.iterdir():
        if entry.name in FOLDER_LOCKS:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink()


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Raise the OSError behind OpenVINO's RuntimeError "basic_ios::clear"."""
    try:
        yield
    except RuntimeError as error:
        if "basic_ios" not in str(error):
            raise
        full = shutil.disk_usage(folder).free < _NEARLY_FULL
        number = errno.ENOSPC if full else errno.EIO
        raise OSError(number, os.strerror(number), str(folder)) from error


def _explained(error: OSError, out: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk of {out.parent.absolute()} is full: free some space there, or choose a "
            "folder on another disk with -o"
        )
    return f"cannot write {out}: {error.strerror or error}; check the folder and its permissions"
