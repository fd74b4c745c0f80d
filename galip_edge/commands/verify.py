"""`galip-edge verify`: completeness, safety and accuracy of a bundle on this machine."""

from __future__ import annotations

from pathlib import Path

import click

from galip_edge.commands.console import console
from galip_edge.commands.options import (
    bundle_path,
    inference_device_option,
    precision_option,
)
from runtime.bundle import default_bundle
from runtime.verification import verify_bundle


@click.command("verify")
@click.argument("bundle", type=bundle_path, required=False)
@precision_option
@inference_device_option
def command(bundle: Path | None, precision: str, device: str) -> None:
    """Check BUNDLE (default: the embedded model) before use.

    Checks hashes and graphs, loads the models in a child process, compares them with the golden
    numbers that PyTorch computed, and generates one image. The cache is not used.

    \b
    Example:
      galip-edge verify galip-coco
    """
    with console().status("verifying"):
        for step in verify_bundle(bundle or default_bundle(), precision, device):
            click.echo(f"{step.name:12}{step.result}")
