"""Parts made by a Ray cluster, with one worker a node, or as many as are asked for."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from runtime.bundle import MANIFEST, read_manifest
from runtime.errors import GalipEdgeError, JobError
from runtime.files import atomic_folder, cache_folder
from runtime.jobs.journal import Entry
from runtime.jobs.parts import Part
from runtime.jobs.place import place_of
from runtime.jobs.worker import Kept, Work, Worker

# A part whose worker was lost so often is not given to another one.
_LOSSES = 5

# Parts at each worker, so that it does not wait for us.
_AHEAD = 2

# Seconds: between looks at whether we shall stop, and for what a worker made to come here.
_GLANCE, _FETCH = 0.5, 60.0


class Ray:
    """An engine of actors, each on a node with its cores to itself.

    The model goes to each node once, and what is compiled from it stays in the node's cache. The
    work of an actor or node that dies is done again by another.

    Args:
        workers: actors; None: one a node.
        address: of the cluster; None: that of the environment, else a new one on this machine.
        patience: seconds for which the cluster may have no room for any actor.

    Raises:
        JobError: Ray is not installed, or cannot be reached.
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
                "--engine ray needs ray, which is not installed: pip install 'galip-edge[ray]'"
            ) from error
        self._joined = not ray.is_initialized()
        if self._joined:
            # A cluster that we start tells nobody of its use, unless its user says so.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            try:
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise JobError(f"no Ray cluster at {address}: {error}") from error
        self._ray: Any = ray
        self._workers, self._patience = workers, patience

    def close(self) -> None:
        """Leave the cluster, unless this program had joined it before."""
        if self._joined:
            self._ray.shutdown()

    def run(
        self, work: Work, parts: Iterator[Part], stopped: Callable[[], bool]
    ) -> Iterator[Kept | Entry]:
        """See Engine. Entries come when their part is done."""
        absolute = work.out if "://" in work.out else str(Path(work.out).resolve())
        count, cores = self._shares()
        share = replace(
            work, out=absolute, options=replace(work.options, threads=work.options.threads or cores)
        )
        queue = _Queue(parts, stopped)
        files = self._ray.put(_read_bundle(work.bundle))
        crew = _Crew(self._ray, count, cores, (share, files))
        try:
            worked = time.monotonic()
            while queue or crew.works:
                while crew.ready and queue:
                    crew.give(queue.take())
                for outcome, part in crew.hear():
                    if isinstance(outcome, GalipEdgeError):
                        raise outcome
                    if outcome is None and part is not None:
                        queue.put_back(part)
                    yield from outcome or ()
                if crew.ready or crew.works:
                    worked = time.monotonic()
                elif time.monotonic() - worked > self._patience:
                    raise JobError(
                        f"the Ray cluster had no node with {cores} free cores for "
                        f"{self._patience:.0f} seconds: add nodes, or wait for its other work"
                    )
        finally:
            crew.dismiss()

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


class _Queue:
    """Parts that are to be given: those whose worker was lost, and new ones; none once stopped."""

    def __init__(self, parts: Iterator[Part], stopped: Callable[[], bool]) -> None:
        self._parts, self._stopped = parts, stopped
        self._waiting: list[Part] = []

    def __bool__(self) -> bool:
        if not self._waiting:
            self._waiting.extend(islice(self._parts, 1))
        return bool(self._waiting) and not self._stopped()

    def take(self) -> Part:
        """The next one, where there is one."""
        return self._waiting.pop()

    def put_back(self, part: Part) -> None:
        """It has to be done again."""
        self._waiting.append(part)


class _Crew:
    """So many actors: one that is lost is replaced, as soon as the cluster has room for another.

    Attributes:
        ready: actors that can be given a part; one that can be given two is in it twice.
    """

    def __init__(self, ray: Any, count: int, cores: int, arguments: tuple[Any, ...]) -> None:
        self._ray = ray
        self._kind = ray.remote(num_cpus=cores)(_Actor)
        self._arguments = arguments
        self._losses: Counter[int | None] = Counter()  # by part, or of those that were to get ready
        self._actors: list[Any] = []
        self.ready: list[Any] = []
        # What an actor was asked for, by Ray's reference: a part, or None to get ready.
        self._asked: dict[Any, tuple[Any, Part | None]] = {}
        for _ in range(count):
            self._start()

    def _start(self) -> None:
        # Ray lets it wait until there is room for it; it is given no part before.
        actor = self._kind.remote(*self._arguments)
        self._actors.append(actor)
        self._asked[actor.prepare.remote()] = actor, None

    @property
    def works(self) -> bool:
        """Whether somebody has a part."""
        return any(part is not None for _, part in self._asked.values())

    def give(self, part: Part) -> None:
        """To one that is ready."""
        actor = self.ready.pop(0)
        self._asked[actor.run.remote(part)] = actor, part

    def hear(self) -> Iterator[tuple[Any, Part | None]]:
        """What came of what was asked, for a while: of a part whose actor was lost None came.

        Raises:
            JobError: actors are lost again and again.
        """
        if not self._asked:
            return
        done, _ = self._ray.wait(list(self._asked), num_returns=1, timeout=_GLANCE)
        for reference in done:
            actor, part = self._asked.pop(reference)
            number = None if part is None else part.number
            try:
                outcome = self._ray.get(reference, timeout=_FETCH)
            except self._ray.exceptions.RayError as error:
                self._lose(actor, number, error)
                outcome = None
            else:
                del self._losses[number]  # one after the other is what counts
                if actor in self._actors:
                    self.ready.extend([actor] * (_AHEAD if part is None else 1))
            yield outcome, part

    def _lose(self, actor: Any, number: int | None, why: Exception) -> None:
        self._losses[number] += 1
        if self._losses[number] == _LOSSES:
            where = "their start" if number is None else f"part {number}"
            raise JobError(f"workers were lost {_LOSSES} times at {where}: {why}") from why
        if actor in self._actors:  # else this is another part that it had
            self._actors.remove(actor)
            self.ready = [other for other in self.ready if other != actor]
            self._ray.kill(actor)
            self._start()

    def dismiss(self) -> None:
        """End them all."""
        for actor in self._actors:
            self._ray.kill(actor)


class _Actor:
    """A worker on some node."""

    def __init__(self, work: Work, files: dict[str, bytes]) -> None:
        self._folder = cache_folder() / "bundles" / work.model_hash[:16]
        self._work, self._files = replace(work, bundle=self._folder), files
        self._until_the_end = ExitStack()

    def prepare(self) -> list[Kept | Entry] | GalipEdgeError:
        """Have the model on this node: nothing, or why the job cannot go on."""
        try:
            place = place_of(self._work.out)
            self._until_the_end.enter_context(place.share())  # a later leader waits for it
            self._store_bundle()
            self._worker = Worker(self._work)
        except GalipEdgeError as error:
            return error
        return []

    def _store_bundle(self) -> None:
        if (self._folder / MANIFEST).exists():
            return
        try:
            with atomic_folder(self._folder) as temporary:
                for name, content in self._files.items():
                    (temporary / name).write_bytes(content)
        except GalipEdgeError:
            if not (self._folder / MANIFEST).exists():  # which another worker of this node wrote
                raise

    def run(self, part: Part) -> list[Kept | Entry] | GalipEdgeError:
        """A part's outcome, or why the job cannot go on."""
        try:
            return list(self._worker.run(part))
        except GalipEdgeError as error:
            return error
