"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path

from runtime.errors import GalipEdgeError


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends without an error.

    The block must create the file. Raises GalipEdgeError if it cannot be written or the disk is
    full; `path` is then as it was before, and no temporary file is left.
    """
    temporary = _temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all: `atomic_path` for what is in memory, with fewer calls.

    Raises GalipEdgeError if it cannot be written or the disk is full.
    """
    temporary = _temporary_name(path)
    try:
        try:
            file = temporary.open("wb", buffering=0)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = temporary.open("wb", buffering=0)
        with file:
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise _cannot_write(path, error) from error


@contextmanager
def atomic_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name when the block ends without an error.

    With `replace` an existing folder is moved aside first and deleted last, so that nothing is
    lost before the new one is complete. Raises GalipEdgeError as `atomic_path` does.
    """
    temporary = _temporary_name(path)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as opened:
                    os.fsync(opened.fileno())
        if replace and path.exists():
            old = temporary.with_suffix(".old")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_name(path: Path) -> Path:
    """Hidden, in the same folder (rename needs one file system), unique among live writers."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


# What those names match.
_TEMPORARY = ".*.tmp"


def is_temporary(name: str) -> bool:
    """Whether a file has the name of one that is not whole yet."""
    return fnmatch(name, _TEMPORARY)


def remove_temporary(folder: Path) -> None:
    """Remove what processes that were killed left half written in a folder, if it is there."""
    for left in folder.glob(_TEMPORARY):
        left.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> GalipEdgeError:
    return GalipEdgeError(
        f"cannot write {path}: {error.strerror or error}; check the folder, its permissions and "
        "the free space"
    )
