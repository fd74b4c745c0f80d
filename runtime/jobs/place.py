"""Where a job lives: a folder of this machine, or one that fsspec knows, such as `s3://bucket/x`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

from runtime.errors import JobError
from runtime.files import atomic_path, is_temporary, remove_temporary
from runtime.jobs.lock import held_part, locked, shared

# Folder of what a job remembers, in its own.
STATE = ".job"


class Place(Protocol):
    """Files by names with slashes, each whole or not there."""

    def read(self, name: str) -> bytes | None:
        """A file's content; None if there is none."""

    def names(self, folder: str) -> list[str]:
        """Names of the files in `folder`, sorted."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Sizes in bytes of the files in `folder`, by name."""

    def new(self, name: str) -> AbstractContextManager[Path]:
        """A path on this machine to write to; it becomes the file when the block ends."""

    def remove(self, name: str) -> None:
        """Delete a file, if it is there, and its folder if nothing else is in it."""

    def lock(self) -> AbstractContextManager[None]:
        """Be the only one who leads a job here. Raises JobError if somebody does."""

    def share(self) -> AbstractContextManager[None]:
        """Be a worker of who leads it. Raises JobError if another one is about to."""

    def hold(self, part: int) -> AbstractContextManager[None]:
        """Be the one who makes this part. Raises JobError if a worker that was lost still does."""


class LocalPlace:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def read(self, name: str) -> bytes | None:
        """See Place. Raises OSError."""
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sizes(self, folder: str) -> dict[str, int]:
        """See Place."""
        try:
            with os.scandir(self.folder / folder) as found:
                files = (e for e in found if e.is_file() and not is_temporary(e.name))
                return {_inside(folder, e.name): e.stat().st_size for e in files}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def names(self, folder: str) -> list[str]:
        """See Place."""
        return sorted(self.sizes(folder))

    def new(self, name: str) -> AbstractContextManager[Path]:
        """See Place."""
        return atomic_path(self.folder / name)

    def remove(self, name: str) -> None:
        """See Place."""
        file = self.folder / name
        file.unlink(missing_ok=True)
        if file.parent != self.folder:
            with suppress(OSError):  # not empty
                file.parent.rmdir()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """See Place. Removes what processes that were killed left half written, too."""
        with locked(self.folder / STATE):
            self._tidy()  # of an earlier run
            yield
            self._tidy()  # of workers that were lost in this one

    def _tidy(self) -> None:
        for folder in (self.folder, self.folder / STATE, self.folder / STATE / "parts"):
            remove_temporary(folder)

    def share(self) -> AbstractContextManager[None]:
        """See Place."""
        return shared(self.folder / STATE)

    def hold(self, part: int) -> AbstractContextManager[None]:
        """See Place."""
        return held_part(self.folder / STATE, part)


class RemotePlace:
    """A folder that fsspec knows, on an object store, say.

    Nothing there can be locked: two jobs at once would do the same work twice, and end the same.

    Args:
        url: of it.

    Raises:
        JobError: fsspec, or its package for this protocol, is missing.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        protocol = url.split("://")[0]
        try:
            import fsspec

            self._files: Any
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise JobError(f"{url} needs fsspec and its package for {protocol}: {error}") from error

    def __str__(self) -> str:
        return self.url

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def read(self, name: str) -> bytes | None:
        """See Place. Raises JobError."""
        try:
            return bytes(self._files.cat_file(self._path(name)))
        except FileNotFoundError:
            return None
        except Exception as error:  # each protocol has its own
            raise JobError(f"cannot read {self.url}/{name}: {error}") from error

    def sizes(self, folder: str) -> dict[str, int]:
        """See Place."""
        self._files.invalidate_cache()
        try:
            found = self._files.ls(self._path(folder).rstrip("/"), detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:
            raise JobError(f"cannot list {self.url}/{folder}: {error}") from error
        files = (entry for entry in found if entry["type"] == "file")
        return {_inside(folder, e["name"].rsplit("/", 1)[-1]): int(e["size"]) for e in files}

    def names(self, folder: str) -> list[str]:
        """See Place."""
        return sorted(self.sizes(folder))

    @contextmanager
    def new(self, name: str) -> Iterator[Path]:
        """See Place. Raises JobError if it cannot be stored."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "file")
            yield path
            self.put(path, name)

    def put(self, path: Path, name: str) -> None:
        """Store a file of this machine. Raises JobError."""
        try:
            self._files.makedirs(self._path(name).rsplit("/", 1)[0], exist_ok=True)
            self._files.put_file(str(path), self._path(name))
        except Exception as error:  # of any kind: each protocol has its own
            raise JobError(f"cannot write {self.url}/{name}: {error}") from error

    def remove(self, name: str) -> None:
        """See Place."""
        with suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def lock(self) -> AbstractContextManager[None]:
        """See Place."""
        return nullcontext()

    def share(self) -> AbstractContextManager[None]:
        """See Place."""
        return nullcontext()

    def hold(self, part: int) -> AbstractContextManager[None]:
        """See Place."""
        return nullcontext()


def _inside(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def place_of(out: str | Path) -> LocalPlace | RemotePlace:
    """A path or a URL."""
    return RemotePlace(str(out)) if "://" in str(out) else LocalPlace(Path(out))
