"""`galip-edge export-checkpoint`: the model of a run, for publication."""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch

from galip_edge.checkpoints.format import load_checkpoint, save_checkpoint, save_sharded_checkpoint
from galip_edge.commands.options import existing_path, integer_option, json_option, output_argument
from galip_edge.errors import CheckpointError
from galip_edge.training.heads import export_heads


@click.command("export-checkpoint")
@click.argument("source", type=existing_path)
@output_argument("OUTPUT", "File to write (.safetensors), or with --file-size a folder.")
@click.option("--half", is_flag=True, help="Store float16: half the size.")
@integer_option(
    "--file-size",
    least=1,
    help="Split into files of at most this many MiB; OUTPUT is then a folder.",
    metavar="MIB",
)
@click.option(
    "--discriminator/--no-discriminator",
    default=True,
    show_default=True,
    help="Needed to continue training, not to convert.",
)
@json_option
def command(
    source: Path,
    out: Path,
    half: bool,
    file_size: int | None,
    discriminator: bool,
    as_json: bool,
) -> None:
    """Write the model of SOURCE, a checkpoint or the folder of a training run, to OUTPUT.

    OUTPUT is a .safetensors file, or with --file-size a folder, whose
    model.safetensors.index.json other commands accept as a checkpoint. A run's averaged weights are
    exported and, into a folder, also the heads of its projected discriminator: training with
    start=OUTPUT/model.safetensors.index.json continues from both.

    \b
    Example:
      galip-edge export-checkpoint runs/own -o own-half.safetensors --half
    """
    run = source if source.is_dir() else None
    loaded = load_checkpoint(source / "model.safetensors" if run else source)
    if discriminator and not loaded.has_discriminator:
        raise CheckpointError(f"{source} has no discriminator: add --no-discriminator")
    dtype = torch.float16 if half else torch.float32
    if file_size is None:
        if out.suffix != ".safetensors":
            raise click.UsageError("OUTPUT must end in .safetensors, unless --file-size is given")
        save_checkpoint(loaded.model, out, discriminator=discriminator, dtype=dtype)
        written = out
    else:
        written = save_sharded_checkpoint(
            loaded.model, out, file_size * 2**20, discriminator=discriminator, dtype=dtype
        )
        if run and discriminator:
            export_heads(run, out, dtype)
    if as_json:
        click.echo(json.dumps({"checkpoint": str(written)}))
    else:
        click.echo(written)
