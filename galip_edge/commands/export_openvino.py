"""`galip-edge export-openvino`: a bundle as plain OpenVINO models."""

from __future__ import annotations

from pathlib import Path

import click

from galip_edge.commands.console import console
from galip_edge.commands.options import bundle_path, output_argument, vnni_option
from runtime.openvino_export import export_openvino


@click.command("export-openvino")
@click.argument("bundle", type=bundle_path)
@output_argument("FOLDER", "Folder of the models.")
@click.option("--force", is_flag=True, help="Replace an existing export.")
@vnni_option
@click.option(
    "--tokenizer/--no-tokenizer",
    default=True,
    show_default=True,
    help="Write the tokenizer, too; needs the extra `export`.",
)
def command(bundle: Path, out: Path, force: bool, vnni: bool, tokenizer: bool) -> None:
    """Write BUNDLE to FOLDER as OpenVINO models, for programs in C++ and other languages.

    Three models: tokenizer (text to tokens), text encoder and generator (noise and a sentence
    embedding to an image). examples/cpp uses them.

    \b
    Example:
      galip-edge export-openvino galip-coco -o models
    """
    with console().status("exporting"):
        export_openvino(bundle, out, force, vnni, tokenizer)
    click.echo(out)
