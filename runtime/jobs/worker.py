"""Makes the images of one part after the other."""

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
from runtime.jobs.journal import DONE, FAILED, Entry, Journal, Record, entry_of, read_record
from runtime.jobs.outputs import Output, open_output
from runtime.jobs.parts import Item, Part
from runtime.jobs.place import STATE, RemotePlace, place_of
from runtime.latent import Keyframe, keyframe_latent
from runtime.pipeline import Pipeline, PipelineOptions

# Writers wait for the disk more than they work.
_WRITERS = 4


@dataclass(frozen=True)
class Work:
    """What a worker needs to know; it goes to other processes.

    Attributes:
        bundle: the model's folder.
        model, model_hash: its name, and the hash of all of its files.
        options: how the worker uses the CPU.
        out: path or URL of the job's folder.
        form: of the output, one of `outputs.FORMS`.
        image_format: of the images.
        retry_failed: whether to try again what failed before, invalid rows aside.
        verify: whether to compare what is there with its hashes.
        types: Arrow types of the kept columns.
    """

    bundle: Path
    model: str
    model_hash: str
    options: PipelineOptions
    out: str
    form: str
    image_format: ImageFormat
    retry_failed: bool = False
    verify: bool = False
    types: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Kept:
    """Items of a part that earlier runs did.

    Attributes:
        count: items that need no more work.
        lost: images that were missing or damaged, and are generated again.
    """

    count: int
    lost: int = 0


def journal_name(part: Part) -> str:
    """Name of a part's record in the job's folder."""
    return f"{STATE}/parts/{part.name}.jsonl"


@dataclass(frozen=True)
class _Made:
    item: Item
    image: Images | None
    error: str | None
    milliseconds: float


class Worker:
    """Makes parts with a model of its own, which is loaded when the first image is made."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._place = place_of(work.out)

    @cached_property
    def _pipeline(self) -> Pipeline:
        return Pipeline.from_bundle(self._work.bundle, self._work.options)

    def run(
        self, part: Part, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[Kept | Entry]:
        """Make what is missing of `part`: what earlier runs did, then the new entries, each once
        its image exists.

        Args:
            part: see there.
            stopped: asked after each image; what is in flight is finished then.

        Raises:
            GalipEdgeError: the model cannot be loaded, or a file cannot be written.
        """
        with self._place.hold(part.number):
            if isinstance(self._place, RemotePlace):
                yield from self._run_elsewhere(part, self._place, stopped)
            else:
                yield from self._run_in(self._place.folder, part, stopped)

    def _run_elsewhere(
        self, part: Part, place: RemotePlace, stopped: Callable[[], bool]
    ) -> Iterator[Kept | Entry]:
        """Make the part here, whole, and store its record after its files."""
        record = read_record(place.read(journal_name(part)), f"{place}/{journal_name(part)}")
        wanted = self._wanted(part, record)
        finished = record.shards is not None
        lost = self._lost(record, wanted, place) if finished else 0
        same = len(part.items) == len(wanted) == len(record.entries)
        if finished and same and not lost:
            yield Kept(len(wanted))
            return
        yield Kept(0, lost)
        with tempfile.TemporaryDirectory(prefix="galip-edge-") as name:
            folder = Path(name)
            _, *entries = self._run_in(folder, part, stopped)
            if len(entries) < len(part.items):
                return  # stopped
            files = {
                file.relative_to(folder).as_posix(): file
                for file in sorted(folder.rglob("*"))
                if file.is_file() and STATE not in file.parts
            }
            place.put_all(files)
            before = {e["file"] for e in record.entries if e["file"]} | set(record.shards or {})
            for file in sorted(before - set(files)):
                place.remove(file)
            place.put(folder / journal_name(part), journal_name(part))
        yield from entries

    def _lost(self, record: Record, entries: Sequence[Entry], place: RemotePlace) -> int:
        """How many images of a part that is stored elsewhere are missing or damaged."""
        done = [entry for entry in entries if entry["status"] == DONE]
        if record.shards:
            sizes = place.sizes("")
            bad = {
                name
                for name, size in record.shards.items()
                if sizes.get(name) != size or not self._is_right(place, name, record.hashes)
            }
            return sum(entry["file"] in bad for entry in done)
        sizes = {}
        for folder in {entry["file"].split("/")[0] for entry in done}:
            sizes |= place.sizes(folder)
        hashes = {entry["file"]: entry["sha256"] for entry in done}
        return sum(
            sizes.get(entry["file"]) != entry["bytes"]
            or not self._is_right(place, entry["file"], hashes)
            for entry in done
        )

    def _is_right(self, place: RemotePlace, name: str, hashes: Mapping[str, str]) -> bool:
        """Whether a file has its hash, where hashes are to be verified."""
        if not self._work.verify or name not in hashes:
            return True
        return hashlib.sha256(place.read(name) or b"").hexdigest() == hashes[name]

    def _run_in(
        self, folder: Path, part: Part, stopped: Callable[[], bool]
    ) -> Iterator[Kept | Entry]:
        work, journal = self._work, Journal(folder / journal_name(part))
        output = open_output(
            *(work.form, folder, folder / STATE / "open", part),
            *(work.image_format.suffix, dict(work.types)),
        )
        try:
            yield from self._run(part, journal, output, stopped)
        except OSError as error:
            raise JobError(f"cannot write to {folder}: {error.strerror or error}") from error
        finally:
            output.suspend()
            journal.close()

    def _wanted(self, part: Part, record: Record) -> list[Entry]:
        """An earlier run's entries whose items are as they were; the latest one of each item."""
        items = {item.place: item for item in part.items}
        found: dict[tuple[int, int], Entry] = {}
        for entry in record.entries:
            place = entry["row"], entry["index"]
            item = items.get(place)
            if item is None or not item.matches(entry):
                continue
            again = entry["status"] == FAILED and item.error is None and self._work.retry_failed
            if not again:
                found[place] = entry
        return list(found.values())

    def _run(
        self, part: Part, journal: Journal, output: Output, stopped: Callable[[], bool]
    ) -> Iterator[Kept | Entry]:
        record = journal.read()
        wanted = self._wanted(part, record)
        entries = output.resume(record, wanted, self._work.verify)
        known = {(entry["row"], entry["index"]) for entry in entries}
        missing = [item for item in part.items if item.place not in known]
        finished = record.shards is not None
        yield Kept(len(entries), len(wanted) - len(entries) if finished else 0)
        if finished and not missing and not output.at_once and len(entries) == len(record.entries):
            return
        if not output.at_once:
            journal.restart(Record(entries, record.shards, record.hashes))
        for entry in self._write_all(missing, output, stopped):
            if not output.at_once:
                journal.add(entry)
            entries.append(entry)
            yield entry
        if len(entries) == len(part.items):
            entries.sort(key=lambda entry: (entry["row"], entry["index"]))
            journal.finish(Record(entries, *output.finish()))

    def _write_all(
        self, items: Sequence[Item], output: Output, stopped: Callable[[], bool]
    ) -> Iterator[Entry]:
        """Images are encoded and stored beside the work on the next ones."""
        pending: deque[Future[tuple[_Made, bytes, Entry]]] = deque()
        with ThreadPoolExecutor(_WRITERS) as pool:

            def oldest() -> Entry:
                made, data, entry = pending.popleft().result()
                if made.image is not None:
                    output.append(made.item, data, entry)
                return entry

            for made in self._make_all(items):
                pending.append(pool.submit(self._store, made, output))
                if len(pending) > 2 * _WRITERS:
                    yield oldest()
                if stopped():
                    break
            while pending:
                yield oldest()

    def _store(self, made: _Made, output: Output) -> tuple[_Made, bytes, Entry]:
        item, model = made.item, self._work.model_hash
        if made.image is None:
            error = {"status": FAILED, "error": made.error}
            return made, b"", entry_of(item, model, made.milliseconds, **error)
        metadata = ImageMetadata(item.prompt, item.seed, item.index, self._work.model, model)
        data = self._work.image_format.encode(made.image, metadata)
        output.store(item, data)
        digest = hashlib.sha256(data).hexdigest()
        facts: dict[str, Any] = {"status": DONE, "bytes": len(data), "sha256": digest}
        return made, data, entry_of(item, model, made.milliseconds, **facts)

    def _make_all(self, items: Sequence[Item]) -> Iterator[_Made]:
        """Each item's image, or why there is none."""
        position, clock = 0, _Clock()
        while position < len(items):
            images = self._images([item for item in items[position:] if item.error is None])
            try:
                for item in items[position:]:
                    image = None if item.error is not None else next(images)
                    yield _Made(item, image, item.error, clock.lap())
                    position += 1
            except GalipEdgeError:
                raise  # of the model, not of this item
            except Exception:  # noqa: BLE001
                # Whatever an item does, the next ones are made. Some are calculated ahead, so that
                # it may have been a later one.
                yield self._alone(items[position], clock)
                position += 1

    def _alone(self, item: Item, clock: _Clock) -> _Made:
        try:
            return _Made(item, next(self._images([item])), None, clock.lap())
        except GalipEdgeError:
            raise
        except Exception as error:  # noqa: BLE001
            said = f"{type(error).__name__}: {str(error).strip() or 'no more is known'}"
            return _Made(item, None, said, clock.lap())

    def _images(self, items: Sequence[Item]) -> Iterator[Images]:
        if not items:
            return iter(())
        pipeline = self._pipeline
        pipeline.prepare(len(items))
        wanted = (Keyframe(item.prompt, item.seed, item.index) for item in items)
        latents = (keyframe_latent(pipeline, each) for each in wanted)
        return pipeline.synthesize_each(latents, len(items))


class _Clock:
    """Milliseconds since it was last asked: over many images they sum up to the time of all."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        milliseconds, self._last = (now - self._last) * 1e3, now
        return milliseconds
