"""`galip-edge generate`: prompts to image files."""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from galip_edge.commands._common import GroupedCommand, option_group
from galip_edge.commands.console import counting_progress, notice
from galip_edge.commands.loading import load_pipeline
from galip_edge.commands.options import (
    integer_option,
    json_option,
    model_option,
    pipeline_options,
    signing_options,
    truncation_option,
)
from runtime.arrays import Images
from runtime.credentials import Signer
from runtime.errors import GalipEdgeError, PromptError
from runtime.files import write_whole
from runtime.images import (
    SUFFIXES,
    ImageFormat,
    ImageMetadata,
    contact_sheet,
    file_name,
    save_each,
    save_png,
)
from runtime.noise import MAX_SEED
from runtime.pipeline import Pipeline, PipelineOptions
from runtime.prompts import checked_prompt
from runtime.reproduce import SeriesRecipe

# By the suffix of a single file.
_FORMATS = {f".{suffix}": name for name, suffix in SUFFIXES.items()} | {".jpeg": "jpeg"}


@click.command("generate", cls=GroupedCommand)
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@option_group(
    "Images",
    integer_option("-n", "count", least=1, default=1, help="Images per prompt."),
    integer_option("--seed", least=0, most=MAX_SEED, default=0, help="Seed of the noise."),
    truncation_option,
    model_option,
)
@option_group(
    "Output",
    click.option(
        "-o",
        "--out",
        type=click.Path(path_type=Path, allow_dash=True),
        default=Path("images"),
        show_default=True,
        help="Folder for the PNG files, file for a single image (.png, .jpg, .webp), or - to write "
        "it to standard output.",
    ),
    click.option(
        "--grid", is_flag=True, help="Also write a contact sheet with one row per prompt."
    ),
    signing_options,
    json_option,
)
@option_group(
    "Execution",
    integer_option(
        "--streams",
        least=0,
        default=0,
        show_default="one, or one per core for many images",
        help="Images in parallel.",
    ),
    pipeline_options,
)
def command(
    prompts: tuple[str, ...],
    count: int,
    seed: int,
    psi: float,
    model: Path | None,
    out: Path,
    grid: bool,
    options: PipelineOptions,
    as_json: bool,
    signer: Signer | None,
) -> None:
    """Generate images from prompts, as PNG files whose paths are printed.

    PROMPT - reads prompts from standard input, one per line. On a given machine, model, prompt,
    seed, index and --psi determine the image. Each file contains its recipe, which
    `galip-edge info` prints, and a label for AI-generated media (IPTC, XMP).

    \b
    Examples:
      galip-edge generate "a bird on a branch" "two dogs" -n 4 --seed 7 --grid
      galip-edge generate "a bird on a branch" -o bird.png
    """
    prompts = tuple(_all_prompts(prompts))
    single = _single_format(out, signer)
    if single is not None:
        _check_single(out, len(prompts) * count, grid, as_json)
    pipeline = load_pipeline(model, options)
    manifest = pipeline.manifest
    pipeline.prepare(len(prompts) * count)
    _warn_of_cut_prompts(pipeline, prompts)
    identity = manifest.name, manifest.model_hash
    generated = (
        (item.image, ImageMetadata(item.prompt, item.seed, item.index, *identity, psi=psi))
        for item in pipeline.generate_each(prompts, count, seed, psi)
    )
    if single is not None:
        image, metadata = next(generated)
        _write_single(out, single.encode(image, metadata), metadata, as_json)
        return
    images: list[Images] = []
    with counting_progress() as progress:
        task = progress.add_task("generating", total=len(prompts) * count)
        for image, metadata, path in save_each(generated, out, signer):
            _print_path(path, metadata, as_json)
            progress.advance(task)
            if grid:
                images.append(image)
    if grid:
        sheet = out / _sheet_name(prompts, count, seed, psi, manifest.model_hash)
        columns = count if len(prompts) > 1 else _columns(count)
        settings = {"n": count, "psi": psi, "grid": True}
        recipe = SeriesRecipe("generate", prompts, (seed,), *identity, settings)
        save_png(contact_sheet(images, columns), sheet, recipe, signer)
        click.echo(json.dumps({"grid": str(sheet)}) if as_json else sheet)


def _all_prompts(prompts: tuple[str, ...]) -> Iterator[str]:
    """Prompts, with the lines of standard input instead of `-`. Raises PromptError."""
    for prompt in prompts:
        if prompt != "-":
            yield checked_prompt(prompt)
            continue
        lines = _lines_of_stdin()
        for number, line in lines:
            try:
                yield checked_prompt(line)
            except PromptError as error:
                raise PromptError(f"line {number} of standard input: {error}") from error
        if not lines:
            raise PromptError("standard input has no prompts: write one per line")


def _lines_of_stdin() -> list[tuple[int, str]]:
    """Non-blank lines with their numbers from 1, in any encoding that `batch` reads."""
    from runtime.jobs.text_file import detect_decoding, open_text

    with tempfile.TemporaryDirectory(prefix="galip-edge-") as folder:
        path = Path(folder, "standard input")
        with path.open("wb") as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
        with open_text(path, detect_decoding(path)[0]) as text:
            lines = [(number, line.strip()) for number, line in enumerate(text, 1)]
    return [(number, line) for number, line in lines if line]


def _single_format(out: Path, signer: Signer | None) -> ImageFormat | None:
    """The format of a single file, or None if `out` is a folder."""
    if str(out) == "-":
        return ImageFormat("png", signer=signer)
    if out.is_dir() or out.suffix.lower() not in _FORMATS:
        return None
    return ImageFormat(_FORMATS[out.suffix.lower()], signer=signer)


def _check_single(out: Path, count: int, grid: bool, as_json: bool) -> None:
    where = "standard output" if str(out) == "-" else str(out)
    if count > 1:
        raise GalipEdgeError(
            f"{where} takes one image, {count:,} were requested: pass a folder as --out"
        )
    if grid:
        raise GalipEdgeError(f"{where} takes one image: pass a folder as --out for --grid")
    if str(out) == "-":
        if as_json:
            raise GalipEdgeError("--out - writes the image to standard output: omit --json")
        if sys.stdout.isatty():
            raise GalipEdgeError(
                "standard output is a terminal: redirect it to a file, or name one with --out"
            )


def _write_single(out: Path, data: bytes, metadata: ImageMetadata, as_json: bool) -> None:
    if str(out) == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        write_whole(out, data)
        _print_path(out, metadata, as_json)


def _print_path(path: Path, metadata: ImageMetadata, as_json: bool) -> None:
    click.echo(json.dumps({"path": str(path), **metadata.recorded()}) if as_json else path)


def _columns(count: int) -> int:
    """Columns of a contact sheet of one prompt: about square."""
    return -(-count // math.isqrt(count))


def _sheet_name(
    prompts: tuple[str, ...], count: int, seed: int, psi: float, model_hash: str
) -> str:
    together = ImageMetadata("\n".join(prompts), seed, count, "", model_hash, psi=psi)
    return f"grid-{file_name(together)}"


def _warn_of_cut_prompts(pipeline: Pipeline, prompts: tuple[str, ...]) -> None:
    for prompt in dict.fromkeys(prompts):
        if cut := pipeline.tokenizer.cut(prompt):
            notice(f"Warning: the prompt has {cut}: {prompt[:60]!r}...")
