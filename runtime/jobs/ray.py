"""Executor on a Ray cluster: one actor per node, or a given number."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from runtime.bundle import MANIFEST, read_manifest, verify_files
from runtime.compiled_cache import VerifiedFiles, private_folder
from runtime.errors import BundleError, GalipEdgeError, JobError, install_hint, log_to_stderr
from runtime.files import atomic_folder, cache_folder
from runtime.jobs.executors import Executor
from runtime.jobs.locks import file_lock
from runtime.jobs.shards import Shard
from runtime.jobs.storage import open_storage
from runtime.jobs.worker import Completed, JobSpec, Resumed, Worker

# Losing the actor of a shard this often ends the job.
_MAX_LOSSES = 5

# Shards queued at each actor, so that it never waits for the leader.
_PREFETCH = 2

# Seconds: between checks whether the job was stopped, and to fetch a result.
_POLL, _FETCH = 0.5, 60.0

# Seconds to wait while another worker of the node writes the bundle.
_STORING = 600.0

Events = list[Resumed | Completed]


class RayExecutor(Executor):
    """Actors on a Ray cluster, each with its cores to itself.

    The bundle is sent to each node once, and compiled models stay in the node's cache. An actor or
    node that dies is replaced, and another actor completes its shards.

    Args:
        workers: number of actors; default: one per node.
        address: the cluster's address; default: RAY_ADDRESS, else a new cluster on this machine.
        patience: seconds to wait while the cluster has no free cores for any actor.

    Raises:
        JobError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(
        self, workers: int | None = None, address: str | None = None, patience: float = 600.0
    ) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        try:
            import ray
        except ImportError as error:
            raise JobError(
                f"--executor ray needs ray, which is not installed: {install_hint('ray')}"
            ) from error
        self._joined = not ray.is_initialized()
        if self._joined:
            # No usage reports from a cluster started here, unless its user wants them.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            try:
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise JobError(f"cannot reach a Ray cluster at {address}: {error}") from error
        self._ray: Any = ray
        self._workers, self._patience = workers, patience

    def close(self) -> None:
        """Leave the cluster, unless this program had joined it before."""
        if self._joined:
            self._ray.shutdown()

    def run(
        self, spec: JobSpec, shards: Iterator[Shard], stopped: Callable[[], bool]
    ) -> Iterator[Resumed | Completed]:
        """Yield the events of a shard when it is complete, see `Executor.run`."""
        absolute = spec.out if "://" in spec.out else str(Path(spec.out).resolve())
        count, cores = self._shares()
        share = replace(
            spec, out=absolute, options=replace(spec.options, threads=spec.options.threads or cores)
        )
        queue = _Queue(shards, stopped)
        files = self._ray.put(_read_bundle(spec.bundle))
        pool = _ActorPool(self._ray, count, cores, (share, files))
        try:
            active = time.monotonic()
            while queue or pool.busy:
                while pool.ready and queue:
                    pool.submit(queue.pop())
                for result, shard in pool.poll():
                    if isinstance(result, GalipEdgeError):
                        raise result
                    if result is None and shard is not None:
                        queue.put_back(shard)
                    yield from result or ()
                if pool.ready or pool.busy:
                    active = time.monotonic()
                elif time.monotonic() - active > self._patience:
                    raise JobError(
                        f"the Ray cluster had no node with {cores} free cores for "
                        f"{self._patience:.0f} seconds: add nodes, or wait for its other work"
                    )
        finally:
            pool.shutdown()

    def _shares(self) -> tuple[int, int]:
        """Number of actors, and cores per actor."""
        nodes = [n["Resources"].get("CPU", 0.0) for n in self._ray.nodes() if n["Alive"]]
        usable = [cores for cores in nodes if cores >= 1]
        if not usable:
            raise JobError("the Ray cluster has no node with a core")
        count = self._workers or len(usable)
        per_node = math.ceil(count / len(usable))
        return count, max(1, int(min(usable)) // per_node)


def _read_bundle(folder: Path) -> dict[str, bytes]:
    names = [*read_manifest(folder).files, MANIFEST]
    return {name: (folder / name).read_bytes() for name in names}


class _Queue:
    """Shards to submit: those of lost actors first, then new ones; empty once stopped."""

    def __init__(self, shards: Iterator[Shard], stopped: Callable[[], bool]) -> None:
        self._shards, self._stopped = shards, stopped
        self._waiting: list[Shard] = []

    def __bool__(self) -> bool:
        if not self._waiting:
            self._waiting.extend(islice(self._shards, 1))
        return bool(self._waiting) and not self._stopped()

    def pop(self) -> Shard:
        """Remove the next shard; only if the queue is not empty."""
        return self._waiting.pop()

    def put_back(self, shard: Shard) -> None:
        """Return the shard of a lost actor."""
        self._waiting.append(shard)


class _ActorPool:
    """A fixed number of actors; a lost one is replaced once the cluster has room.

    Attributes:
        ready: actors with free slots, once for each slot.
    """

    def __init__(self, ray: Any, count: int, cores: int, arguments: tuple[Any, ...]) -> None:
        self._ray = ray
        self._kind = ray.remote(num_cpus=cores)(_Actor)
        self._arguments = arguments
        self._losses: Counter[int | None] = Counter()  # by shard; None: while starting
        self._actors: list[Any] = []
        self.ready: list[Any] = []
        # Pending calls by Ray reference: the actor, and its shard or None while starting.
        self._pending: dict[Any, tuple[Any, Shard | None]] = {}
        for _ in range(count):
            self._start()

    def _start(self) -> None:
        # Ray queues the actor until there is room; it gets no shard before.
        actor = self._kind.remote(*self._arguments)
        self._actors.append(actor)
        self._pending[actor.prepare.remote()] = actor, None

    @property
    def busy(self) -> bool:
        """True while a shard is in progress."""
        return any(shard is not None for _, shard in self._pending.values())

    def submit(self, shard: Shard) -> None:
        """Send a shard to a ready actor."""
        actor = self.ready.pop(0)
        self._pending[actor.run.remote(shard)] = actor, shard

    def poll(self) -> Iterator[tuple[Any, Shard | None]]:
        """Wait briefly for results, with their shards; None if the actor was lost.

        Raises:
            JobError: actors are lost again and again.
        """
        if not self._pending:
            return
        done, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=_POLL)
        for reference in done:
            actor, shard = self._pending.pop(reference)
            number = None if shard is None else shard.number
            try:
                result = self._ray.get(reference, timeout=_FETCH)
            except self._ray.exceptions.RayError as error:
                self._lose(actor, number, error)
                result = None
            else:
                del self._losses[number]  # only successive losses count
                if actor in self._actors:
                    self.ready.extend([actor] * (_PREFETCH if shard is None else 1))
            yield result, shard

    def _lose(self, actor: Any, number: int | None, why: Exception) -> None:
        self._losses[number] += 1
        if self._losses[number] == _MAX_LOSSES:
            where = "their start" if number is None else f"shard {number}"
            raise JobError(f"workers were lost {_MAX_LOSSES} times at {where}: {why}") from why
        if actor in self._actors:  # otherwise this is another shard of the same actor
            self._actors.remove(actor)
            self.ready = [other for other in self.ready if other != actor]
            self._ray.kill(actor)
            self._start()

    def shutdown(self) -> None:
        """Stop all actors."""
        for actor in self._actors:
            self._ray.kill(actor)


class _Actor:
    """A worker on a node."""

    def __init__(self, spec: JobSpec, files: dict[str, bytes]) -> None:
        self._spec, self._files = spec, files
        self._resources = ExitStack()

    def prepare(self) -> Events | GalipEdgeError:
        """Store the bundle on this node; return no events, or the error that ends the job."""
        log_to_stderr()
        try:
            # Held until the actor ends: a later leader waits for it.
            self._resources.enter_context(open_storage(self._spec.out).join())
            bundle = store_bundle(self._files, self._spec.model_hash, self._resources)
            self._worker = Worker(replace(self._spec, bundle=bundle))
        except GalipEdgeError as error:
            return error
        return []

    def run(self, shard: Shard) -> Events | GalipEdgeError:
        """Return the events of a shard, or the error that ends the job."""
        try:
            return list(self._worker.run(shard))
        except GalipEdgeError as error:
            return error


def store_bundle(files: dict[str, bytes], model_hash: str, resources: ExitStack) -> Path:
    """Write a copy of a bundle to the user's private cache, unless an intact one exists.

    Args:
        files: content of the bundle's files, by name.
        model_hash: hash that identifies the model.
        resources: removes the copy at its end if the cache cannot be used.

    Raises:
        GalipEdgeError: the copy cannot be written.
    """
    root = private_folder(cache_folder(), "bundles")
    if root is None:
        root = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="galip-edge-")))
    folder = root / model_hash[:16]
    busy = f"another worker of this node is writing {folder}: stop it"
    with file_lock(root / f"{folder.name}.lock", _STORING, busy):
        if not _is_intact(folder, model_hash):
            with atomic_folder(folder, replace=True) as temporary:
                temporary.chmod(0o700)
                for name, content in files.items():
                    (temporary / name).write_bytes(content)
    return folder


def _is_intact(folder: Path, model_hash: str) -> bool:
    try:
        manifest = read_manifest(folder)
        verify_files(folder, manifest, VerifiedFiles(cache_folder()))
    except BundleError:
        return False
    return manifest.model_hash == model_hash
