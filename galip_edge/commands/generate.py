"""`galip-edge generate`: prompts to PNG files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click

from galip_edge.commands.console import counting_progress
from galip_edge.commands.loading import load_pipeline
from galip_edge.commands.options import (
    cache_option,
    json_option,
    model_option,
    precision_option,
    threads_option,
    truncation_option,
)
from runtime.images import ImageMetadata, contact_sheet, file_name, save_each, save_sheet
from runtime.noise import MAX_SEED
from runtime.pipeline import Pipeline, PipelineOptions
from runtime.prompts import checked_prompt


@click.command("generate")
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@click.option("-n", "count", type=click.IntRange(min=1), default=1, help="Images of each prompt.")
@click.option(
    "--seed",
    type=click.IntRange(0, MAX_SEED),
    default=0,
    show_default=True,
    help="Picks the noise.",
)
@truncation_option
@model_option
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("images"),
    show_default=True,
    help="Folder for the PNG files.",
)
@click.option("--grid", is_flag=True, help="Also write a contact sheet, one row for each prompt.")
@threads_option
@click.option(
    "--streams",
    type=click.IntRange(min=0),
    default=0,
    help="Images side by side; default: one, or with many images one for each core.",
)
@cache_option
@precision_option
@json_option
def command(
    prompts: tuple[str, ...],
    count: int,
    seed: int,
    psi: float,
    model: Path | None,
    out: Path,
    grid: bool,
    threads: int,
    streams: int,
    cache: bool,
    precision: str,
    as_json: bool,
) -> None:
    """Generate images from prompts, as PNG files whose paths are printed.

    The same model, prompt, seed and image number give the same picture, whatever else is asked
    for. Each file carries its prompt and seed.
    """
    for prompt in prompts:
        checked_prompt(prompt)
    options = PipelineOptions(threads, streams, cache, precision)
    pipeline = load_pipeline(model, options)
    manifest = pipeline.manifest
    pipeline.prepare(len(prompts) * count)
    _warn_of_cut_prompts(pipeline, prompts)
    identity = manifest.name, manifest.model_hash
    images = []
    with counting_progress() as progress:
        task = progress.add_task("generating", total=len(prompts) * count)
        made = (
            (item.image, ImageMetadata(item.prompt, item.seed, item.index, *identity, psi=psi))
            for item in pipeline.generate_each(prompts, count, seed, psi)
        )
        for image, metadata, path in save_each(made, out):
            click.echo(json.dumps({"path": str(path), **metadata.recorded()}) if as_json else path)
            progress.advance(task)
            if grid:
                images.append(image)
    if grid:
        sheet = out / _sheet_name(prompts, count, seed, psi, manifest.model_hash)
        save_sheet(contact_sheet(images, count if len(prompts) > 1 else _columns(count)), sheet)
        click.echo(json.dumps({"grid": str(sheet)}) if as_json else sheet)


def _columns(count: int) -> int:
    """Columns of a sheet of one prompt: as wide as high, or a little wider."""
    return -(-count // math.isqrt(count))


def _sheet_name(
    prompts: tuple[str, ...], count: int, seed: int, psi: float, model_hash: str
) -> str:
    together = ImageMetadata("\n".join(prompts), seed, count, "", model_hash, psi=psi)
    return f"grid-{file_name(together)}"


def _warn_of_cut_prompts(pipeline: Pipeline, prompts: tuple[str, ...]) -> None:
    for prompt in dict.fromkeys(prompts):
        if cut := pipeline.tokenizer.cut(prompt):
            click.echo(f"Warning: the prompt has {cut}: {prompt[:60]!r}...", err=True)
