"""Atomic writes, safe reads, hashes, and the cache folder."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import BinaryIO, NamedTuple

import platformdirs

from runtime.errors import GalipEdgeError


class FileState(NamedTuple):
    """Size, times and inode: equal states mean equal content."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, file: Path | int) -> FileState:
        """State of a path or an open descriptor. Raises OSError."""
        status = os.fstat(file) if isinstance(file, int) else file.stat()
        return cls(
            status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev
        )


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a link to one, for reading.

    Raises OSError, also for a pipe, a device or a folder, without waiting for a writer.
    """
    # Windows has no pipes among files, but translates line ends unless it is asked not to.
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, most: int) -> bytes:
    """Content of a regular file of at most `most` bytes. Raises OSError."""
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"larger than {most:,} bytes", os.fspath(path))
    return content


def sync_folder(path: Path) -> None:
    """Let new names in a folder outlive a power failure, where folders can be opened.

    Raises OSError.
    """
    if sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: str | Path, size: int | None = None) -> str:
    """SHA-256 of a regular file's content, or of its first `size` bytes, in hexadecimal.

    Raises OSError.
    """
    path = Path(path)
    digest = hashlib.sha256()
    left = float("inf") if size is None else size
    with open_regular(path) as file:
        while left > 0 and (chunk := file.read(int(min(1 << 20, left)))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path next to `path`, renamed to it when the block ends without an error.

    The block must create the file. Raises GalipEdgeError if it cannot be written or the disk is
    full; `path` is then unchanged, and no temporary file is left.
    """
    path = Path(path)
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


def write_whole(path: str | Path, content: bytes) -> None:
    """Write a file atomically: `atomic_path` for content in memory, with fewer calls.

    Raises GalipEdgeError if it cannot be written or the disk is full.
    """
    path = Path(path)
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
def atomic_folder(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """A temporary folder next to `path`, renamed to it when the block ends without an error.

    With `replace`, an existing folder is renamed first and deleted last, so nothing is lost before
    the new one is complete. Raises GalipEdgeError like `atomic_path`.
    """
    path = Path(path)
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


# Pattern of temporary names.
_TEMPORARY = ".*.tmp"


def is_temporary(name: str) -> bool:
    """Test for the name of a partial file."""
    return fnmatch(name, _TEMPORARY)


def remove_temporary(folder: Path) -> None:
    """Remove partial files of killed processes from a folder, which may not exist."""
    for left in folder.glob(_TEMPORARY):
        left.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> GalipEdgeError:
    return GalipEdgeError(
        f"cannot write {path}: {error.strerror or error}; check the folder, its permissions and "
        "the free space"
    )


def cache_folder() -> Path:
    """$GALIP_EDGE_CACHE if set, else `galip-edge` in the user's cache folder."""
    if path := os.environ.get("GALIP_EDGE_CACHE"):
        return Path(path)
    return platformdirs.user_cache_path("galip-edge", appauthor=False)


# Bytes that `describe` needs to see.
HEAD = 512

_LFS = b"version https://git-lfs.github.com/spec/"
_HTML = (b"<!doctype html", b"<html", b"<head", b"<body")


def describe(head: bytes) -> str | None:
    """A noun phrase for a file that is often found instead of the wanted one, and what to do.

    Args:
        head: the file's first `HEAD` bytes.

    Returns:
        None if the file is none of them.
    """
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_LFS):
        return "a git-LFS pointer, not the file itself: run git lfs pull where you cloned it"
    if text.startswith(_HTML):
        return "an HTML page, not the file itself: download the file that the page links to"
    if not head:
        return "an empty file: copy or download it again"
    return None
