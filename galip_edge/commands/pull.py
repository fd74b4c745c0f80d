"""`galip-edge pull`: download a model from a hub."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from galip_edge.commands.console import notice
from galip_edge.hub import HubModel, pull
from runtime.bundle import MANIFEST
from runtime.files import atomic_folder


@click.command("pull")
@click.argument("model", metavar="[hf:]OWNER/NAME[@REVISION]")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Also copy the bundle to this new folder, for a machine without a network.",
)
@click.option("--force", is_flag=True, help="Download cached files again.")
def command(model: str, out: Path | None, force: bool) -> None:
    """Download a model's newest revision, verify it, and print its folder.

    Later runs with `--model hf:OWNER/NAME` use this revision, offline, until the next pull. Files
    are in huggingface_hub's cache (HF_HOME); its token (`hf auth login`, HF_TOKEN) gives access to
    private repositories, and HF_ENDPOINT selects another hub.

    \b
    Example:
      galip-edge pull hf:owner/name@v1 --out bundle
    """
    if out is not None and out.exists():
        raise click.UsageError(f"{out} exists: choose a new folder")
    pulled = pull(HubModel.parse(model), notice, force)
    notice(f"{pulled.model} is at commit {pulled.commit}")
    if out is not None:
        with atomic_folder(out) as folder:
            for name in (MANIFEST, *pulled.manifest.files):
                shutil.copyfile(pulled.folder / name, folder / name)
    click.echo(out or pulled.folder)
