"""`galip-edge train-clip`: contrastive training of a small CLIP."""

from __future__ import annotations

import logging

import click

from galip_edge.commands.options import (
    device_setting_option,
    output_setting_option,
    require_config,
    settings_option,
    with_settings,
)


@click.command("train-clip")
@click.argument("config")
@settings_option
@device_setting_option
@output_setting_option
def command(
    config: str, assignments: tuple[str, ...], device: str | None, output: str | None
) -> None:
    """Train a CLIP contrastively as configured by CONFIG, or resume; `train` reads its weights.

    CONFIG is a TOML file, or the name of a configuration in the package, such as own.

    \b
    Example:
      galip-edge train-clip own --set data.root=photos
    """
    assignments = with_settings(assignments, device=device, output=output)
    require_config(config, assignments, "clip")
    from galip_edge.training.contrastive import load_contrastive_config, train_clip

    resolved = load_contrastive_config(config, assignments)
    logging.getLogger("galip_edge").setLevel(logging.INFO)
    click.echo(train_clip(resolved))
