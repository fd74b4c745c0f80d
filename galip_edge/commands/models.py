"""`galip-edge models`: the models available on this machine."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from galip_edge.available import AvailableModel, available_models
from galip_edge.commands.options import json_option


@click.command("models")
@json_option
def command(as_json: bool) -> None:
    """List the embedded model and models pulled from a hub.

    \b
    Example:
      galip-edge models --json
    """
    found = list(available_models())
    if as_json:
        click.echo(json.dumps([_values(model) for model in found], indent=1))
        return
    table = Table("--model", "name", "image", "precision", "size", "hash", box=None)
    for model in found:
        manifest = model.manifest
        table.add_row(
            "(default)" if model.option is None else model.source,
            manifest.name,
            f"{manifest.image_size} px",
            manifest.precision,
            decimal(_size(model)),
            manifest.model_hash[:12],
        )
    Console(highlight=False).print(table, markup=False)


def _size(model: AvailableModel) -> int:
    return sum(entry.size for entry in model.manifest.files.values())


def _values(model: AvailableModel) -> dict[str, object]:
    manifest = model.manifest
    return {
        "name": manifest.name,
        "source": model.source,
        "option": model.option,
        "folder": str(model.folder),
        "model_hash": manifest.model_hash,
        "image_size": manifest.image_size,
        "precision": manifest.precision,
        "bytes": _size(model),
    }
