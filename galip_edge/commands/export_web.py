"""`galip-edge export-web`: a bundle as a static page that generates in the browser."""

from __future__ import annotations

from pathlib import Path

import click

from convert.web import export_web
from galip_edge.commands.console import console
from galip_edge.commands.options import bundle_path


@click.command("export-web")
@click.argument("bundle", type=bundle_path)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace an existing export.")
def command(bundle: Path, folder: Path, force: bool) -> None:
    """Write BUNDLE to FOLDER as static files that generate in the browser.

    Serve FOLDER with any web server, under any path:

    \b
        galip-edge export-web my-bundle site
        python -m http.server --directory site

    An fp16 bundle generates the images of float32; an INT8 bundle is half the download, at the same
    speed.

    The page is the studio of `galip-edge serve`; nothing leaves the browser, and after the first
    visit it works offline.
    """
    with console().status("exporting"):
        export_web(bundle, folder, force)
    click.echo(folder)
