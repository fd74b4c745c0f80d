"""`galip-edge init`: an untrained checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from galip_edge.commands.options import output_argument
from runtime.errors import GalipEdgeError

# The names of galip_edge.models.PRESETS, whose import takes seconds.
PRESET_NAMES = ("cub", "coco", "cc12m", "small", "tiny")


@click.command("init")
@output_argument("CHECKPOINT", "File to write (.safetensors).")
@click.option(
    "--preset",
    type=click.Choice(PRESET_NAMES),
    default="small",
    show_default=True,
    help="Model dimensions; cub, coco and cc12m are the published ones.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the weights.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def command(out: Path, preset: str, seed: int, force: bool) -> None:
    """Write an untrained checkpoint, for tests and latency measurements.

    \b
    Example:
      galip-edge init --preset coco -o untrained.safetensors
    """
    if out.suffix != ".safetensors":
        raise GalipEdgeError(f"a checkpoint's name ends in .safetensors, got {out.name}")
    if out.exists() and not force:
        raise GalipEdgeError(f"{out} exists: choose another name or pass --force")
    import torch

    from galip_edge.checkpoints.format import save_checkpoint
    from galip_edge.models import GALIP, PRESETS

    torch.manual_seed(seed)
    save_checkpoint(GALIP(PRESETS[preset]), out)
    click.echo(out)
