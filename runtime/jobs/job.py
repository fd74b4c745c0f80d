"""A batch job: prompts to images in a folder, which continues where it was interrupted."""

from __future__ import annotations

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
from runtime.images import ImageFormat
from runtime.jobs.engine import Engine, InProcess
from runtime.jobs.journal import COLUMNS, DONE, FAILED, INVALID, Entry, read_record, to_line
from runtime.jobs.lock import Held
from runtime.jobs.outputs import FORMS, sample_of
from runtime.jobs.place import STATE, RemotePlace, place_of
from runtime.jobs.prompt_file import PromptFile
from runtime.jobs.rows import read_parts
from runtime.jobs.state import JOURNALS, STATE_FILE, TABLES, Preparation, State, open_tables
from runtime.jobs.tables import schema_of, write_parquet
from runtime.jobs.worker import Kept, Work
from runtime.pipeline import PipelineOptions

# In a folder that data loaders skip: Hugging Face's datasets ignore names that begin with two
# underscores, pyarrow and Spark those that begin with one, and `*.parquet` does not look into it.
_MANIFESTS = "__manifest__"
MANIFEST, MANIFEST_TABLE = f"{_MANIFESTS}/manifest.jsonl", f"{_MANIFESTS}/manifest.parquet"

# Captions as the `imagefolder` of Hugging Face's datasets reads them.
METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class JobOptions:
    """How a job is done. `part`, `form` and `image_format` decide which files there are.

    Attributes:
        form: of the output: folder (a file for each image), tar (webdataset) or parquet.
        image_format: of the images.
        part: images in a shard, or in each folder of files.
        retry_failed: try again what failed in an earlier run, invalid rows aside.
        max_errors: stop after more failures than that in this run; None never does.
        update: accept changed rows, and generate their images again.
        verify: compare what is there with its hashes, and generate what is damaged again.
        force: if rows, model or options changed, remove what the job made and start again.
        pipeline: how the CPU is used.
    """

    form: str = "folder"
    image_format: ImageFormat = field(default_factory=ImageFormat)
    part: int = 1000
    retry_failed: bool = False
    max_errors: int | None = None
    update: bool = False
    verify: bool = False
    force: bool = False
    pipeline: PipelineOptions = field(default_factory=PipelineOptions)

    def __post_init__(self) -> None:
        require_integers(self, "part", *(["max_errors"] if self.max_errors is not None else []))
        require_booleans(self, "retry_failed", "force")
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {self.form!r}")
        if not 1 <= self.part <= 100_000:
            raise ValueError(f"part must be from 1 to 100,000 images, got {self.part}")
        if self.max_errors is not None and self.max_errors < 0:
            raise ValueError(f"max_errors must be at least 0, got {self.max_errors}")


@dataclass
class Progress:
    """How far a job is.

    Attributes:
        items: wanted images, and invalid rows.
        kept: of them, known from earlier runs.
        done, failed: in this run.
        lost: images of earlier runs that were missing or damaged, and are generated again.
        all_failed: in this run and earlier ones; known at its end.
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
        """What is still to be made."""
        return self.items - self.kept - self.done - self.failed


class Job:
    """Prompts to images in a folder.

        for entry in Job(PromptFile(Path("prompts.csv")), "my-bundle", "images"):
            print(entry["file"] or entry["error"])

    The same job again makes only what is missing. Rows at the end of the prompt file, or more
    images of a row, extend it. Each iteration is a run; at its end, however it ends, the folder has
    a manifest, `__manifest__/manifest.jsonl` and `.parquet`.

    Args:
        prompts: see there.
        bundle: the model's folder.
        out: the job's folder, made if there is none; a path, or a URL that fsspec knows.
        options: see there.
        engine: who does the work; by default this process.

    Raises:
        BundleError: the bundle is missing or damaged.
        JobError: the prompts cannot be read or are none, `out` holds another job, another process
            is running it, or rows changed without `options.update`.
    """

    def __init__(
        self,
        prompts: PromptFile,
        bundle: str | Path,
        out: str | Path,
        options: JobOptions | None = None,
        engine: Engine | None = None,
    ) -> None:
        self.prompts, self.place = prompts, place_of(out)
        self.options = options or JobOptions()
        self.model: Manifest = read_manifest(Path(bundle))
        verify_files(Path(bundle), self.model, VerifiedFiles(cache_folder()))
        self._engine = engine or InProcess()
        self._stopped = False
        _ = prompts.understood  # what is no file of prompts leaves nothing behind
        with self.place.lock():
            self._state = self._prepare()
        self._work = Work(
            bundle=Path(bundle),
            model=self.model.name,
            model_hash=self.model.model_hash,
            options=self.options.pipeline,
            out=str(out),
            form=self.options.form,
            image_format=self.options.image_format,
            retry_failed=self.options.retry_failed,
            verify=self.options.verify,
            types=self._state.types,
        )
        self.progress = Progress(self._state.items)

    def stop(self) -> None:
        """End the run when what is in flight is done. May be called from anywhere."""
        self._stopped = True

    def __iter__(self) -> Iterator[Entry]:
        """Run; yield the manifest's new lines, each when its image exists.

        Raises:
            JobError: another process is running it, a file cannot be written, the prompt file
                changed, the folder was removed, or too much failed.
        """
        self.progress = Progress(self._state.items)
        with self.place.lock() as held:
            self._check_that_it_is_ours(held)
            try:
                yield from self._run(held)
            except GalipEdgeError as error:
                if held():
                    with suppress(GalipEdgeError, OSError):
                        self._write_manifest()
                raise JobError(f"{error}; rerun the same command to resume") from error
            finally:
                self._stopped = False
            self._check_that_it_is_ours(held)
            written = self._write_manifest()
            self._check_that_it_is_ours(held)
        self._check_end(written)

    def _run(self, held: Held) -> Iterator[Entry]:
        with ExitStack() as stack:
            try:
                tables = stack.enter_context(open_tables(self.place, self._state.passes))
            except (OSError, ValueError) as error:
                raise self._damaged(error) from error
            parts = read_parts(self.prompts, self._state.passes, tables, self.options.part)
            for outcome in self._engine.run(self._work, parts, self._is_stopped):
                if isinstance(outcome, Kept):
                    self.progress.kept += outcome.count
                    self.progress.lost += outcome.lost
                    if not held():
                        raise JobError(self._gone())
                else:
                    failed = outcome["status"] == FAILED
                    self.progress.failed += failed
                    self.progress.done += not failed
                    yield {name: it for name, it in outcome.items() if name != INVALID}

    def _is_stopped(self) -> bool:
        return self._stopped or self._too_many_errors()

    def _too_many_errors(self) -> bool:
        most = self.options.max_errors
        return most is not None and self.progress.failed > most

    def _gone(self) -> str:
        if isinstance(self.place, RemotePlace):
            return f"another process took over the job in {self.place}"
        return f"{self.place} was removed or replaced during the run, and what was in it is lost"

    def _check_that_it_is_ours(self, held: Held) -> None:
        if not held():
            raise JobError(f"{self._gone()}; rerun the same command to generate it again")
        try:
            found = self.place.read(STATE_FILE)
        except OSError as error:
            raise JobError(f"cannot read {STATE_FILE} in {self.place}: {error}") from error
        if found != self._state_bytes:
            raise JobError(
                f"another process changed the job in {self.place}: rerun the command to see how"
            )

    def _check_end(self, written: int) -> None:
        """What must be true after a run. Raises JobError."""
        now = self.progress
        if self._too_many_errors():
            raise JobError(
                f"{now.failed} failed, more than --max-errors allows: {MANIFEST} in {self.place} "
                "has the reasons; rerun the same command to resume"
            )
        if not now.left and written != now.items:
            raise JobError(
                f"{now.items - written:,} of {now.items:,} images are missing from {self.place}: "
                "files were removed during the run; rerun the same command to generate them again"
            )

    def _prepare(self) -> State:
        """Make the job's state, or continue or extend the one that is there; the lock is held."""
        prepare = Preparation(self.place, self.prompts, self._facts(), self.options.update)
        try:
            state = self._continued(prepare)
        except BaseException as error:
            if self.place.read(STATE_FILE) is None:
                self.place.forget()
                raise
            if not (self.options.force and isinstance(error, JobError)):
                raise
            self._discard()
            state = prepare.state(None)
        self._state_bytes = self.place.read(STATE_FILE)
        return state

    def _continued(self, prepare: Preparation) -> State:
        try:
            known = prepare.known()
            if known is not None and (other := prepare.other(known)):
                raise JobError(
                    f"{self.place} holds a job with other {', '.join(other)}: choose another "
                    "folder, or give --force to remove what it made and start again"
                )
            return prepare.state(known)
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> JobError:
        return JobError(
            f"{STATE_FILE} in {self.place} is damaged ({error}): give --force to start again, or "
            "another folder"
        )

    def _facts(self) -> dict[str, Any]:
        """What must be the same for the job to continue."""
        options = self.options
        return {
            "seed": self.prompts.seed,
            "carried columns": list(self.prompts.carry),
            "model": self.model.model_hash,
            "output form": options.form,
            "image format": options.image_format.name,
            "quality": options.image_format.quality,
            "part size": options.part,
            "precision": options.pipeline.precision,
        }

    def _discard(self) -> None:
        """Remove what an earlier job made, and nothing else."""
        journals = self.place.names(JOURNALS)
        for journal in journals:
            record = read_record(self.place.read(journal), f"{self.place}/{journal}")
            files = {entry["file"] for entry in record.entries if entry["file"]}
            for name in sorted(files | set(record.shards or {})):
                self.place.remove(name)
        others = [*self.place.names(f"{STATE}/open"), *self.place.names(TABLES)]
        manifests = (MANIFEST, MANIFEST_TABLE, "manifest.jsonl", "manifest.parquet", METADATA)
        for name in (*manifests, *others, STATE_FILE, *journals):
            self.place.remove(name)

    def _entries(self) -> Iterator[Entry]:
        """What the records know, without images of shards that are not finished."""
        for journal in self.place.names(JOURNALS):
            record = read_record(self.place.read(journal), f"{self.place}/{journal}")
            for entry in record.entries:
                in_shard = entry["status"] == DONE and "/" not in entry["file"]
                if not in_shard or entry["file"] in (record.shards or {}):
                    yield entry

    def _write_manifest(self) -> int:
        """Write it, and captions for data loaders; how many items of it are there."""
        now, written, there = self.progress, 0, _There(self.place)
        now.all_failed = now.invalid = 0
        captions = self.options.form == "folder"
        with ExitStack() as stack:
            paths = [stack.enter_context(self.place.new(n)) for n in (MANIFEST, MANIFEST_TABLE)]
            lines = stack.enter_context(paths[0].open("w", encoding="utf-8"))
            metadata = None
            if captions:
                path = stack.enter_context(self.place.new(METADATA))
                metadata = stack.enter_context(path.open("w", encoding="utf-8"))

            def entries() -> Iterator[Entry]:
                nonlocal written
                for entry in self._entries():
                    now.all_failed += entry["status"] == FAILED
                    now.invalid += bool(entry.pop(INVALID, False))
                    done = entry["status"] == DONE
                    written += not done or there.has(entry["file"])
                    lines.write(to_line(entry))
                    if metadata is not None and done:
                        metadata.write(to_line({"file_name": entry["file"]} | sample_of(entry)))
                    yield entry

            schema = schema_of([*COLUMNS, *self.prompts.carry], self._state.types)
            write_parquet(paths[1], entries(), schema)
        return written


class _There:
    """Whether the shards and folders that entries name exist, each asked for once."""

    def __init__(self, place: Any) -> None:
        self._place = place
        self._shards: dict[str, int] | None = None
        self._folder, self._found = "", False

    def has(self, file: str) -> bool:
        folder, _, name = file.rpartition("/")
        if not folder:
            if self._shards is None:
                self._shards = self._place.sizes("")
            return name in self._shards
        if folder != self._folder:
            self._folder, self._found = folder, bool(self._place.sizes(folder))
        return self._found
