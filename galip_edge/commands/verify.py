"""`galip-edge verify`: is this bundle whole, and does it run here?"""

from __future__ import annotations

from pathlib import Path

import click

from galip_edge.commands.console import console
from galip_edge.commands.options import existing_path
from runtime.bundle import read_manifest, verify_files
from runtime.pipeline import Pipeline, PipelineOptions


@click.command("verify")
@click.argument("bundle", type=existing_path)
def command(bundle: Path) -> None:
    """Check every hash, load the bundle and generate one image with it."""
    manifest = read_manifest(bundle)
    with console().status("verifying"):
        verify_files(bundle, manifest)
        click.echo(f"hashes      ok, {len(manifest.files)} files")
        pipeline = Pipeline.from_bundle(bundle, PipelineOptions(cache=False))
        click.echo("loading     ok")
        image = pipeline.generate("a bird on a branch")[0]
    click.echo(f"inference   ok, {image.shape[1]} x {image.shape[0]} pixels")
