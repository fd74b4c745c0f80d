"""A batch job: images of all prompts in a file, resumable after any interruption."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.bundle import Manifest, read_manifest, verify_files
from runtime.checks import require_booleans, require_integers
from runtime.compiled_cache import VerifiedFiles
from runtime.errors import GalipEdgeError, JobError
from runtime.files import cache_folder
from runtime.images import ImageFormat, ImageMetadata
from runtime.jobs.executors import Executor, SerialExecutor
from runtime.jobs.journal import COLUMNS, DONE, FAILED, INVALID, Entry, parse_journal, to_line
from runtime.jobs.locks import Held
from runtime.jobs.prompts import PromptFile
from runtime.jobs.shards import read_shards
from runtime.jobs.state import JOURNALS, STATE_FILE, TABLES, Preparation, State, open_tables
from runtime.jobs.storage import STATE, RemoteStorage, Storage, open_storage
from runtime.jobs.worker import JobSpec, Resumed
from runtime.jobs.writers import OUTPUT_FORMATS, sample_of, schema_of, write_parquet
from runtime.pipeline import Pipeline, PipelineOptions, settled_options

# A folder that data loaders skip: Hugging Face datasets ignore names starting with two underscores,
# pyarrow and Spark those starting with one, and `*.parquet` does not match inside it.
_MANIFESTS = "__manifest__"
MANIFEST, MANIFEST_TABLE = f"{_MANIFESTS}/manifest.jsonl", f"{_MANIFESTS}/manifest.parquet"

# Captions for the `imagefolder` loader of Hugging Face datasets.
METADATA = "metadata.jsonl"


# Images that an estimate measures.
_MEASURED = 8


@dataclass(frozen=True)
class JobOptions:
    """Options of a job. `output_format`, `image_format` and `shard_size` determine its files.

    Attributes:
        output_format: folder (a file per image), tar (webdataset) or parquet.
        image_format: encoding of the images.
        shard_size: images per shard, or per folder of image files; 1 to 100,000.
        retry_failed: retry failed images of earlier runs, except invalid rows.
        max_errors: stop after more failures than that in this run; None: unlimited.
        update: accept changed rows, and regenerate their images.
        verify: compare existing files with their hashes, and regenerate damaged images.
        force: if rows, model or options changed, remove the job's files and start again.
        pipeline: how the CPU is used.
    """

    output_format: str = "folder"
    image_format: ImageFormat = field(default_factory=ImageFormat)
    shard_size: int = 1000
    retry_failed: bool = False
    max_errors: int | None = None
    update: bool = False
    verify: bool = False
    force: bool = False
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)

    def __post_init__(self) -> None:
        limited = ["max_errors"] if self.max_errors is not None else []
        require_integers(self, "shard_size", *limited)
        require_booleans(self, "retry_failed", "update", "verify", "force")
        if self.output_format not in OUTPUT_FORMATS:
            raise ValueError(
                f"output_format must be one of {', '.join(OUTPUT_FORMATS)}, got "
                f"{self.output_format!r}"
            )
        if not 1 <= self.shard_size <= 100_000:
            raise ValueError(f"shard_size must be from 1 to 100,000 images, got {self.shard_size}")
        if self.max_errors is not None and self.max_errors < 0:
            raise ValueError(f"max_errors must be at least 0, got {self.max_errors}")


@dataclass
class Progress:
    """Progress of a job, in items: images wanted, and invalid rows.

    Attributes:
        items: total.
        kept: completed by earlier runs.
        done, failed: completed in this run.
        lost: images of earlier runs that were missing or damaged, and are generated again.
        all_failed: failed in this run or earlier ones; set at the end of the run.
        invalid: of those, invalid rows, which fail again unless they are changed.
    """

    items: int
    kept: int = 0
    done: int = 0
    failed: int = 0
    lost: int = 0
    all_failed: int = 0
    invalid: int = 0

    @property
    def left(self) -> int:
        """Items without an outcome yet."""
        return self.items - self.kept - self.done - self.failed


class Job:
    """A batch job.

        for entry in Job(PromptFile("prompts.csv"), "my-bundle", "images"):
            print(entry["file"] or entry["error"])

    The same job again generates only what is missing. Rows added at the end of the prompt file, or
    more images per row, extend it. Each iteration is a run; at its end, also after an error, the
    folder has a manifest, `__manifest__/manifest.jsonl` and `.parquet`.

    Args:
        prompts: the prompt file.
        bundle: the model's folder.
        out: the job's folder, created if missing: a path, or a URL that fsspec supports.
        options: default: `JobOptions()`.
        executor: distributes the work; default: this process.

    Raises:
        BundleError: the bundle is missing or damaged.
        JobError: the prompt file is unreadable or empty, `out` holds another job or one that
            another process is running, or rows changed without `options.update`.
    """

    def __init__(
        self,
        prompts: PromptFile,
        bundle: str | Path,
        out: str | Path,
        options: JobOptions | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.prompts, self.storage = prompts, open_storage(out)
        self.options = options or JobOptions()
        self.model: Manifest = read_manifest(Path(bundle))
        verify_files(Path(bundle), self.model, VerifiedFiles(cache_folder()))
        self._pipeline_options = settled_options(bundle, self.options.pipeline)
        self._executor = executor or SerialExecutor()
        self._stopped = False
        _ = prompts.layout  # an invalid prompt file leaves nothing behind
        with self.storage.lock():
            self._state = self._prepare()
        self._spec = JobSpec(
            bundle=Path(bundle),
            model=self.model.name,
            model_hash=self.model.model_hash,
            options=self._pipeline_options,
            out=str(out),
            output_format=self.options.output_format,
            image_format=self.options.image_format,
            retry_failed=self.options.retry_failed,
            verify=self.options.verify,
            types=self._state.types,
        )
        self.progress = Progress(self._state.items)

    def stop(self) -> None:
        """End the run once the images in flight are finished. May be called from any thread."""
        self._stopped = True

    def __iter__(self) -> Iterator[Entry]:
        """Run the job; yield the new lines of the manifest, each once its image exists.

        Raises:
            JobError: another process is running the job, a file cannot be written, the prompt file
                changed, the folder was removed, or more than `max_errors` images failed.
        """
        self.progress = Progress(self._state.items)
        with self.storage.lock() as held:
            self._check_held(held)
            try:
                yield from self._run(held)
            except GalipEdgeError as error:
                if held():
                    with suppress(GalipEdgeError, OSError):
                        self._write_manifest()
                raise JobError(f"{error}; rerun the same command to resume") from error
            finally:
                self._stopped = False
            self._check_held(held)
            written = self._write_manifest()
            self._check_held(held)
        self._check_end(written)

    def _run(self, held: Held) -> Iterator[Entry]:
        with ExitStack() as stack:
            try:
                tables = stack.enter_context(open_tables(self.storage, self._state.passes))
            except (OSError, ValueError) as error:
                raise self._damaged(error) from error
            shards = read_shards(self.prompts, self._state.passes, tables, self.options.shard_size)
            for event in self._executor.run(self._spec, shards, self._is_stopped):
                if isinstance(event, Resumed):
                    self.progress.kept += event.kept
                    self.progress.lost += event.lost
                    if not held():
                        raise JobError(self._gone())
                else:
                    failed = event.entry["status"] == FAILED
                    self.progress.failed += failed
                    self.progress.done += not failed
                    yield {name: it for name, it in event.entry.items() if name != INVALID}

    def _is_stopped(self) -> bool:
        return self._stopped or self._too_many_errors()

    def _too_many_errors(self) -> bool:
        most = self.options.max_errors
        return most is not None and self.progress.failed > most

    def _gone(self) -> str:
        if isinstance(self.storage, RemoteStorage):
            return f"another process took over the job in {self.storage}"
        return f"{self.storage} was removed or replaced during the run, and its content is lost"

    def _check_held(self, held: Held) -> None:
        if not held():
            raise JobError(f"{self._gone()}; rerun the same command to resume")
        try:
            found = self.storage.read(STATE_FILE)
        except OSError as error:
            raise JobError(f"cannot read {STATE_FILE} in {self.storage}: {error}") from error
        if found != self._state_bytes:
            raise JobError(
                f"another process changed the job in {self.storage}; rerun the same command to "
                "resume"
            )

    def _check_end(self, written: int) -> None:
        """Check the result of a run. Raises JobError if too many or not all items exist."""
        now = self.progress
        if self._too_many_errors():
            raise JobError(
                f"{now.failed:,} images failed, more than --max-errors allows: see {MANIFEST} in "
                f"{self.storage} for the reasons; rerun the same command to resume"
            )
        if not now.left and written != now.items:
            raise JobError(
                f"{now.items - written:,} of {now.items:,} images are missing from {self.storage}: "
                "files were removed during the run; rerun the same command to generate them again"
            )

    def _prepare(self) -> State:
        """Create, continue or extend the job's state, while the lock is held."""
        preparation = Preparation(self.storage, self.prompts, self._facts(), self.options.update)
        try:
            state = self._continue(preparation)
        except BaseException as error:
            if self.storage.read(STATE_FILE) is None:
                self.storage.remove_locks()
                raise
            if not (self.options.force and isinstance(error, JobError)):
                raise
            self._discard()
            state = preparation.update(None)
        self._state_bytes = self.storage.read(STATE_FILE)
        return state

    def _continue(self, preparation: Preparation) -> State:
        try:
            known = preparation.load()
            if known is not None and (names := preparation.mismatches(known)):
                raise JobError(
                    f"{self.storage} holds a job with another {' and another '.join(names)}: "
                    "choose another folder, or pass --force to remove the job's files and start "
                    "again"
                )
            return preparation.update(known)
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> JobError:
        return JobError(
            f"{STATE_FILE} in {self.storage} is damaged ({error}): pass --force to start again, or "
            "choose another folder"
        )

    def _facts(self) -> dict[str, Any]:
        """Settings that must not change, by their names on disk (`state._FIXED`)."""
        options, pipeline = self.options, self._pipeline_options
        form = ", dequantized" if pipeline.dequantize else ""
        return {
            "seed": self.prompts.seed,
            "carried columns": list(self.prompts.keep_columns),
            "model": self.model.model_hash,
            "output form": options.output_format,
            "image format": options.image_format.name,
            "quality": options.image_format.quality,
            "part size": options.shard_size,
            "precision": pipeline.precision,
            "device": f"{pipeline.device}{form}",
            "signed": options.image_format.signer is not None,
        }

    def _discard(self) -> None:
        """Remove the files of an earlier job, and no others."""
        journals = self.storage.names(JOURNALS)
        for journal in journals:
            record = parse_journal(self.storage.read(journal), f"{self.storage}/{journal}")
            files = {entry["file"] for entry in record.entries if entry["file"]}
            for name in sorted(files | set(record.sizes or {})):
                self.storage.remove(name)
        others = [*self.storage.names(f"{STATE}/open"), *self.storage.names(TABLES)]
        manifests = (MANIFEST, MANIFEST_TABLE, "manifest.jsonl", "manifest.parquet", METADATA)
        for name in (*manifests, *others, STATE_FILE, *journals):
            self.storage.remove(name)

    def _entries(self) -> Iterator[Entry]:
        """Iterate over all journals, without images in unfinished shard files."""
        for journal in self.storage.names(JOURNALS):
            record = parse_journal(self.storage.read(journal), f"{self.storage}/{journal}")
            for entry in record.entries:
                in_shard = entry["status"] == DONE and "/" not in entry["file"]
                if not in_shard or entry["file"] in (record.sizes or {}):
                    yield entry

    def _write_manifest(self) -> int:
        """Write the manifest, and captions for data loaders; return how many items exist."""
        now, written, files = self.progress, 0, _FileIndex(self.storage)
        now.all_failed = now.invalid = 0
        with ExitStack() as stack:
            paths = [stack.enter_context(self.storage.new(n)) for n in (MANIFEST, MANIFEST_TABLE)]
            lines = stack.enter_context(paths[0].open("w", encoding="utf-8"))
            metadata = None
            if self.options.output_format == "folder":
                path = stack.enter_context(self.storage.new(METADATA))
                metadata = stack.enter_context(path.open("w", encoding="utf-8"))

            def entries() -> Iterator[Entry]:
                nonlocal written
                for entry in self._entries():
                    now.all_failed += entry["status"] == FAILED
                    now.invalid += bool(entry.pop(INVALID, False))
                    done = entry["status"] == DONE
                    written += not done or files.has(entry["file"])
                    lines.write(to_line(entry))
                    if metadata is not None and done:
                        metadata.write(to_line({"file_name": entry["file"]} | sample_of(entry)))
                    yield entry

            schema = schema_of([*COLUMNS, *self.prompts.keep_columns], self._state.types)
            write_parquet(paths[1], entries(), schema)
        return written


class _FileIndex:
    """Existence of the shard files and folders that entries name, with one request each."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._files: dict[str, int] | None = None
        self._folder, self._found = "", False

    def has(self, file: str) -> bool:
        """Check that a shard file, or the folder of an image file, exists."""
        folder, _, name = file.rpartition("/")
        if not folder:
            if self._files is None:
                self._files = self._storage.sizes("")
            return name in self._files
        if folder != self._folder:
            self._folder, self._found = folder, bool(self._storage.sizes(folder))
        return self._found


@dataclass(frozen=True)
class Estimate:
    """Estimated size of a job.

    Attributes:
        rows: in the prompt file.
        images: to generate.
        refused: invalid rows.
        cut: rows with more tokens than the model reads.
        bytes: approximate size of all images.
        seconds: approximate duration on this machine.
    """

    rows: int
    images: int
    refused: int
    cut: int
    bytes: int
    seconds: float


def estimate(prompts: PromptFile, bundle: str | Path, options: JobOptions) -> Estimate:
    """Count the prompts and measure a few images, which are not stored.

    Raises:
        JobError: the prompt file is unreadable.
        BundleError: the bundle is missing or damaged.
    """
    pipeline = Pipeline.from_bundle(bundle, options.pipeline)
    tokenizer = pipeline.tokenizer
    rows = images = refused = cut = 0
    sample: list[str] = []
    for row in prompts.rows():
        rows += 1
        if row.error is not None:
            refused += 1
            continue
        images += row.count
        # A token has at least one byte: most prompts are too short to be truncated.
        if len(row.prompt.encode()) > tokenizer.room and tokenizer.cut(row.prompt):
            cut += 1
        if len(sample) < _MEASURED:
            sample.append(row.prompt)
    if not images:
        return Estimate(rows, 0, refused, cut, 0, 0.0)
    sample = (sample * _MEASURED)[:_MEASURED]
    pipeline.generate(sample[:1], n=_MEASURED)  # compiles what the job would use
    start, size = time.perf_counter(), 0
    for item in pipeline.generate_each(sample):
        metadata = ImageMetadata(item.prompt, item.seed, item.index, "", "")
        size += len(options.image_format.encode(item.image, metadata))
    seconds = time.perf_counter() - start
    scale = images / _MEASURED
    return Estimate(rows, images, refused, cut, round(size * scale), seconds * scale)
