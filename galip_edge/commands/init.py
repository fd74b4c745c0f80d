"""`galip-edge init`: an untrained checkpoint."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from galip_edge.checkpoint import save_checkpoint
from galip_edge.models import GALIP, PRESETS
from runtime.errors import GalipEdgeError


@click.command("init")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="small",
    show_default=True,
    help="Model dimensions; cub, coco and cc12m are the published ones.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Picks the weights.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
def command(checkpoint: Path, preset: str, seed: int, force: bool) -> None:
    """Write an untrained checkpoint; its pictures are noise, its speed is real."""
    if checkpoint.suffix != ".safetensors":
        raise GalipEdgeError(f"a checkpoint's name ends in .safetensors, got {checkpoint.name}")
    if checkpoint.exists() and not force:
        raise GalipEdgeError(f"{checkpoint} exists: choose another name or give --force")
    torch.manual_seed(seed)
    save_checkpoint(GALIP(PRESETS[preset]), checkpoint)
    click.echo(checkpoint)
