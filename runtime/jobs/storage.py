"""Storage of a job: a local folder, or any that fsspec supports, such as `s3://bucket/x`.

A job has one leader, which reads the prompts and writes the manifest, and any number of workers.
In a local folder both hold file locks, which the kernel releases when a process is killed.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from runtime.errors import JobError
from runtime.files import atomic_path, is_temporary, remove_temporary
from runtime.jobs.locks import Held, leader_lock, remove_locks, shard_lock, worker_lock

# Folder of the job's state, inside the job's folder.
STATE = ".job"

# Seconds to wait for the workers of a killed job, which end after the current image.
_PATIENCE_SECONDS = 10.0

# Seconds to wait for a worker that the cluster lost, which may still be writing its shard.
_LOST_SECONDS = 60.0

# Seconds between renewals of a lease on an object store, and until an unrenewed one expires.
_RENEWAL, _EXPIRY = 5.0, 20.0

# Attempts per request to a busy object store, and seconds before the second one.
_ATTEMPTS, _PAUSE = 8, 0.5

# Parallel uploads.
_UPLOADS = 16

# Words in errors of a store that is busy or temporarily unreachable.
_BUSY = (
    *("slowdown", "slow down", "reduce your request rate", "throttl", "toomanyrequests"),
    *("internalerror", "serviceunavailable", "service unavailable"),
    *(f"http status {code}" for code in (429, 500, 502, 503, 504)),
    *("timeout", "timed out", "connection", "temporarily", "please try again", "incompleteread"),
)
# Words in errors of denied access.
_DENIED = (
    *("expiredtoken", "token has expired", "expired", "credential", "accessdenied", "forbidden"),
    *("access denied", "invalidaccesskeyid", "signaturedoesnotmatch", "unauthorized"),
    *("access key id", "permission", "http status 401", "http status 403"),
)

_T = TypeVar("_T")


class Storage(Protocol):
    """Files by name, with slashes; each one is complete or does not exist."""

    def read(self, name: str) -> bytes | None:
        """Content of a file; None if it does not exist. Raises JobError or OSError."""

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files in `folder`."""
        return sorted(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """Sizes in bytes of the files in `folder`, by name."""

    def new(self, name: str) -> AbstractContextManager[Path]:
        """Local path to write to; it becomes the file when the block ends without an error."""

    def local(self, name: str) -> AbstractContextManager[Path | None]:
        """Local path to read a file from; None if it does not exist."""

    def remove(self, name: str) -> None:
        """Delete a file if it exists, and its folder if that is empty then."""

    def lock(self) -> AbstractContextManager[Held]:
        """Lead the job, exclusively. Raises JobError if another process does."""

    def join(self) -> AbstractContextManager[None]:
        """Work for the leader of the job. Raises JobError if a new leader is about to start."""

    def lock_shard(self, number: int) -> AbstractContextManager[None]:
        """Write a shard, exclusively. Raises JobError if a lost worker still does."""

    def remove_locks(self) -> None:
        """Remove the files that `lock` created, while it is held: the job was not started."""


class LocalStorage(Storage):
    """A local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sizes(self, folder: str) -> dict[str, int]:
        try:
            with os.scandir(self.folder / folder) as found:
                files = (e for e in found if e.is_file() and not is_temporary(e.name))
                return {_inside(folder, e.name): e.stat().st_size for e in files}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def new(self, name: str) -> AbstractContextManager[Path]:
        return atomic_path(self.folder / name)

    def local(self, name: str) -> AbstractContextManager[Path | None]:
        path = self.folder / name
        return nullcontext(path if path.is_file() else None)

    def remove(self, name: str) -> None:
        file = self.folder / name
        file.unlink(missing_ok=True)
        if file.parent != self.folder:
            with suppress(OSError):  # not empty
                file.parent.rmdir()

    @contextmanager
    def lock(self) -> Iterator[Held]:
        state = self.folder / STATE
        busy = f"another process is running the job in {self.folder}: wait for it, or stop it"
        with leader_lock(state, _PATIENCE_SECONDS, busy) as held:
            self._remove_partial_files()
            yield held
            self._remove_partial_files()  # of workers lost in this run

    def _remove_partial_files(self) -> None:
        state = self.folder / STATE
        for folder in (self.folder, state, state / "parts", state / "rows"):
            remove_temporary(folder)

    def remove_locks(self) -> None:
        remove_locks(self.folder / STATE)
        for folder in (self.folder / STATE / "rows", self.folder / STATE, self.folder):
            with suppress(OSError):  # not empty
                folder.rmdir()

    def join(self) -> AbstractContextManager[None]:
        return worker_lock(self.folder / STATE)

    def lock_shard(self, number: int) -> AbstractContextManager[None]:
        busy = f"a lost worker is still writing shard {number} of {self.folder}: stop it"
        return shard_lock(self.folder / STATE, number, _LOST_SECONDS, busy)


class RemoteStorage(Storage):
    """A folder that fsspec supports, for example on an object store.

    Requests to a busy store are retried. The leader of a job renews a lease, a small file: a second
    process is refused while it is renewed, and takes it over once it has expired.

    Args:
        url: the folder's URL.

    Raises:
        JobError: fsspec or its package for this protocol is not installed.
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
        self._folders: set[str] = set()

    def __str__(self) -> str:
        return self.url

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _request(self, what: str, name: str, request: Callable[[], _T]) -> _T:
        """Send a request, with retries. Raises JobError or FileNotFoundError."""
        for attempt in range(_ATTEMPTS):
            try:
                return request()
            except (FileNotFoundError, FileExistsError):
                raise
            except Exception as error:  # each protocol has its own types
                messages = _chain(error)
                if not any(word in messages.lower() for word in _DENIED) and (
                    any(word in messages.lower() for word in _BUSY) and attempt + 1 < _ATTEMPTS
                ):
                    time.sleep(min(20.0, _PAUSE * 2**attempt) * random.uniform(0.5, 1.0))
                    continue
                raise JobError(_failed(f"cannot {what} {self.url}/{name}", messages)) from error
        raise AssertionError  # the last attempt returned or raised

    def read(self, name: str) -> bytes | None:
        try:
            path = self._path(name)
            return self._request("read", name, lambda: bytes(self._files.cat_file(path)))
        except FileNotFoundError:
            return None

    def sizes(self, folder: str) -> dict[str, int]:
        path = self._path(folder).rstrip("/")
        self._files.invalidate_cache()
        try:
            found = self._request("list", folder, lambda: self._files.ls(path, detail=True))
        except FileNotFoundError:
            return {}
        files = (entry for entry in found if entry["type"] == "file")
        return {_inside(folder, e["name"].rsplit("/", 1)[-1]): int(e["size"]) for e in files}

    @contextmanager
    def new(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "file")
            yield path
            self.put(path, name)

    @contextmanager
    def local(self, name: str) -> Iterator[Path | None]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "file")
            try:
                source, target = self._path(name), str(path)
                self._request("read", name, lambda: self._files.get_file(source, target))
            except FileNotFoundError:
                yield None
                return
            yield path

    def put(self, path: Path, name: str) -> None:
        """Upload a local file. Raises JobError."""
        folder = self._path(name).rsplit("/", 1)[0]
        if folder not in self._folders:
            self._request("write", name, lambda: self._files.makedirs(folder, exist_ok=True))
            self._folders.add(folder)
        self._request("write", name, lambda: self._files.put_file(str(path), self._path(name)))

    def put_all(self, files: Mapping[str, Path]) -> None:
        """Upload local files in parallel, by name. Raises JobError."""
        with ThreadPoolExecutor(_UPLOADS) as pool:
            for done in [pool.submit(self.put, path, name) for name, path in files.items()]:
                done.result()

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._request("remove", name, lambda: self._files.rm_file(self._path(name)))

    @contextmanager
    def lock(self) -> Iterator[Held]:
        lease = _Lease(self)
        lease.acquire()
        try:
            yield lease.held
        finally:
            lease.release()

    def remove_locks(self) -> None:
        pass

    def join(self) -> AbstractContextManager[None]:
        return nullcontext()

    def lock_shard(self, number: int) -> AbstractContextManager[None]:
        return nullcontext()


class _Lease:
    """File with the leader's identity, rewritten regularly while that process lives."""

    def __init__(self, storage: RemoteStorage) -> None:
        self._storage, self._name = storage, f"{STATE}/lease"
        self._owner = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
        self._number = 0
        self._lost = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def acquire(self) -> None:
        """Take the lease. Raises JobError if another process renews it."""
        found = self._storage.read(self._name)
        until = time.monotonic() + _EXPIRY
        while found is not None and time.monotonic() < until:
            time.sleep(min(1.0, _RENEWAL / 4))
            now = self._storage.read(self._name)
            if now is not None and now != found:
                owner = now.decode("utf-8", "replace").rsplit(" ", 2)[0][:100]
                raise JobError(
                    f"another process is running the job in {self._storage} (host and process "
                    f"{owner}): wait for it, or stop it"
                )
            found = now
        self._write()
        time.sleep(min(0.2, _RENEWAL / 10))  # of simultaneous writers, the last one wins
        if not self._is_mine():
            raise JobError(
                f"another process is running the job in {self._storage}: wait for it, or stop it"
            )
        self._thread.start()

    def _write(self) -> None:
        self._number += 1
        with self._storage.new(self._name) as path:
            path.write_text(f"{self._owner} {self._number}")

    def _is_mine(self) -> bool:
        found = self._storage.read(self._name)
        return found is not None and found.decode("utf-8", "replace").startswith(self._owner)

    def _renew(self) -> None:
        while not self._end.wait(_RENEWAL):
            with suppress(JobError):  # an unreachable store: the job fails by itself
                if not self._is_mine():
                    self._lost = True
                    return
                self._write()

    def held(self) -> bool:
        """False once another process took it over, for example after this machine slept."""
        return not self._lost

    def release(self) -> None:
        """Stop renewing and remove the lease."""
        self._end.set()
        self._thread.join()
        with suppress(JobError):
            if not self._lost and self._is_mine():
                self._storage.remove(self._name)


def _chain(error: BaseException) -> str:
    """Messages of an error and its causes, with HTTP status codes."""
    messages: list[str] = []
    found: BaseException | None = error
    while found is not None and len(messages) < 5:
        response = getattr(found, "response", None)
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        code = metadata.get("HTTPStatusCode", getattr(found, "status", None))
        messages.append(
            f"{type(found).__name__}: {found}" + (f" (HTTP status {code})" if code else "")
        )
        found = found.__cause__ or found.__context__
    return "; ".join(dict.fromkeys(messages))


def _failed(what: str, messages: str) -> str:
    first = messages.split("; ")[0].partition(": ")[2].strip() or messages
    words = messages.lower()
    if "expired" in words:
        return f"{what}: the credentials expired ({first}); renew them"
    if "bad request" in words:  # the whole answer to a HEAD request with an expired token
        return f"{what}: the credentials expired or are invalid ({first}); renew them"
    if any(word in words for word in _DENIED):
        return f"{what}: access was denied ({first}); check the credentials and their permissions"
    if any(word in words for word in _BUSY):
        return f"{what}: the store was busy or unreachable in {_ATTEMPTS} attempts ({first})"
    return f"{what}: {first}"


def _inside(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def copy_to(storage: Storage, path: Path, name: str) -> None:
    """Store a copy of a local file."""
    with storage.new(name) as new:
        shutil.copyfile(path, new)


def open_storage(out: str | Path) -> Storage:
    """Storage at a path or URL. Raises JobError if fsspec lacks the URL's protocol."""
    return RemoteStorage(str(out)) if "://" in str(out) else LocalStorage(Path(out))
