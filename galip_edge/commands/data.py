"""`galip-edge data check`: what is broken, before days of training are spent."""

from __future__ import annotations

import json

import click

from galip_edge.commands.console import counting_progress
from galip_edge.commands.options import json_option
from galip_edge.data import Report, check
from galip_edge.training.config import load_config


@click.group("data")
def command() -> None:
    """Look at training data."""


@command.command("check")
@click.argument("config")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="As in train.")
@click.option("--limit", type=click.IntRange(min=1), help="Images to look at; default: all.")
@json_option
def check_command(
    config: str, assignments: tuple[str, ...], limit: int | None, as_json: bool
) -> None:
    """Read every image and caption that CONFIG, as for train, would train on.

    Exits with 1 if nothing can be trained on or anything is broken.
    """
    settings = load_config(config, assignments).data
    with counting_progress() as progress:
        task = progress.add_task("checking", total=None)
        report = check(
            settings,
            lambda done, total: progress.update(task, completed=done, total=total),
            limit=limit,
        )
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=1))
    else:
        for line in _lines(report):
            click.echo(line)
    if not report.ok:
        raise click.exceptions.Exit(1)


def _lines(report: Report) -> list[str]:
    lines = [
        f"{report.kind}, {report.split}: {report.images:,} images, {report.captions:,} captions"
    ]
    for name in ("captions_per_image", "width", "height"):
        if spread := getattr(report, name):
            words = name.replace("_", " ")
            lines.append(f"{words}: {spread.minimum} to {spread.maximum}, median {spread.median}")
    if report.enlarged:
        lines.append(f"{report.enlarged:,} images are smaller than training wants and are enlarged")
    lines += [f"  {key}: {caption}" for key, caption in report.samples]
    lines.append(f"problems: {report.problems}" if report.problems.total else "no problems")
    return lines
