"""What is kept between runs in the user's cache folder: verified hashes and compiled models."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path

import platformdirs

from runtime.errors import GalipEdgeError
from runtime.files import write_whole

_log = logging.getLogger(__name__)

# Compiled models are about as large as their bundle; the oldest go first.
MAX_COMPILED_BYTES = 4 * 1024**3


def cache_folder() -> Path:
    """$GALIP_EDGE_CACHE if set, else `galip-edge` in the user's cache folder."""
    if path := os.environ.get("GALIP_EDGE_CACHE"):
        return Path(path)
    return platformdirs.user_cache_path("galip-edge", appauthor=False)


class Stamps:
    """Remembers files whose SHA-256 was verified, by size, modification time and inode.

    A damaged or unwritable stamp file only means that hashes are calculated again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "verified"

    def _stamp(self, path: Path) -> Path:
        name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
        return self._folder / f"{name}.json"

    @staticmethod
    def _state(path: Path, sha256: str) -> list[int | str]:
        status = path.stat()
        return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, sha256]

    def has(self, path: Path, sha256: str) -> bool:
        """Whether `path` was verified to have this hash and was not touched since."""
        try:
            stored: object = json.loads(self._stamp(path).read_text())
        except (OSError, ValueError):
            return False
        return stored == self._state(path, sha256)

    def add(self, path: Path, sha256: str) -> None:
        """Remember that `path` has this hash now."""
        try:
            write_whole(self._stamp(path), json.dumps(self._state(path, sha256)).encode())
        except GalipEdgeError as error:
            _log.info("hashes are not remembered: %s", error)


def compiled_model_folder(root: Path, key: str) -> Path | None:
    """The folder in which OpenVINO may keep what it compiled for `key`.

    Older folders are removed until what is left is within `MAX_COMPILED_BYTES`.

    Returns:
        None if it cannot be written; inference then works without it.
    """
    folder = root / "compiled" / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        _evict(folder)
    except OSError as error:
        _log.info("compiled models are not kept: %s", error)
        return None
    return folder if os.access(folder, os.W_OK) else None


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
