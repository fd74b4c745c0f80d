"""`galip-edge data draw`: draw images of the aviary ahead of training."""

from __future__ import annotations

import json
from pathlib import Path

import click

from galip_edge.aviary.data import AviaryConfig, draw_ahead
from galip_edge.commands.console import counting_progress
from galip_edge.commands.options import integer_option, json_option, output_argument
from runtime.cpu import available_cores


@click.command("draw")
@output_argument("FOLDER", "Folder of the images.", file_okay=False)
@integer_option("--samples", least=1, default=20_000, help="Number of images.")
@integer_option("--size", least=16, default=128, help="Width and height in pixels.")
@integer_option("--captions", least=1, default=4, help="Captions per image.")
@click.option(
    "--variety",
    type=click.Choice(["wide", "narrow"]),
    default="wide",
    show_default=True,
    help="Variation of attributes that a caption does not state.",
)
@click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    default="train",
    show_default=True,
    help="Training or held-out images.",
)
@integer_option("--seed", least=0, default=0, help="Seed of the images.")
@integer_option(
    "--processes", least=1, show_default="one per CPU core", help="Processes that draw in parallel."
)
@json_option
def command(
    out: Path,
    samples: int,
    size: int,
    captions: int,
    variety: str,
    split: str,
    seed: int,
    processes: int | None,
    as_json: bool,
) -> None:
    """Draw images of birds with captions into FOLDER, as data of kind `folder`.

    Rerun the same command to resume, or with a larger --samples to add images.

    \b
    Example:
      galip-edge data draw -o runs/aviary-images --samples 100000
    """
    config = AviaryConfig(
        split=split,
        samples=samples,
        variety="wide" if variety == "wide" else "narrow",
        seed=seed,
        image_size=size,
        resize=size,
    )
    with counting_progress() as progress:
        task = progress.add_task("drawing", total=samples)
        drawn = draw_ahead(
            out,
            config,
            captions,
            processes or available_cores(),
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    if as_json:
        click.echo(json.dumps({"folder": str(out), "images": samples, "drawn": drawn}))
    else:
        click.echo(f"{out}: {samples:,} images, {drawn:,} newly drawn")
