"""What is kept between runs in the user's cache folder: verified hashes and compiled models."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import shutil
import time
from pathlib import Path

import platformdirs

from runtime.errors import GalipEdgeError
from runtime.files import FileState, open_regular, read_regular, write_whole

_log = logging.getLogger(__name__)

# Compiled models are about as large as their bundle; the oldest go first.
MAX_COMPILED_BYTES = 4 * 1024**3

_LARGEST_STAMP = 4096
# Longer than the steps in which file systems' clocks advance.
_TICK_NS = 50_000_000


def cache_folder() -> Path:
    """$GALIP_EDGE_CACHE if set, else `galip-edge` in the user's cache folder."""
    if path := os.environ.get("GALIP_EDGE_CACHE"):
        return Path(path)
    return platformdirs.user_cache_path("galip-edge", appauthor=False)


def private_folder(root: Path, *names: str) -> Path | None:
    """The folder `root/names...`, made for this user alone.

    What is kept there is trusted as the program itself is, so a folder that another user could
    have filled is not used; the log says why.

    Returns:
        None if it cannot be made, belongs to another user, or other users may write to it.
    """
    folder = root
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for name in ("", *names):
            folder = folder / name
            folder.mkdir(mode=0o700, exist_ok=True)
            if reason := _distrusted(folder.stat()):
                _warn(f"the cache {folder} is not used: {reason}")
                return None
    except OSError as error:
        _log.info("nothing is kept in the cache: %s", error)
        return None
    return folder


def _distrusted(status: os.stat_result) -> str | None:
    """Why another user could have written what lies there; None if not."""
    if not hasattr(os, "geteuid"):  # Windows: the user's folder is private
        return None
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}; set GALIP_EDGE_CACHE to a folder of yours"
    if status.st_mode & 0o022:
        return "other users may write to it; run chmod go-w on it if its content is yours alone"
    return None


@functools.cache
def _warn(text: str) -> None:
    """Once for each process."""
    _log.warning(text)


class Stamps:
    """Remembers files whose SHA-256 was verified, by their state (`FileState`).

    A damaged or unwritable stamp file only means that hashes are calculated again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder, "verified")

    @staticmethod
    def _name(path: Path) -> str:
        return f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"

    def has(self, path: Path, state: FileState, sha256: str) -> bool:
        """Whether `path` was verified to have this hash when it was in this state."""
        if self._folder is None:
            return False
        try:
            content = read_regular(self._folder / self._name(path), _LARGEST_STAMP)
            stored: object = json.loads(content)
        except (OSError, ValueError, RecursionError):
            return False
        return stored == [*state, sha256]

    def add(self, path: Path, state: FileState, sha256: str) -> None:
        """Remember that `path` has this hash in this state.

        Not if it was written just now: a second change within the clock's tick would go unnoticed.
        """
        if self._folder is None or time.time_ns() - state.ctime_ns < _TICK_NS:
            return
        try:
            write_whole(self._folder / self._name(path), json.dumps([*state, sha256]).encode())
        except GalipEdgeError as error:
            _log.info("hashes are not remembered: %s", error)


def compiled_model_folder(root: Path, key: str) -> Path | None:
    """The folder in which compiled models for `key` are kept.

    Older folders are removed until what is left is within `MAX_COMPILED_BYTES`.

    Returns:
        None if it cannot be written or trusted; inference then works without it.
    """
    folder = private_folder(root, "compiled", key)
    if folder is None:
        return None
    try:
        os.utime(folder)
        _evict(folder)
    except OSError as error:
        _log.info("compiled models are not kept: %s", error)
        return None
    return folder if os.access(folder, os.W_OK) else None


def read_kept(file: Path) -> bytes | None:
    """Content of a file in a folder of `compiled_model_folder`; None if there is none of ours."""
    try:
        with open_regular(file) as opened:
            status = os.fstat(opened.fileno())
            if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
                _warn(f"{file} is not used: it belongs to user {status.st_uid}")
                return None
            return opened.read()
    except OSError:
        return None


def _evict(keep: Path) -> None:
    """Remove the least recently used compiled models, but never `keep`."""
    folders = sorted(
        (f for f in keep.parent.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime
    )
    total = {f: sum(p.stat().st_size for p in f.rglob("*") if p.is_file()) for f in folders}
    excess = sum(total.values()) - MAX_COMPILED_BYTES
    for folder in folders:
        if excess <= 0:
            break
        if folder != keep:
            shutil.rmtree(folder, ignore_errors=True)
            excess -= total[folder]
