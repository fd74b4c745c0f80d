"""`galip-edge train-clip`: a CLIP of one's own, for data that needs none that exists."""

from __future__ import annotations

import logging

import click

from galip_edge.commands.options import device_setting_option, settings_option, with_device
from galip_edge.training.contrastive import load_contrastive_config, train_clip


@click.command("train-clip")
@click.argument("config")
@settings_option
@device_setting_option
def command(config: str, assignments: tuple[str, ...], device: str | None) -> None:
    """Train a CLIP contrastively as CONFIG says, or resume; its weights then serve `train`.

    CONFIG is a TOML file, or the name of a configuration that comes with the package: aviary.
    """
    resolved = load_contrastive_config(config, with_device(assignments, device))
    logging.getLogger("galip_edge").setLevel(logging.INFO)
    click.echo(train_clip(resolved))
