"""Worker: generates, encodes and writes the images of shards."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from runtime.arrays import Images
from runtime.errors import GalipEdgeError, JobError
from runtime.images import ImageFormat, ImageMetadata
from runtime.jobs.journal import (
    DONE,
    FAILED,
    Entry,
    Journal,
    ShardRecord,
    entry_of,
    matches,
    parse_journal,
)
from runtime.jobs.shards import Item, Shard
from runtime.jobs.storage import STATE, LocalStorage, RemoteStorage, open_storage
from runtime.jobs.writers import ShardWriter, open_writer
from runtime.latent import Keyframe, keyframe_latent
from runtime.pipeline import Pipeline, PipelineOptions

# Threads that encode and write; mostly waiting for the disk.
_WRITERS = 4


@dataclass(frozen=True)
class JobSpec:
    """Everything that workers need to know; sent to other processes.

    Attributes:
        bundle: the model's folder.
        model, model_hash: its name, and the hash of its files.
        options: how a worker uses the CPU.
        out: path or URL of the job's folder.
        output_format: one of `writers.OUTPUT_FORMATS`.
        image_format: encoding of the images.
        retry_failed: retry failed images of earlier runs, except invalid rows.
        verify: compare existing files with their hashes.
        types: Arrow types of the kept columns.
    """

    bundle: Path
    model: str
    model_hash: str
    options: PipelineOptions
    out: str
    output_format: str
    image_format: ImageFormat
    retry_failed: bool = False
    verify: bool = False
    types: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Resumed:
    """First event of a shard: what earlier runs did.

    Attributes:
        kept: items that need no more work.
        lost: images that were missing or damaged, and are generated again.
    """

    kept: int
    lost: int = 0


@dataclass(frozen=True)
class Completed:
    """Event of an item: its journal entry, once its image exists or it failed."""

    entry: Entry


def journal_name(shard: Shard) -> str:
    """Name of a shard's journal in the job's folder."""
    return f"{STATE}/parts/{shard.name}.jsonl"


@dataclass(frozen=True)
class _Outcome:
    item: Item
    image: Images | None
    error: str | None
    milliseconds: float


class Worker:
    """Processes shards with its own model, loaded for the first image."""

    def __init__(self, spec: JobSpec) -> None:
        self._spec = spec
        self._storage = open_storage(spec.out)

    @cached_property
    def _pipeline(self) -> Pipeline:
        return Pipeline.from_bundle(self._spec.bundle, self._spec.options)

    def run(
        self, shard: Shard, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Resumed | Completed]:
        """Generate the missing images of a shard.

        Args:
            shard: the shard to complete.
            stopped: polled after each image; images in flight are finished then.

        Raises:
            GalipEdgeError: the model cannot be loaded, or a file cannot be written.
        """
        with self._storage.lock_shard(shard.number):
            if isinstance(self._storage, RemoteStorage):
                yield from self._run_remote(shard, self._storage, stopped)
            else:
                assert isinstance(self._storage, LocalStorage)
                yield from self._run_local(self._storage.folder, shard, stopped)

    def _run_remote(
        self, shard: Shard, storage: RemoteStorage, stopped: Callable[[], bool]
    ) -> Iterator[Resumed | Completed]:
        """Complete the shard in a temporary folder; upload its files, the journal last."""
        name = journal_name(shard)
        record = parse_journal(storage.read(name), f"{storage}/{name}")
        valid = self._valid(shard, record)
        finished = record.sizes is not None
        lost = self._count_lost(record, valid, storage) if finished else 0
        unchanged = len(shard.items) == len(valid) == len(record.entries)
        if finished and unchanged and not lost:
            yield Resumed(len(valid))
            return
        yield Resumed(0, lost)
        with tempfile.TemporaryDirectory(prefix="galip-edge-") as temporary:
            folder = Path(temporary)
            completed = [
                event
                for event in self._run_local(folder, shard, stopped)
                if isinstance(event, Completed)
            ]
            if len(completed) < len(shard.items):
                return  # stopped
            files = {
                file.relative_to(folder).as_posix(): file
                for file in sorted(folder.rglob("*"))
                if file.is_file() and STATE not in file.parts
            }
            storage.put_all(files)
            before = {e["file"] for e in record.entries if e["file"]} | set(record.sizes or {})
            for file in sorted(before - set(files)):
                storage.remove(file)
            storage.put(folder / name, name)
        yield from completed

    def _count_lost(
        self, record: ShardRecord, entries: Sequence[Entry], storage: RemoteStorage
    ) -> int:
        """Count the missing or damaged images of a stored shard."""
        done = [entry for entry in entries if entry["status"] == DONE]
        if record.sizes:
            found = storage.sizes("")
            bad = {
                name
                for name, size in record.sizes.items()
                if found.get(name) != size or not self._is_intact(storage, name, record.hashes)
            }
            return sum(entry["file"] in bad for entry in done)
        sizes: dict[str, int] = {}
        for folder in {entry["file"].split("/")[0] for entry in done}:
            sizes |= storage.sizes(folder)
        hashes = {entry["file"]: entry["sha256"] for entry in done}
        return sum(
            sizes.get(entry["file"]) != entry["bytes"]
            or not self._is_intact(storage, entry["file"], hashes)
            for entry in done
        )

    def _is_intact(self, storage: RemoteStorage, name: str, hashes: Mapping[str, str]) -> bool:
        """Compare a file with its hash, if files are to be verified."""
        if not self._spec.verify or name not in hashes:
            return True
        return hashlib.sha256(storage.read(name) or b"").hexdigest() == hashes[name]

    def _valid(self, shard: Shard, record: ShardRecord) -> list[Entry]:
        """Select the latest entry of each item that is unchanged and not to be retried."""
        items = {item.position: item for item in shard.items}
        found: dict[tuple[int, int], Entry] = {}
        for entry in record.entries:
            position = entry["row"], entry["index"]
            item = items.get(position)
            if item is None or not matches(entry, item, self._spec.model_hash):
                continue
            retry = entry["status"] == FAILED and item.error is None and self._spec.retry_failed
            if not retry:
                found[position] = entry
        return list(found.values())

    def _run_local(
        self, folder: Path, shard: Shard, stopped: Callable[[], bool]
    ) -> Iterator[Resumed | Completed]:
        spec, journal = self._spec, Journal(folder / journal_name(shard))
        writer = open_writer(
            *(spec.output_format, folder, folder / STATE / "open", shard),
            *(spec.image_format.suffix, dict(spec.types)),
        )
        try:
            yield from self._complete(shard, journal, writer, stopped)
        except OSError as error:
            raise JobError(f"cannot write to {folder}: {error.strerror or error}") from error
        finally:
            writer.suspend()
            journal.close()

    def _complete(
        self, shard: Shard, journal: Journal, writer: ShardWriter, stopped: Callable[[], bool]
    ) -> Iterator[Resumed | Completed]:
        record = journal.read()
        reasons = {item.position: item.error for item in shard.items if item.error is not None}
        valid = [  # an invalid row may have another reason now
            entry
            for entry in self._valid(shard, record)
            if reasons.get((entry["row"], entry["index"]), entry["error"]) == entry["error"]
        ]
        entries = writer.resume(record, valid, self._spec.verify)
        known = {(entry["row"], entry["index"]) for entry in entries}
        missing = [item for item in shard.items if item.position not in known]
        finished = record.sizes is not None
        yield Resumed(len(entries), len(valid) - len(entries) if finished else 0)
        unchanged = not missing and len(entries) == len(record.entries)
        if finished and unchanged and not writer.atomic and not writer.unfinished:
            return
        if not writer.atomic:
            journal.restart(ShardRecord(entries, record.sizes, record.hashes))
        for entry in self._write_all(missing, writer, stopped):
            if not writer.atomic:
                journal.append(entry)
            entries.append(entry)
            yield Completed(entry)
        if len(entries) == len(shard.items):
            entries.sort(key=lambda entry: (entry["row"], entry["index"]))
            journal.finish(ShardRecord(entries, *writer.finish()))

    def _write_all(
        self, items: Sequence[Item], writer: ShardWriter, stopped: Callable[[], bool]
    ) -> Iterator[Entry]:
        """Encode and write images in threads while the next ones are generated."""
        pending: deque[Future[tuple[_Outcome, bytes, Entry]]] = deque()
        with ThreadPoolExecutor(_WRITERS) as pool:

            def oldest() -> Entry:
                outcome, data, entry = pending.popleft().result()
                if outcome.image is not None:
                    writer.append(outcome.item, data, entry)
                return entry

            for outcome in self._generate_all(items):
                pending.append(pool.submit(self._store, outcome, writer))
                if len(pending) > 2 * _WRITERS:
                    yield oldest()
                if stopped():
                    break
            while pending:
                yield oldest()

    def _store(self, outcome: _Outcome, writer: ShardWriter) -> tuple[_Outcome, bytes, Entry]:
        item, model = outcome.item, self._spec.model_hash
        if outcome.image is None:
            error = {"status": FAILED, "error": outcome.error}
            return outcome, b"", entry_of(item, model, outcome.milliseconds, **error)
        metadata = ImageMetadata(item.prompt, item.seed, item.index, self._spec.model, model)
        data = self._spec.image_format.encode(outcome.image, metadata)
        writer.store(item, data)
        digest = hashlib.sha256(data).hexdigest()
        facts: dict[str, Any] = {"status": DONE, "bytes": len(data), "sha256": digest}
        return outcome, data, entry_of(item, model, outcome.milliseconds, **facts)

    def _generate_all(self, items: Sequence[Item]) -> Iterator[_Outcome]:
        """Generate each item's image; a failure affects no other item."""
        position, clock = 0, _Clock()
        while position < len(items):
            images = self._images([item for item in items[position:] if item.error is None])
            try:
                for item in items[position:]:
                    image = None if item.error is not None else next(images)
                    yield _Outcome(item, image, item.error, clock.lap())
                    position += 1
            except GalipEdgeError:
                raise  # an error of the model, not of this item
            except Exception:  # noqa: BLE001
                # Items are processed ahead: the failure may be that of a later one.
                yield self._generate_alone(items[position], clock)
                position += 1

    def _generate_alone(self, item: Item, clock: _Clock) -> _Outcome:
        try:
            return _Outcome(item, next(self._images([item])), None, clock.lap())
        except GalipEdgeError:
            raise
        except Exception as error:  # noqa: BLE001
            message = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
            return _Outcome(item, None, message, clock.lap())

    def _images(self, items: Sequence[Item]) -> Iterator[Images]:
        if not items:
            return iter(())
        pipeline = self._pipeline
        pipeline.prepare(len(items))
        wanted = (Keyframe(item.prompt, item.seed, item.index) for item in items)
        latents = (keyframe_latent(pipeline, each) for each in wanted)
        return pipeline.synthesize_each(latents, len(items))


class _Clock:
    """Milliseconds since the last lap; the laps of all images add up to the total time."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        milliseconds, self._last = (now - self._last) * 1e3, now
        return milliseconds
