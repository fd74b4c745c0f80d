"""`galip-edge export-ovms`: a bundle for OpenVINO Model Server."""

from __future__ import annotations

from pathlib import Path

import click

from galip_edge.commands.console import console
from galip_edge.commands.options import bundle_path, one_output
from runtime.ovms import export_model_server


@click.command("export-ovms")
@click.argument("bundle", type=bundle_path)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder of the repository.")
@click.option("--force", is_flag=True, help="Replace an existing repository.")
@click.option(
    "--vnni/--no-vnni",
    default=True,
    show_default=True,
    help="Whether the server's CPU has VNNI (since 2019); INT8 weights would overflow without.",
)
def command(bundle: Path, folder: Path | None, out: Path | None, force: bool, vnni: bool) -> None:
    """Write BUNDLE as a model repository of OpenVINO Model Server to FOLDER.

    Text encoder and generator become one model: tokens (1,77) and noise (1,Z) to an image
    (1,H,W,3). `runtime.Tokenizer` and `runtime.draw_noise` make what a request holds.
    """
    folder = one_output(folder, out)
    with console().status("exporting"):
        export_model_server(bundle, folder, force, vnni)
    click.echo(folder)
