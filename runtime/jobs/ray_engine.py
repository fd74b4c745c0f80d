"""Parts made by a Ray cluster, with one worker a node, or as many as are asked for."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.bundle import MANIFEST, read_manifest
from runtime.cache import cache_folder
from runtime.errors import GalipEdgeError, JobError
from runtime.files import atomic_folder
from runtime.jobs.journal import Entry
from runtime.jobs.parts import Part
from runtime.jobs.worker import Work, Worker

# A part whose worker was lost so often is not given to another one.
_LOSSES = 5

# Parts at each worker, so that it does not wait for us.
_AHEAD = 2


class Ray:
    """An engine of actors, each on a node with its cores to itself.

    The model goes to each node once, and what is compiled from it stays in the node's cache. The
    work of an actor or node that dies is done again by another.

    Args:
        workers: actors; None: one a node.
        address: of the cluster; None: that of the environment, else a new one on this machine.

    Raises:
        JobError: Ray is not installed, or cannot be reached.
    """

    def __init__(self, workers: int | None = None, address: str | None = None) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        try:
            import ray
        except ImportError as error:
            raise JobError(
                "--engine ray needs ray, which is not installed: pip install 'galip-edge[ray]'"
            ) from error
        if not ray.is_initialized():
            # A cluster that we start tells nobody of its use, unless its user says so.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            try:
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise JobError(f"no Ray cluster at {address}: {error}") from error
        self._ray: Any = ray
        self._workers = workers

    def run(
        self, work: Work, parts: Iterator[Part], stopped: Callable[[], bool]
    ) -> Iterator[int | Entry]:
        """See Engine. Entries come when their part is done."""
        ray = self._ray
        files = ray.put(_read_bundle(work.bundle))
        absolute = work.out if "://" in work.out else str(Path(work.out).resolve())
        count, cores = self._shares()
        share = replace(
            work, out=absolute, options=replace(work.options, threads=work.options.threads or cores)
        )
        kind = ray.remote(num_cpus=cores)(_Actor)
        actors = [kind.remote(share, files) for _ in range(count)]
        waiting: dict[Any, tuple[Any, Part]] = {}
        lost: list[Part] = []
        losses: Counter[int] = Counter()

        def give(to: Any) -> None:
            part = lost.pop() if lost else None if stopped() else next(parts, None)
            if part is not None:
                waiting[to.run.remote(part)] = to, part

        try:
            for _ in range(_AHEAD):
                for actor in actors:
                    give(actor)
            while waiting:
                (done,), _ = ray.wait(list(waiting), num_returns=1)
                actor, part = waiting.pop(done)
                try:
                    result = ray.get(done)
                except ray.exceptions.RayError as error:
                    losses[part.number] += 1
                    if losses[part.number] == _LOSSES:
                        raise JobError(
                            f"workers were lost {_LOSSES} times at part {part.number}: {error}"
                        ) from error
                    lost.append(part)
                    if actor in actors:
                        actors.remove(actor)
                    if not actors or ray.available_resources().get("CPU", 0) >= cores:
                        actors.append(kind.remote(share, files))
                    give(actors[losses.total() % len(actors)])
                    continue
                if isinstance(result, GalipEdgeError):
                    raise result
                yield from result
                give(actor)
        finally:
            for actor in actors:
                ray.kill(actor)

    def _shares(self) -> tuple[int, int]:
        """How many actors, and cores of each."""
        nodes = [n["Resources"].get("CPU", 0.0) for n in self._ray.nodes() if n["Alive"]]
        usable = [cores for cores in nodes if cores >= 1]
        if not usable:
            raise JobError("the Ray cluster has no node with a core")
        count = self._workers or len(usable)
        on_a_node = math.ceil(count / len(usable))
        return count, max(1, int(min(usable)) // on_a_node)


def _read_bundle(folder: Path) -> dict[str, bytes]:
    names = [*read_manifest(folder).files, MANIFEST]
    return {name: (folder / name).read_bytes() for name in names}


class _Actor:
    """A worker on some node."""

    def __init__(self, work: Work, files: dict[str, bytes]) -> None:
        folder = cache_folder() / "bundles" / work.model_hash[:16]
        if not (folder / MANIFEST).exists():
            try:
                with atomic_folder(folder) as temporary:
                    for name, content in files.items():
                        (temporary / name).write_bytes(content)
            except GalipEdgeError:
                if not (folder / MANIFEST).exists():  # which another worker of this node wrote
                    raise
        self._worker = Worker(replace(work, bundle=folder))

    def run(self, part: Part) -> list[int | Entry] | GalipEdgeError:
        """A part's outcome, or why the job cannot go on."""
        try:
            return list(self._worker.run(part))
        except GalipEdgeError as error:
            return error
