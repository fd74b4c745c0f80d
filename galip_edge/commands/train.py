"""`galip-edge train`: start or resume a training run."""

from __future__ import annotations

import logging
import os

import click

from galip_edge.commands.options import (
    device_setting_option,
    output_setting_option,
    require_config,
    settings_option,
    with_settings,
)


@click.command("train")
@click.argument("config")
@settings_option
@device_setting_option
@output_setting_option
@click.option(
    "--dry-run", is_flag=True, help="Show the resolved settings and the planned run, then exit."
)
def command(
    config: str,
    assignments: tuple[str, ...],
    device: str | None,
    output: str | None,
    dry_run: bool,
) -> None:
    """Train a model as configured by CONFIG, or resume the run if its folder holds checkpoints.

    CONFIG is a TOML file, or the name of a configuration in the package, such as cub or coco.
    Under torchrun, each batch is divided among the processes. Ctrl-C saves a checkpoint and ends
    the run.

    \b
    Examples:
      galip-edge train own --set data.root=photos -o runs/photos
      torchrun --nproc-per-node 8 --no-python galip-edge train coco --set data.root=/data/coco
    """
    assignments = with_settings(assignments, device=device, output=output)
    require_config(config, assignments)
    from galip_edge.training.config import load_config
    from galip_edge.training.run import describe, train

    resolved = load_config(config, assignments)
    if dry_run:
        click.echo(describe(resolved))
        return
    logging.getLogger("galip_edge").setLevel(logging.INFO)
    result = train(resolved)
    if os.environ.get("RANK", "0") == "0":  # torchrun starts several processes
        click.echo(result.model)
