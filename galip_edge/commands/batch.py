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

from galip_edge.commands._common import GroupedCommand, option_group
from galip_edge.commands.console import console, notice
from galip_edge.commands.options import (
    RenamedOption,
    integer_option,
    json_option,
    model_option,
    pipeline_options,
    signing_options,
)
from runtime.bundle import default_bundle
from runtime.credentials import Signer
from runtime.errors import GalipEdgeError
from runtime.images import SUFFIXES, ImageFormat
from runtime.jobs.executors import Executor, ProcessExecutor, SerialExecutor
from runtime.jobs.job import MANIFEST, Job, JobOptions, estimate
from runtime.jobs.prompts import INPUT_FORMATS, MAX_IMAGES, PromptFile
from runtime.jobs.writers import OUTPUT_FORMATS
from runtime.noise import MAX_SEED
from runtime.pipeline import PipelineOptions


@click.command("batch", cls=GroupedCommand)
@click.argument("prompts", type=click.Path(path_type=Path, allow_dash=True))
@option_group(
    "Input",
    click.option(
        "--input-format",
        type=click.Choice(INPUT_FORMATS),
        help="Format of PROMPTS; default: by the file name's suffix.",
    ),
    click.option(
        "--prompt-column",
        metavar="COLUMN",
        help="Prompt column; default: prompt, caption or text, in any case.",
    ),
    click.option(
        "--keep-column",
        "keep_columns",
        cls=RenamedOption,
        former=["--carry"],
        multiple=True,
        metavar="COLUMN",
        help="Copy this column to the manifest and to shards; may be repeated.",
    ),
    click.option("--encoding", help="Text encoding; default: detected (UTF-8, UTF-16 or UTF-32)."),
)
@option_group(
    "Images",
    model_option,
    integer_option(
        "-n",
        "count",
        least=1,
        most=MAX_IMAGES,
        default=1,
        help="Images per prompt, for rows without n. A larger number extends the job.",
    ),
    integer_option(
        "--seed", least=0, most=MAX_SEED, default=0, help="Noise seed, for rows without seed."
    ),
)
@option_group(
    "Output",
    click.option(
        "-o",
        "--out",
        required=True,
        help="Folder of the job: a path, or a URL that fsspec supports, such as s3://bucket/x.",
    ),
    click.option(
        "--output-format",
        cls=RenamedOption,
        former=["--as"],
        type=click.Choice(OUTPUT_FORMATS),
        default="folder",
        show_default=True,
        help="One file per image, tar shards for webdataset, or Parquet shards.",
    ),
    integer_option(
        "--shard-size",
        least=1,
        most=100_000,
        default=JobOptions.shard_size,
        cls=RenamedOption,
        former=["--part"],
        help="Images per shard, or per folder of image files.",
    ),
    click.option(
        "--image-format",
        cls=RenamedOption,
        former=["--image"],
        type=click.Choice(list(SUFFIXES)),
        default="png",
        show_default=True,
        help="Encoding of the images; PNG files hold prompt and seed.",
    ),
    integer_option(
        "--quality",
        least=1,
        most=100,
        default=ImageFormat.quality,
        help="Quality of jpeg and webp.",
    ),
    signing_options,
)
@option_group(
    "Resuming",
    click.option(
        "--update",
        is_flag=True,
        help="Accept changed rows, and regenerate only their images.",
    ),
    click.option(
        "--retry-failed",
        is_flag=True,
        help="Retry failed images of earlier runs, except invalid rows.",
    ),
    click.option(
        "--verify",
        is_flag=True,
        help="Compare each image with its hash, and regenerate damaged and missing ones.",
    ),
    integer_option("--max-errors", least=0, help="Stop after more failures than this."),
    click.option(
        "--force",
        is_flag=True,
        help="If the job cannot continue, remove its files and start again.",
    ),
)
@option_group(
    "Execution",
    integer_option(
        "--workers",
        least=1,
        help="Processes, each with its share of the cores; default: 1, with ray 1 per node.",
    ),
    click.option(
        "--executor",
        cls=RenamedOption,
        former=["--engine"],
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Run workers on this machine, or on a Ray cluster.",
    ),
    click.option("--address", help="Ray cluster; default: RAY_ADDRESS, else this machine."),
    integer_option(
        "--streams",
        least=0,
        default=0,
        show_default="one per core",
        help="Images in parallel in each process.",
    ),
    pipeline_options,
)
@option_group(
    "Reporting",
    click.option(
        "--dry-run",
        is_flag=True,
        help="Estimate image count, output size and duration, then exit.",
    ),
    json_option,
)
def command(
    prompts: Path,
    out: str,
    model: Path | None,
    input_format: str | None,
    prompt_column: str | None,
    encoding: str | None,
    count: int,
    seed: int,
    keep_columns: tuple[str, ...],
    output_format: str,
    image_format: str,
    quality: int,
    shard_size: int,
    workers: int | None,
    executor: str,
    address: str | None,
    retry_failed: bool,
    update: bool,
    verify: bool,
    max_errors: int | None,
    force: bool,
    dry_run: bool,
    options: PipelineOptions,
    as_json: bool,
    signer: Signer | None,
) -> None:
    """Generate images of all prompts in a file, in a job that resumes.

    PROMPTS is .txt (one prompt per line), .csv, .tsv, .json, .jsonl or .parquet, with a column
    `prompt`, `caption` or `text` and, optionally, `id`, `n` and `seed`; `-` reads standard input.
    The same command again generates only what is missing; rows added to the file extend the job.
    Prints the path of the manifest, which lists each image and each failure.

    \b
    Examples:
      # 4 images per prompt, as PNG files
      galip-edge batch prompts.txt -o images -n 4
      # a webdataset of 10,000 JPEGs per shard, with a column of labels
      galip-edge batch prompts.csv -o data --output-format tar --shard-size 10000 \\
          --image-format jpeg --keep-column label
      # after correcting rows of the file
      galip-edge batch prompts.txt -o images -n 4 --update
    """
    job_options = JobOptions(
        output_format=output_format,
        image_format=ImageFormat(image_format, quality, signer),
        shard_size=shard_size,
        retry_failed=retry_failed,
        max_errors=max_errors,
        update=update,
        verify=verify,
        force=force,
        pipeline=options,
    )
    bundle = model or default_bundle()
    with _prompt_file(prompts, input_format) as path:
        file = PromptFile(path, input_format, count, seed, keep_columns, prompt_column, encoding)
        source = "standard input" if str(prompts) == "-" else prompts
        notice(f"{source}: {file.layout}")
        if dry_run:
            _print_estimate(asdict(estimate(file, bundle, job_options)), as_json)
            return
        # Ray prints to stdout, up to its end.
        with redirect_stdout(sys.stderr), _executor(executor, workers, address) as chosen:
            with console().status("reading the prompts"):
                job = Job(file, bundle, out, job_options, chosen)
            with _progress(job) as show, _stops_at_signals(job):
                for _ in job:
                    show()
    _report(job, as_json)


@contextmanager
def _executor(name: str, workers: int | None, address: str | None) -> Iterator[Executor]:
    if name == "ray":
        from runtime.jobs.ray import RayExecutor

        with closing(RayExecutor(workers, address)) as executor:
            yield executor
    else:
        yield SerialExecutor() if workers in (None, 1) else ProcessExecutor(workers)


@contextmanager
def _prompt_file(prompts: Path, kind: str | None) -> Iterator[Path]:
    """Yield the prompt file, or a temporary copy of standard input."""
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
    """Finish the images in flight at the first SIGINT or SIGTERM; exit at the second one."""
    numbers = signal.SIGINT, signal.SIGTERM

    def handle(number: int, _: Any) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        job.stop()
        console().show_cursor()  # the second signal leaves no time for that
        click.echo("finishing the images in flight; a second signal stops at once", err=True)

    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


# Seconds between progress lines without a terminal.
_INTERVAL = 30.0


@contextmanager
def _progress(job: Job) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal, else a line every 30 seconds; yields a function to update it."""
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
        if moment - last < _INTERVAL:
            return
        last, now = moment, job.progress
        rate = now.done / (moment - began)
        failed = f", {now.failed:,} failed" if now.failed else ""
        done = f"{now.items - now.left:,} of {now.items:,} images"
        notice(f"{done}, {rate:.1f} images/s{failed}")

    return show


def _report(job: Job, as_json: bool) -> None:
    now = job.progress
    manifest = f"{job.storage}/{MANIFEST}"
    if as_json:
        click.echo(json.dumps({**asdict(now), "left": now.left, "manifest": manifest}))
    else:
        click.echo(manifest)
    if now.lost:
        images, verb = ("image", "was") if now.lost == 1 else ("images", "were")
        repaired = "" if now.left else f" and {verb} regenerated"
        notice(f"{now.lost:,} {images} {verb} missing or damaged{repaired}")
    elif job.options.verify and not now.left:
        notice(f"all {now.kept:,} earlier results are intact")
    if now.left:
        click.echo(
            f"stopped with {now.left:,} of {now.items:,} images left; rerun the same command to "
            "resume",
            err=True,
        )
        raise click.exceptions.Exit(130)
    if now.all_failed:
        raise GalipEdgeError(
            f"{now.all_failed:,} of {now.items:,} images failed, see {manifest} for the reasons: "
            f"{_advice(now.invalid, now.all_failed - now.invalid)}"
        )


def _advice(invalid: int, others: int) -> str:
    """Suggest a remedy; invalid rows fail again until they are changed."""
    advice = []
    if invalid:
        rows = "1 row is" if invalid == 1 else f"{invalid:,} rows are"
        advice.append(f"{rows} invalid (correct the prompt file, then add --update)")
    if others:
        which = f"the other {others:,}" if invalid else "them"
        advice.append(f"pass --retry-failed to retry {which}")
    return "; ".join(advice)


def _print_estimate(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(
        f"{found['images']:,} images from {found['rows']:,} rows ({found['refused']:,} invalid, "
        f"{found['cut']:,} longer than the model reads), about {decimal(found['bytes'])}, about "
        f"{_duration(found['seconds'])} on this machine"
    )


def _duration(seconds: float) -> str:
    """Format a duration with a suitable unit."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"
