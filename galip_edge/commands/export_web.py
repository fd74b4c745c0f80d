"""`galip-edge export-web`: a bundle as a static page that generates in the browser."""

from __future__ import annotations

from pathlib import Path

import click

from convert.web import export_web
from galip_edge.commands.console import console
from galip_edge.commands.options import bundle_path, output_argument


@click.command("export-web")
@click.argument("bundle", type=bundle_path)
@output_argument("FOLDER", "Folder of the page.")
@click.option("--force", is_flag=True, help="Replace an existing export.")
def command(bundle: Path, out: Path, force: bool) -> None:
    """Write BUNDLE to FOLDER as static files that generate in the browser.

    The page is the studio of `galip-edge serve`. Any web server can serve FOLDER, under any path;
    nothing leaves the browser, and after the first visit the page works offline. An fp16 bundle
    generates the images of float32; an INT8 bundle is half the download, at the same speed.

    \b
    Example:
      galip-edge export-web galip-coco -o site
      python -m http.server --directory site
    """
    with console().status("exporting"):
        export_web(bundle, out, force)
    click.echo(out)
