"""`galip-edge explore`: one prompt, many seeds, on one sheet."""

from __future__ import annotations

import json
from pathlib import Path

import click

from galip_edge.commands._common import GroupedCommand, option_group
from galip_edge.commands.console import counting_progress
from galip_edge.commands.loading import load_pipeline
from galip_edge.commands.options import (
    integer_option,
    json_option,
    model_option,
    overwrite_option,
    pipeline_options,
    refuse_existing,
    signing_options,
    truncation_option,
)
from runtime.credentials import Signer
from runtime.images import contact_sheet, labelled, save_png
from runtime.latent import Keyframe, keyframe_latent
from runtime.noise import MAX_SEED
from runtime.pipeline import PipelineOptions
from runtime.reproduce import SeriesRecipe


@click.command("explore", cls=GroupedCommand)
@click.argument("prompt")
@option_group(
    "Images",
    integer_option("--seed", least=0, most=MAX_SEED, default=0, help="First seed."),
    integer_option("-n", "count", least=1, most=10_000, default=32, help="Number of seeds."),
    truncation_option,
    model_option,
)
@option_group(
    "Output",
    click.option(
        "-o",
        "--out",
        type=click.Path(path_type=Path, dir_okay=False),
        default=Path("seeds.png"),
        show_default=True,
        help="Sheet to write, as PNG.",
    ),
    integer_option("--columns", least=1, default=8, help="Columns of the sheet."),
    overwrite_option,
    signing_options,
    json_option,
)
@option_group(
    "Execution",
    pipeline_options,
)
def command(
    prompt: str,
    seed: int,
    count: int,
    columns: int,
    psi: float,
    model: Path | None,
    out: Path,
    force: bool,
    options: PipelineOptions,
    as_json: bool,
    signer: Signer | None,
) -> None:
    """Write a sheet of images of PROMPT for consecutive seeds, labelled with the seeds.

    Each equals the first image of `galip-edge generate PROMPT --seed SEED`. `galip-edge info`
    prints the command that is stored in the sheet.

    \b
    Example:
      galip-edge explore "a green parrot" -n 16 -o parrots.png
    """
    refuse_existing(out, force)
    seeds = range(seed, seed + count)
    if seeds[-1] > MAX_SEED:
        raise click.UsageError(f"the last seed would be above {MAX_SEED}")
    pipeline = load_pipeline(model, options)
    latents = (keyframe_latent(pipeline, Keyframe(prompt, each), psi) for each in seeds)
    images = []
    with counting_progress() as progress:
        task = progress.add_task("generating", total=count)
        for each, image in zip(seeds, pipeline.synthesize_each(latents, count)):
            images.append(labelled(image, str(each)))
            progress.advance(task)
    manifest, settings = pipeline.manifest, {"n": count, "columns": columns, "psi": psi}
    recipe = SeriesRecipe(
        "explore", (prompt,), (seed,), manifest.name, manifest.model_hash, settings
    )
    save_png(contact_sheet(images, columns), out, recipe, signer)
    click.echo(json.dumps({"path": str(out), "seeds": list(seeds)}) if as_json else out)
