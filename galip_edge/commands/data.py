"""`galip-edge data`: validate training data, or draw images."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import click

from galip_edge import extensions
from galip_edge.commands.console import counting_progress
from galip_edge.commands.options import existing_path, integer_option, json_option, settings_option
from galip_edge.data import Report, check
from galip_edge.data.icons import export_icons
from galip_edge.training.config import load_config
from galip_edge.variables import name_variables


class _Group(click.Group):
    """The commands of this module, and `draw` where the installation has the aviary."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *(["draw"] if extensions.installed("aviary") else [])]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "draw" and extensions.installed("aviary"):
            draw: click.Command = importlib.import_module("galip_edge.aviary.commands.draw").command
            name_variables(draw, "data", "draw")
            return draw
        return super().get_command(ctx, cmd_name)


@click.group("data", cls=_Group)
def command() -> None:
    """Validate training data, or draw images with captions."""


@command.command("check")
@click.argument("config")
@settings_option
@integer_option("--limit", least=1, help="Images to check; default: all.")
@json_option
def check_command(
    config: str, assignments: tuple[str, ...], limit: int | None, as_json: bool
) -> None:
    """Read every training image and caption of CONFIG, a configuration as for train.

    Exit with 1 if there are no valid images, or any problem.

    \b
    Example:
      galip-edge data check own --set data.root=photos
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


@command.command("icons")
@click.argument("packages", nargs=-1, required=True, type=existing_path)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="New folder.")
@integer_option("--size", least=1, most=2048, default=64, help="Side of the images in pixels.")
@click.option(
    "--category",
    "categories",
    multiple=True,
    help="Only icons of this category, such as 'Food & Drink'; repeatable.",
)
@click.option(
    "--keywords",
    type=existing_path,
    help="Folder of the npm package emojibase-data, whose keywords are added to captions.",
)
def icons_command(
    packages: tuple[Path, ...],
    out: Path,
    size: int,
    categories: tuple[str, ...],
    keywords: Path | None,
) -> None:
    """Draw icon sets as a folder of captioned images, for data of kind "folder".

    PACKAGES are folders of npm packages in Iconify's format, such as
    node_modules/@iconify-json/noto. Captions are the icons' names, the title of the set, and
    keywords. OUT/SOURCES.md lists the sets and their licences.

    \b
    Example:
      galip-edge data icons node_modules/@iconify-json/noto -o data/noto
    """
    with counting_progress() as progress:
        task = progress.add_task("drawing", total=None)
        count = export_icons(
            packages,
            out,
            size=size,
            categories=categories,
            keywords=keywords,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    click.echo(f"{count:,} images in {out}")


def _lines(report: Report) -> list[str]:
    lines = [
        f"{report.kind}, {report.split}: {report.images:,} images, {report.captions:,} captions, "
        f"{report.distinct_captions:,} distinct"
    ]
    for name in ("captions_per_image", "width", "height"):
        if spread := getattr(report, name):
            words = name.replace("_", " ")
            lines.append(f"{words}: {spread.minimum} to {spread.maximum}, median {spread.median}")
    if report.enlarged:
        lines.append(f"{report.enlarged:,} images are below the training size, and are enlarged")
    lines += [f"  {key}: {caption}" for key, caption in report.samples]
    lines.append(f"problems: {report.problems}" if report.problems.total else "no problems")
    return lines
