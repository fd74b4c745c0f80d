"""`galip-edge data`: validate training data; draw icon sets and the demo data set."""

from __future__ import annotations

import json
from pathlib import Path

import click

from galip_edge.commands.console import counting_progress
from galip_edge.commands.options import existing_path, json_option, settings_option
from galip_edge.data import DataConfig, Report, check
from galip_edge.data.aviary import draw_ahead
from galip_edge.data.icons import export_icons
from galip_edge.training.config import load_config
from runtime.cpu import available_cores


@click.group("data")
def command() -> None:
    """Validate training data, or draw it: icon sets, or the demo data set."""


@command.command("check")
@click.argument("config")
@settings_option
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


@command.command("icons")
@click.argument("packages", nargs=-1, required=True, type=existing_path)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="New folder.")
@click.option(
    "--size",
    type=click.IntRange(1, 2048),
    default=64,
    show_default=True,
    help="Side of the images in pixels.",
)
@click.option(
    "--category",
    "categories",
    multiple=True,
    help="Only icons of this category, such as 'Food & Drink'; may be repeated.",
)
@click.option(
    "--keywords",
    type=existing_path,
    help="Folder of the npm package emojibase-data: adds its keywords to the captions.",
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
        lines.append(f"{report.enlarged:,} images are smaller than training wants and are enlarged")
    lines += [f"  {key}: {caption}" for key, caption in report.samples]
    lines.append(f"problems: {report.problems}" if report.problems.total else "no problems")
    return lines


@command.command("draw")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--samples", type=click.IntRange(min=1), default=20_000, show_default=True)
@click.option("--size", type=click.IntRange(min=16), default=128, show_default=True)
@click.option("--captions", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--variety", type=click.Choice(["wide", "narrow"]), default="wide", show_default=True)
@click.option("--split", type=click.Choice(["train", "test"]), default="train", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--processes", type=click.IntRange(min=1), default=None, show_default="one per CPU core"
)
@json_option
def draw_command(
    folder: Path,
    samples: int,
    size: int,
    captions: int,
    variety: str,
    split: str,
    seed: int,
    processes: int | None,
    as_json: bool,
) -> None:
    """Draw images of the aviary, with captions, into FOLDER: data of kind `folder`.

    Rerun the same command to resume, or with more --samples to add images.
    """
    config = DataConfig(
        kind="aviary",
        split=split,
        samples=samples,
        variety="wide" if variety == "wide" else "narrow",
        seed=seed,
        image_size=size,
        resize=size,
    )
    with counting_progress() as progress:
        task = progress.add_task("drawing", total=samples)
        drawn = draw_ahead(
            folder,
            config,
            captions,
            processes or available_cores(),
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    if as_json:
        click.echo(json.dumps({"folder": str(folder), "images": samples, "drawn": drawn}))
    else:
        click.echo(f"{folder}: {samples:,} images, {drawn:,} of them drawn now")
