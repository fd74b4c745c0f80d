"""Where a job lives: a folder of this machine, or one that fsspec knows, such as `s3://bucket/x`."""

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
from runtime.jobs.lock import Held, held_part, locked, shared

# Folder of the job's state, in its own.
STATE = ".job"

# Seconds between renewals of a lease on an object store, and after which one that is not renewed
# has no owner any more.
_RENEWAL, _EXPIRY = 5.0, 20.0

# Attempts at one request of an object store that is busy, and seconds before the second one.
_ATTEMPTS, _PAUSE = 8, 0.5

# Files that are stored at a time.
_UPLOADS = 16

# Words in errors of a store that is busy or was out of reach for a moment.
_BUSY = (
    *("slowdown", "slow down", "reduce your request rate", "throttl", "toomanyrequests"),
    *("internalerror", "serviceunavailable", "service unavailable"),
    *(f"http status {code}" for code in (429, 500, 502, 503, 504)),
    *("timeout", "timed out", "connection", "temporarily", "please try again", "incompleteread"),
)
# And where it does not let us in.
_DENIED = (
    *("expiredtoken", "token has expired", "expired", "credential", "accessdenied", "forbidden"),
    *("access denied", "invalidaccesskeyid", "signaturedoesnotmatch", "unauthorized"),
    *("access key id", "permission", "http status 401", "http status 403"),
)

_T = TypeVar("_T")


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

    def local(self, name: str) -> AbstractContextManager[Path | None]:
        """A path on this machine to read a file from; None if there is none."""

    def remove(self, name: str) -> None:
        """Delete a file, if it exists, and its folder if it is empty then."""

    def lock(self) -> AbstractContextManager[Held]:
        """Be the only one who leads a job here; gives whether that is still so.

        Raises JobError if another process does.
        """

    def share(self) -> AbstractContextManager[None]:
        """Be a worker of who leads it. Raises JobError if another one is about to."""

    def hold(self, part: int) -> AbstractContextManager[None]:
        """Be the one who makes this part. Raises JobError if a worker that was lost still does."""

    def forget(self) -> None:
        """Remove what `lock` left, while it is held: the job was not started."""


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

    def local(self, name: str) -> AbstractContextManager[Path | None]:
        """See Place."""
        path = self.folder / name
        return nullcontext(path if path.is_file() else None)

    def remove(self, name: str) -> None:
        """See Place."""
        file = self.folder / name
        file.unlink(missing_ok=True)
        if file.parent != self.folder:
            with suppress(OSError):  # not empty
                file.parent.rmdir()

    @contextmanager
    def lock(self) -> Iterator[Held]:
        """See Place. Removes what processes that were killed left half written, too."""
        with locked(self.folder / STATE) as held:
            self._tidy()  # of an earlier run
            yield held
            self._tidy()  # of workers that were lost in this one

    def _tidy(self) -> None:
        state = self.folder / STATE
        for folder in (self.folder, state, state / "parts", state / "rows"):
            remove_temporary(folder)

    def forget(self) -> None:
        """See Place."""
        for name in ("workers", "lock"):
            (self.folder / STATE / name).unlink(missing_ok=True)
        for folder in (self.folder / STATE / "rows", self.folder / STATE, self.folder):
            with suppress(OSError):  # not empty
                folder.rmdir()

    def share(self) -> AbstractContextManager[None]:
        """See Place."""
        return shared(self.folder / STATE)

    def hold(self, part: int) -> AbstractContextManager[None]:
        """See Place."""
        return held_part(self.folder / STATE, part)


class RemotePlace:
    """A folder that fsspec knows, on an object store, say.

    Requests that fail because the store is busy are repeated. Who leads a job here renews a lease,
    a small file; a second process sees that and is refused, and takes over a lease whose owner was
    killed once it has not been renewed for a while.

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
        self._folders: set[str] = set()

    def __str__(self) -> str:
        return self.url

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _ask(self, what: str, name: str, request: Callable[[], _T]) -> _T:
        """What a request gives; a busy store is asked again. Raises JobError, FileNotFoundError."""
        for attempt in range(_ATTEMPTS):
            try:
                return request()
            except (FileNotFoundError, FileExistsError):
                raise
            except Exception as error:  # each protocol has its own
                said = _chain(error)
                if not any(word in said.lower() for word in _DENIED) and (
                    any(word in said.lower() for word in _BUSY) and attempt + 1 < _ATTEMPTS
                ):
                    time.sleep(min(20.0, _PAUSE * 2**attempt) * random.uniform(0.5, 1.0))
                    continue
                raise JobError(_failed(f"cannot {what} {self.url}/{name}", said)) from error
        raise AssertionError  # the last attempt returned or raised

    def read(self, name: str) -> bytes | None:
        """See Place. Raises JobError."""
        try:
            return self._ask("read", name, lambda: bytes(self._files.cat_file(self._path(name))))
        except FileNotFoundError:
            return None

    def sizes(self, folder: str) -> dict[str, int]:
        """See Place."""
        path = self._path(folder).rstrip("/")
        self._files.invalidate_cache()
        try:
            found = self._ask("list", folder, lambda: self._files.ls(path, detail=True))
        except FileNotFoundError:
            return {}
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

    @contextmanager
    def local(self, name: str) -> Iterator[Path | None]:
        """See Place. Raises JobError."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "file")
            try:
                self._ask("read", name, lambda: self._files.get_file(self._path(name), str(path)))
            except FileNotFoundError:
                yield None
                return
            yield path

    def put(self, path: Path, name: str) -> None:
        """Store a file of this machine. Raises JobError."""
        folder = self._path(name).rsplit("/", 1)[0]
        if folder not in self._folders:
            self._ask("write", name, lambda: self._files.makedirs(folder, exist_ok=True))
            self._folders.add(folder)
        self._ask("write", name, lambda: self._files.put_file(str(path), self._path(name)))

    def put_all(self, files: Mapping[str, Path]) -> None:
        """Store files of this machine, several at a time, by name. Raises JobError."""
        with ThreadPoolExecutor(_UPLOADS) as pool:
            for done in [pool.submit(self.put, path, name) for name, path in files.items()]:
                done.result()

    def remove(self, name: str) -> None:
        """See Place."""
        with suppress(FileNotFoundError):
            self._ask("remove", name, lambda: self._files.rm_file(self._path(name)))

    @contextmanager
    def lock(self) -> Iterator[Held]:
        """See Place."""
        lease = _Lease(self)
        lease.acquire()
        try:
            yield lease.held
        finally:
            lease.release()

    def forget(self) -> None:
        """See Place."""

    def share(self) -> AbstractContextManager[None]:
        """See Place."""
        return nullcontext()

    def hold(self, part: int) -> AbstractContextManager[None]:
        """See Place."""
        return nullcontext()


class _Lease:
    """A file that says who leads the job; its content changes as long as that process lives."""

    def __init__(self, place: RemotePlace) -> None:
        self._place, self._name = place, f"{STATE}/lease"
        self._owner = f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
        self._number = 0
        self._lost = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def acquire(self) -> None:
        """Raises JobError if another process renews it."""
        found = self._place.read(self._name)
        until = time.monotonic() + _EXPIRY
        while found is not None and time.monotonic() < until:
            time.sleep(min(1.0, _RENEWAL / 4))
            now = self._place.read(self._name)
            if now is not None and now != found:
                owner = now.decode("utf-8", "replace").rsplit(" ", 2)[0][:100]
                raise JobError(
                    f"another process is running the job in {self._place} (host and process "
                    f"{owner}): wait for it, or stop it"
                )
            found = now
        self._write()
        time.sleep(min(0.2, _RENEWAL / 10))  # who wrote it last at the same moment has it
        if not self._is_mine():
            raise JobError(
                f"another process is running the job in {self._place}: wait for it, or stop it"
            )
        self._thread.start()

    def _write(self) -> None:
        self._number += 1
        with self._place.new(self._name) as path:
            path.write_text(f"{self._owner} {self._number}")

    def _is_mine(self) -> bool:
        found = self._place.read(self._name)
        return found is not None and found.decode("utf-8", "replace").startswith(self._owner)

    def _renew(self) -> None:
        while not self._end.wait(_RENEWAL):
            with suppress(JobError):  # of a store that is out of reach; the job meets it as well
                if not self._is_mine():
                    self._lost = True
                    return
                self._write()

    def held(self) -> bool:
        """Whether no other process took it over, as after a long sleep of this machine."""
        return not self._lost

    def release(self) -> None:
        """Let the next process have it."""
        self._end.set()
        self._thread.join()
        if not self._lost:
            with suppress(JobError):
                self._place.remove(self._name)


def _chain(error: BaseException) -> str:
    """All that an error and its causes say."""
    said: list[str] = []
    found: BaseException | None = error
    while found is not None and len(said) < 5:
        response = getattr(found, "response", None)
        metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        code = metadata.get("HTTPStatusCode", getattr(found, "status", None))
        said.append(f"{type(found).__name__}: {found}" + (f" (HTTP status {code})" if code else ""))
        found = found.__cause__ or found.__context__
    return "; ".join(dict.fromkeys(said))


def _failed(what: str, said: str) -> str:
    first = said.split("; ")[0].partition(": ")[2].strip() or said
    words = said.lower()
    if any(word in words for word in ("expired",)):
        return f"{what}: the credentials expired ({first}); renew them"
    if "bad request" in words:  # all that the answer to a HEAD request says of an expired token
        return f"{what}: the credentials expired or are invalid ({first}); renew them"
    if any(word in words for word in _DENIED):
        return f"{what}: access was denied ({first}); check the credentials and their permissions"
    if any(word in words for word in _BUSY):
        return f"{what}: the store was busy or out of reach {_ATTEMPTS} times ({first})"
    return f"{what}: {first}"


def _inside(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def copy_to(place: LocalPlace | RemotePlace, path: Path, name: str) -> None:
    """Store a copy of a file of this machine."""
    with place.new(name) as new:
        shutil.copyfile(path, new)


def place_of(out: str | Path) -> LocalPlace | RemotePlace:
    """A path or a URL."""
    return RemotePlace(str(out)) if "://" in str(out) else LocalPlace(Path(out))
