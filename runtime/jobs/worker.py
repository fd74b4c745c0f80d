"""Makes the images of one part after the other."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runtime.errors import GalipEdgeError, JobError
from runtime.images import ImageMetadata, Images
from runtime.jobs.encoding import ImageFormat
from runtime.jobs.journal import DONE, FAILED, Entry, Journal, Record, entry_of, read_record
from runtime.jobs.outputs import Output, open_output
from runtime.jobs.parts import Item, Part
from runtime.jobs.place import STATE, RemotePlace, place_of
from runtime.keyframes import Keyframe
from runtime.latent import latent_of
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
        retry_failed: whether to make again what failed before.
    """

    bundle: Path
    model: str
    model_hash: str
    options: PipelineOptions
    out: str
    form: str
    image_format: ImageFormat
    retry_failed: bool = False


def journal_name(part: Part) -> str:
    """Of a part's record, in the job's folder."""
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

    def run(self, part: Part, stopped: Callable[[], bool] = lambda: False) -> Iterator[int | Entry]:
        """Make what is missing of `part`: how many items earlier runs did, then the new entries,
        each once its image is there.

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
    ) -> Iterator[int | Entry]:
        """Make the part here, whole, and store its record after its files."""
        record = read_record(place.read(journal_name(part)))
        if self._is_whole(part, record, place):
            yield len(part.items)
            return
        yield 0
        with tempfile.TemporaryDirectory(prefix="galip-edge-") as name:
            folder = Path(name)
            _, *entries = self._run_in(folder, part, stopped)
            if len(entries) < len(part.items):
                return  # stopped
            for file in sorted(folder.rglob("*")):
                if file.is_file() and STATE not in file.parts:
                    place.put(file, file.relative_to(folder).as_posix())
            place.put(folder / journal_name(part), journal_name(part))
        yield from entries

    def _is_whole(self, part: Part, record: Record, place: RemotePlace) -> bool:
        """Whether nothing of a part that is stored elsewhere is missing."""
        if record.shards is None or len(record.entries) != len(part.items):
            return False
        failed = any(entry["status"] == FAILED for entry in record.entries)
        if failed and self._work.retry_failed:
            return False
        wanted = dict(record.shards) or {
            entry["file"]: entry["bytes"] for entry in record.entries if entry["file"]
        }
        found = place.sizes("" if record.shards else part.name)
        return all(found.get(name) == size for name, size in wanted.items())

    def _run_in(
        self, folder: Path, part: Part, stopped: Callable[[], bool]
    ) -> Iterator[int | Entry]:
        journal = Journal(folder / journal_name(part))
        suffix = self._work.image_format.suffix
        output = open_output(self._work.form, folder, folder / STATE / "open", part, suffix)
        try:
            yield from self._run(part, journal, output, stopped)
        except OSError as error:
            raise JobError(f"cannot write to {folder}: {error.strerror or error}") from error
        finally:
            output.suspend()
            journal.close()

    def _run(
        self, part: Part, journal: Journal, output: Output, stopped: Callable[[], bool]
    ) -> Iterator[int | Entry]:
        record = output.resume(journal.read())
        entries = [e for e in record.entries if e["status"] == DONE or not self._work.retry_failed]
        known = {(entry["row"], entry["index"]) for entry in entries}
        missing = [item for item in part.items if item.place not in known]
        yield len(entries)
        if not missing and record.shards is not None:
            return
        journal.restart(Record(entries, record.shards))
        for entry in self._write_all(missing, output, stopped):
            journal.add(entry)
            entries.append(entry)
            yield entry
        if len(entries) == len(part.items):
            entries.sort(key=lambda entry: (entry["row"], entry["index"]))
            journal.finish(Record(entries, output.finish()))

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
        latents = (latent_of(pipeline, each) for each in wanted)
        return pipeline.synthesize_each(latents, len(items))


class _Clock:
    """Milliseconds since it was last asked: over many images they sum up to the time of all."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        milliseconds, self._last = (now - self._last) * 1e3, now
        return milliseconds
