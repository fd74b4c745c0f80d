"""A batch job: prompts to images in a folder, which goes on where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.bundle import Manifest, read_manifest, verify_files
from runtime.cache import Stamps, cache_folder
from runtime.checks import require_booleans, require_integers
from runtime.errors import GalipEdgeError, JobError
from runtime.files import sha256_of
from runtime.jobs.encoding import ImageFormat
from runtime.jobs.engine import Engine, InProcess
from runtime.jobs.journal import COLUMNS, FAILED, Entry, read_record, to_line
from runtime.jobs.outputs import FORMS
from runtime.jobs.parts import parts_of
from runtime.jobs.place import STATE, place_of
from runtime.jobs.prompt_file import PromptFile
from runtime.jobs.tables import write_parquet
from runtime.jobs.worker import Work
from runtime.pipeline import PipelineOptions

MANIFEST = "manifest.jsonl"
MANIFEST_TABLE = "manifest.parquet"

# Of what a job remembers; another version's is not gone on with.
_VERSION = 1
_STATE_FILE, _JOURNALS = f"{STATE}/job.json", f"{STATE}/parts"


@dataclass(frozen=True)
class JobOptions:
    """How a job is done. `part`, `form` and `image_format` decide which files there are.

    Attributes:
        form: of the output: folder (a file for each image), tar (webdataset) or parquet.
        image_format: of the images.
        part: images in a shard, or in each folder of files.
        retry_failed: make again what failed in an earlier run.
        max_errors: stop after more failures than that in this run; None never does.
        force: if prompts, model or options changed, remove what the job made and start again.
        pipeline: how the CPU is used.
    """

    form: str = "folder"
    image_format: ImageFormat = field(default_factory=ImageFormat)
    part: int = 1000
    retry_failed: bool = False
    max_errors: int | None = None
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
        items: images that were asked for, and rows that cannot be made.
        kept: of them, known from earlier runs.
        done, failed: in this run.
        all_failed: in this run and earlier ones; known at its end.
    """

    items: int
    kept: int = 0
    done: int = 0
    failed: int = 0
    all_failed: int = 0

    @property
    def left(self) -> int:
        """What is still to be made."""
        return self.items - self.kept - self.done - self.failed


class Job:
    """Prompts to images in a folder.

        for entry in Job(PromptFile(Path("prompts.csv")), "my-bundle", "images"):
            print(entry["file"] or entry["error"])

    The same job again makes only what is missing. Each iteration is a run; at its end, however it
    ends, the folder has a manifest, `manifest.jsonl` and `manifest.parquet`.

    Args:
        prompts: see there.
        bundle: the model's folder.
        out: the job's folder, made if there is none; a path, or a URL that fsspec knows.
        options: see there.
        engine: who does the work; by default this process.

    Raises:
        BundleError: the bundle is missing or damaged.
        JobError: the prompts cannot be read or are none, or `out` holds another job.
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
        verify_files(Path(bundle), self.model, Stamps(cache_folder()))
        self._engine = engine or InProcess()
        self._stopped = False
        self._work = Work(
            bundle=Path(bundle),
            model=self.model.name,
            model_hash=self.model.model_hash,
            options=self.options.pipeline,
            out=str(out),
            form=self.options.form,
            image_format=self.options.image_format,
            retry_failed=self.options.retry_failed,
        )
        self.progress = Progress(self._prepare())

    def stop(self) -> None:
        """End the run when what is in flight is done. May be called from anywhere."""
        self._stopped = True

    def __iter__(self) -> Iterator[Entry]:
        """Run; yield the manifest's new lines, each when its image is there.

        Raises:
            JobError: another process works on it, a file cannot be written, or too much failed.
        """
        self.progress = Progress(self.progress.items)
        with self.place.lock():
            try:
                yield from self._run()
            except GalipEdgeError as error:
                with suppress(GalipEdgeError):
                    self._write_manifest()
                raise JobError(f"{error}; then the same command goes on") from error
            finally:
                self._stopped = False
            self._write_manifest()
        if self._too_many_errors():
            raise JobError(
                f"{self.progress.failed} failed, more than --max-errors allows: {MANIFEST} in "
                f"{self.place} has the reasons; the same command goes on"
            )

    def _run(self) -> Iterator[Entry]:
        parts = parts_of(self.prompts.rows(), self.options.part)
        for outcome in self._engine.run(self._work, parts, self._is_stopped):
            if isinstance(outcome, int):
                self.progress.kept += outcome
            else:
                failed = outcome["status"] == FAILED
                self.progress.failed += failed
                self.progress.done += not failed
                yield outcome

    def _is_stopped(self) -> bool:
        return self._stopped or self._too_many_errors()

    def _too_many_errors(self) -> bool:
        most = self.options.max_errors
        return most is not None and self.progress.failed > most

    def _prepare(self) -> int:
        """Make the job's folder, or find it; how many items there are."""
        described = self._description()
        known = self._known()
        if known is not None:
            changed = sorted(name for name in described if described[name] != known.get(name))
            if not changed and isinstance(known.get("items"), int):
                return int(known["items"])
            if not self.options.force:
                what = ", ".join(changed) or "contents"
                raise JobError(
                    f"{self.place} holds a job with other {what}: choose another folder, or give "
                    "--force to remove what it made and start again"
                )
            self._discard()
        items = sum(row.count for row in self.prompts.rows())
        if not items:
            raise JobError(f"{self.prompts.path} holds no prompts")
        with self.place.new(_STATE_FILE) as temporary:
            temporary.write_text(json.dumps(described | {"items": items}), encoding="utf-8")
        return items

    def _description(self) -> dict[str, Any]:
        """What must be the same for the job to go on."""
        options = self.options
        try:
            prompts = sha256_of(self.prompts.path)
        except OSError as error:
            raise JobError(
                f"cannot read the prompts in {self.prompts.path}: {error.strerror}"
            ) from error
        return {
            "version": _VERSION,
            "prompts": prompts,
            "input format": self.prompts.kind,
            "n": self.prompts.count,
            "seed": self.prompts.seed,
            "carried columns": list(self.prompts.carry),
            "model": self.model.model_hash,
            "output form": options.form,
            "image format": options.image_format.name,
            "quality": options.image_format.quality,
            "part size": options.part,
        }

    def _known(self) -> dict[str, Any] | None:
        """What is known of an earlier run."""
        try:
            content = self.place.read(_STATE_FILE)
            found = None if content is None else json.loads(content)
        except (OSError, ValueError) as error:
            if self.options.force:
                return {}
            raise JobError(
                f"{_STATE_FILE} in {self.place} is damaged ({error}): give --force to start "
                "again, or another folder"
            ) from error
        return found if found is None or isinstance(found, dict) else {}

    def _discard(self) -> None:
        """Remove what an earlier job made, and nothing else."""
        with self.place.lock():
            journals = self.place.names(_JOURNALS)
            for journal in journals:
                record = read_record(self.place.read(journal))
                files = {entry["file"] for entry in record.entries if entry["file"]}
                for name in sorted(files | set(record.shards or {})):
                    self.place.remove(name)
            unfinished = self.place.names(f"{STATE}/open")
            for name in (MANIFEST, MANIFEST_TABLE, *unfinished, _STATE_FILE, *journals):
                self.place.remove(name)

    def _entries(self) -> Iterator[Entry]:
        for journal in self.place.names(_JOURNALS):
            yield from read_record(self.place.read(journal)).entries

    def _write_manifest(self) -> None:
        self.progress.all_failed = 0
        with (
            self.place.new(MANIFEST) as lines,
            lines.open("w", encoding="utf-8") as file,
            self.place.new(MANIFEST_TABLE) as table,
        ):

            def entries() -> Iterator[Entry]:
                for entry in self._entries():
                    self.progress.all_failed += entry["status"] == FAILED
                    file.write(to_line(entry))
                    yield entry

            write_parquet(table, entries(), [*COLUMNS, *self.prompts.carry])
