"""`galip-edge export-original`: a checkpoint for the authors' code."""

from __future__ import annotations

from pathlib import Path

import click

from galip_edge.commands.console import notice
from galip_edge.commands.options import input_path
from runtime.errors import GalipEdgeError


@click.command("export-original")
@click.argument("checkpoint", type=input_path)
@click.option(
    "-o",
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write (.pth); default: the checkpoint's name with .pth.",
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
def command(checkpoint: Path, out: Path | None, force: bool) -> None:
    """Write CHECKPOINT in the layout of the authors' code: {"model": {netG, netD, netC}}.

    It must have the dimensions of that code (the presets cub, coco and cc12m; other base widths
    and noise lengths), and OpenAI's ViT-B/32. Optimizer states are not written.

    \b
    Example:
      galip-edge export-original runs/cub/model.safetensors -o galip.pth
    """
    path = out or checkpoint.with_suffix(".pth")
    if path.exists() and not force:
        raise GalipEdgeError(f"{path} exists: choose another file with -o, or pass --force")
    from galip_edge.checkpoints.format import load_checkpoint
    from galip_edge.checkpoints.published import save_published

    loaded = load_checkpoint(checkpoint)
    save_published(loaded.model, path, discriminator=loaded.has_discriminator)
    if not loaded.has_discriminator:
        notice("Warning: no discriminator in the checkpoint: netD and netC are empty")
    if loaded.model.config.clip_input != "original":
        notice(
            "Warning: trained with clip_input = 'standard', which the authors' code does not have: "
            "use it to generate, not to continue training"
        )
    click.echo(path)
