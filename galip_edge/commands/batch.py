"""`galip-edge batch`: a file of prompts to images, in a job that resumes."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from galip_edge.commands.console import console
from galip_edge.commands.options import (
    RenamedOption,
    cache_option,
    json_option,
    model_option,
    precision_option,
    signing_options,
    threads_option,
)
from runtime.bundle import default_bundle
from runtime.credentials import Signer
from runtime.errors import GalipEdgeError
from runtime.images import SUFFIXES, ImageFormat
from runtime.jobs.engine import Engine, InProcess
from runtime.jobs.estimate import estimate
from runtime.jobs.job import MANIFEST, Job, JobOptions
from runtime.jobs.outputs import FORMS
from runtime.jobs.processes import Processes
from runtime.jobs.prompt_file import FORMATS, MAX_IMAGES, PromptFile
from runtime.noise import MAX_SEED
from runtime.pipeline import PipelineOptions


@click.command("batch")
@click.argument("prompts", type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "-o",
    "--out",
    required=True,
    help="Folder of the job: a path, or a URL that fsspec knows, such as s3://bucket/x.",
)
@model_option
@click.option("--input-format", type=click.Choice(FORMATS), help="Default: by the file's ending.")
@click.option(
    "--prompt-column",
    metavar="COLUMN",
    help="Column of prompts; default: prompt, caption or text, in any case.",
)
@click.option("--encoding", help="Encoding of a text file; default: UTF-8, or UTF-16 if it is.")
@click.option(
    "-n",
    "count",
    type=click.IntRange(1, MAX_IMAGES),
    default=1,
    help="Images of a row without its own n. A larger number later extends the job.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    show_default=True,
    help="Seed of a row without its own.",
)
@click.option(
    "--keep-column",
    "carry",
    cls=RenamedOption,
    former=["--carry"],
    multiple=True,
    metavar="COLUMN",
    help="Keep this column in the manifest and in shards. Repeat for more.",
)
@click.option(
    "--output-format",
    "form",
    cls=RenamedOption,
    former=["--as"],
    type=click.Choice(FORMS),
    default="folder",
    show_default=True,
    help="A file for each image, tar shards for webdataset, or Parquet shards.",
)
@click.option(
    "--image-format",
    cls=RenamedOption,
    former=["--image"],
    type=click.Choice(list(SUFFIXES)),
    default="png",
    show_default=True,
)
@click.option(
    "--quality",
    type=click.IntRange(1, 100),
    default=ImageFormat.quality,
    show_default=True,
    help="Quality of jpeg and webp.",
)
@click.option(
    "--shard-size",
    "part",
    cls=RenamedOption,
    former=["--part"],
    type=click.IntRange(1, 100_000),
    default=JobOptions.part,
    show_default=True,
    help="Images in a shard, or in each folder of files.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes, each with its share of the cores; default: one, or with ray one a node.",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Processes of this machine, or of a Ray cluster.",
)
@click.option("--address", help="Ray cluster; default: RAY_ADDRESS, else this machine.")
@click.option(
    "--retry-failed",
    is_flag=True,
    help="Try again what failed in an earlier run, except invalid rows.",
)
@click.option(
    "--update",
    is_flag=True,
    help="Accept changed rows: only their images are generated again.",
)
@click.option(
    "--verify",
    is_flag=True,
    help="Compare each image with its hash; what is damaged or missing is generated again.",
)
@click.option(
    "--max-errors", type=click.IntRange(min=0), help="Stop after more failures than this."
)
@click.option(
    "--force",
    is_flag=True,
    help="If the job cannot continue: remove what it made and start again.",
)
@click.option(
    "--dry-run", is_flag=True, help="Estimate image count, output size and duration, then exit."
)
@threads_option
@click.option(
    "--streams",
    type=click.IntRange(min=0),
    default=0,
    help="Images in parallel in each process; default: one for each core.",
)
@cache_option
@precision_option
@signing_options
@json_option
def command(
    prompts: Path,
    out: str,
    model: Path | None,
    input_format: str | None,
    prompt_column: str | None,
    encoding: str | None,
    count: int,
    seed: int,
    carry: tuple[str, ...],
    form: str,
    image_format: str,
    quality: int,
    part: int,
    workers: int | None,
    engine: str,
    address: str | None,
    retry_failed: bool,
    update: bool,
    verify: bool,
    max_errors: int | None,
    force: bool,
    dry_run: bool,
    threads: int,
    streams: int,
    cache: bool,
    precision: str,
    as_json: bool,
    signer: Signer | None,
) -> None:
    """Generate images of all prompts in a file; the same command again resumes.

    PROMPTS is .txt (one prompt per line), .csv, .tsv, .json, .jsonl or .parquet, with a column
    `prompt`, `caption` or `text` and, optionally, `id`, `n` and `seed`; also compressed (.gz, .bz2,
    .xz, .zst), in UTF-8 or UTF-16, with any usual delimiter; `-` reads standard input. Rows added
    to the file later extend the job. Prints the path of the manifest, which has a line for each
    image, also for one that failed.
    """
    options = JobOptions(
        form=form,
        image_format=ImageFormat(image_format, quality, signer),
        part=part,
        retry_failed=retry_failed,
        max_errors=max_errors,
        update=update,
        verify=verify,
        force=force,
        pipeline=PipelineOptions(threads, streams, cache, precision),
    )
    bundle = model or default_bundle()
    with _prompt_file(prompts, input_format) as path:
        file = PromptFile(path, input_format, count, seed, carry, prompt_column, encoding)
        source = "standard input" if str(prompts) == "-" else prompts
        click.echo(f"{source}: {file.understood}", err=True)
        if dry_run:
            _print_estimate(asdict(estimate(file, bundle, options)), as_json)
            return
        # Ray says things on stdout, up to its end.
        with redirect_stdout(sys.stderr), _engine(engine, workers, address) as who:
            with console().status("reading the prompts"):
                job = Job(file, bundle, out, options, who)
            with _progress(job) as show, _stops_at_signals(job):
                for _ in job:
                    show()
    _report(job, as_json)


@contextmanager
def _engine(name: str, workers: int | None, address: str | None) -> Iterator[Engine]:
    if name == "ray":
        from runtime.jobs.ray_engine import Ray

        with closing(Ray(workers, address)) as engine:
            yield engine
    else:
        yield InProcess() if workers in (None, 1) else Processes(workers)


@contextmanager
def _prompt_file(prompts: Path, kind: str | None) -> Iterator[Path]:
    """The file, or a copy of standard input while the job runs."""
    if str(prompts) != "-":
        yield prompts
        return
    with tempfile.TemporaryDirectory(prefix="galip-edge-") as folder:
        file = Path(folder, f"stdin.{kind or 'txt'}")
        with file.open("wb") as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
        yield file


@contextmanager
def _stops_at_signals(job: Job) -> Iterator[None]:
    """The first SIGINT or SIGTERM lets the job finish what is in flight, the second one ends us."""
    numbers = signal.SIGINT, signal.SIGTERM

    def handle(number: int, _: Any) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        job.stop()
        console().show_cursor()  # which the second one could not do
        click.echo("finishing what is in flight; a second signal stops at once", err=True)

    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


# Seconds between lines of progress where there is no terminal.
_LINES_EVERY = 30.0


@contextmanager
def _progress(job: Job) -> Iterator[Callable[[], None]]:
    """A bar on stderr, or a line now and then where it is no terminal; gives a function that
    brings it up to date."""
    out = console()
    if not out.is_terminal:
        yield _progress_lines(job)
        return
    columns = (
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f}"),
        TextColumn("{task.fields[rate]:.1f} images/s"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[failed]}"),
    )
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("", total=job.progress.items, rate=0.0, failed="")

        def show() -> None:
            now = job.progress
            failed = f"{now.failed:,} failed" if now.failed else ""
            elapsed = bar.tasks[0].elapsed or 0.0
            rate = now.done / elapsed if elapsed else 0.0
            bar.update(task, completed=now.items - now.left, rate=rate, failed=failed)

        yield show


def _progress_lines(job: Job) -> Callable[[], None]:
    began = last = time.monotonic()

    def show() -> None:
        nonlocal last
        moment = time.monotonic()
        if moment - last < _LINES_EVERY:
            return
        last, now = moment, job.progress
        rate = now.done / (moment - began)
        failed = f", {now.failed:,} failed" if now.failed else ""
        done = f"{now.items - now.left:,} of {now.items:,} images"
        click.echo(f"{done}, {rate:.1f} images/s{failed}", err=True)

    return show


def _report(job: Job, as_json: bool) -> None:
    now = job.progress
    manifest = f"{job.place}/{MANIFEST}"
    if as_json:
        click.echo(json.dumps({**asdict(now), "left": now.left, "manifest": manifest}))
    else:
        click.echo(manifest)
    if now.lost:
        again = "" if now.left else " and were generated again"
        click.echo(f"{now.lost:,} images were missing or damaged{again}", err=True)
    elif job.options.verify and not now.left:
        click.echo(f"all {now.kept:,} earlier results are intact", err=True)
    if now.left:
        click.echo(
            f"stopped: {now.left:,} of {now.items:,} are left; rerun the same command to resume",
            err=True,
        )
        raise click.exceptions.Exit(130)
    if now.all_failed:
        raise GalipEdgeError(
            f"{now.all_failed:,} of {now.items:,} failed, {manifest} has the reasons: "
            f"{_advice(now.invalid, now.all_failed - now.invalid)}"
        )


def _advice(invalid: int, others: int) -> str:
    """What to do about failures: an invalid row fails again until it is changed."""
    advice = []
    if invalid:
        rows = "1 row is" if invalid == 1 else f"{invalid:,} rows are"
        advice.append(f"{rows} invalid (correct the prompt file, then add --update)")
    if others:
        which = f"the other {others:,}" if invalid else "them"
        advice.append(f"--retry-failed tries {which} again")
    return "; ".join(advice)


def _print_estimate(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(
        f"{found['images']:,} images from {found['rows']:,} rows ({found['refused']:,} cannot be "
        f"used, {found['cut']:,} longer than what the model reads), about "
        f"{decimal(found['bytes'])}, about {_duration(found['seconds'])} on this machine"
    )


def _duration(seconds: float) -> str:
    """For people."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"
