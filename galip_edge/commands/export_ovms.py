"""`galip-edge export-ovms`: a bundle for OpenVINO Model Server."""

from __future__ import annotations

from pathlib import Path

import click

from galip_edge.commands.console import console
from galip_edge.commands.options import bundle_path, output_argument, vnni_option
from runtime.ovms import export_model_server


@click.command("export-ovms")
@click.argument("bundle", type=bundle_path)
@output_argument("FOLDER", "Folder of the repository.")
@click.option("--force", is_flag=True, help="Replace an existing repository.")
@click.option(
    "--text",
    is_flag=True,
    help="Accept text instead of tokens; needs the extra `export`, and the tokenizer extension in "
    "the server (docs/openvino-models.md).",
)
@vnni_option
def command(bundle: Path, out: Path, force: bool, text: bool, vnni: bool) -> None:
    """Write BUNDLE as a model repository of OpenVINO Model Server to FOLDER.

    Text encoder and generator become one model: tokens (1,77), or with --text a string, and noise
    (1,Z) to an image (1,H,W,3). `runtime.Tokenizer` and `runtime.draw_noise` generate the inputs of
    a request.

    \b
    Example:
      galip-edge export-ovms galip-coco -o repository
    """
    with console().status("exporting"):
        export_model_server(bundle, out, force, vnni, text)
    click.echo(out)
