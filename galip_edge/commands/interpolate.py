"""`galip-edge interpolate`: from image to image, as an animation, frames or a grid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from galip_edge.commands._common import GroupedCommand, option_group
from galip_edge.commands.console import counting_progress
from galip_edge.commands.loading import load_pipeline
from galip_edge.commands.options import (
    integer_option,
    json_option,
    model_option,
    overwrite_option,
    pipeline_options,
    refuse_existing,
    signing_options,
    truncation_option,
)
from runtime.animation import ENDINGS, save_animation
from runtime.arrays import Images
from runtime.bundle import Manifest
from runtime.credentials import Signer
from runtime.errors import GalipEdgeError
from runtime.images import ImageMetadata, contact_sheet, save_png
from runtime.latent import (
    Interpolation,
    Keyframe,
    generate_interpolations,
    interpolation_path,
    latent_grid,
)
from runtime.noise import MAX_SEED
from runtime.pipeline import PipelineOptions
from runtime.reproduce import SeriesRecipe


@click.command("interpolate", cls=GroupedCommand)
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@option_group(
    "Images",
    integer_option(
        "--seed",
        "seeds",
        least=0,
        most=MAX_SEED,
        default=(0,),
        multiple=True,
        help="Seed of a keyframe; repeat for more.",
    ),
    truncation_option,
    model_option,
)
@option_group(
    "Path",
    integer_option(
        "--steps", least=1, most=10_000, default=24, help="Steps from each keyframe to the next."
    ),
    click.option("--loop", is_flag=True, help="Return to the first keyframe."),
    click.option(
        "--grid", metavar="ROWSxCOLUMNS", help="Interpolate between four images on a grid (PNG)."
    ),
)
@option_group(
    "Output",
    click.option(
        "-o",
        "--out",
        type=click.Path(path_type=Path),
        default=Path("interpolation.webp"),
        show_default=True,
        help=f"An animation ({', '.join(ENDINGS)}), a strip (.png), or a folder for frames.",
    ),
    click.option(
        "--fps",
        type=click.FloatRange(0.1, 100),
        default=24,
        show_default=True,
        help="Frames per second.",
    ),
    overwrite_option,
    signing_options,
    json_option,
)
@option_group(
    "Execution",
    pipeline_options,
)
def command(
    prompts: tuple[str, ...],
    seeds: tuple[int, ...],
    model: Path | None,
    out: Path,
    steps: int,
    loop: bool,
    fps: float,
    psi: float,
    grid: str | None,
    force: bool,
    options: PipelineOptions,
    as_json: bool,
    signer: Signer | None,
) -> None:
    """Interpolate between images: between prompts, seeds, or both.

    Pass one prompt and many seeds, many prompts and one seed, or equal numbers of both. Keyframes
    equal the images of `galip-edge generate`. `galip-edge info` prints the command that is
    stored in the file.

    \b
    Examples:
      galip-edge interpolate "a red bird" "a blue duck" --seed 3 --seed 8 --loop -o loop.webp
      galip-edge interpolate "a bird" --seed 1 --seed 2 --seed 3 --seed 4 --grid 5x8 -o grid.png
    """
    keyframes = _keyframes(prompts, seeds)
    shape = _shape(grid) if grid else None
    if shape and out.suffix.lower() != ".png":
        out = out.with_suffix(".png")
    _refuse_existing(out, force)
    pipeline = load_pipeline(model, options)
    if shape:
        blends = None
        total = shape[0] * shape[1]
        frames = latent_grid(pipeline, keyframes, *shape, psi)
    else:
        blends = interpolation_path(keyframes, steps, loop, psi)
        total = len(blends)
        frames = generate_interpolations(pipeline, blends)
    with counting_progress() as progress:
        task = progress.add_task("generating", total=total)

        def counted() -> Iterator[Images]:
            for frame in frames:
                progress.advance(task)
                yield frame

        if out.suffix or blends is None:
            settings: dict[str, Any] = {"psi": psi}
            if grid:
                settings |= {"grid": grid.lower()}
            else:
                settings |= {"steps": steps, "loop": loop, "fps": fps}
            manifest = pipeline.manifest
            identity = manifest.name, manifest.model_hash
            recipe = SeriesRecipe("interpolate", prompts, seeds, *identity, settings)
            _save(counted(), out, shape[1] if shape else total, recipe, signer)
        else:
            _save_frames(counted(), blends, out, pipeline.manifest, signer)
    click.echo(json.dumps({"path": str(out), "images": total}) if as_json else out)


def _keyframes(prompts: tuple[str, ...], seeds: tuple[int, ...]) -> list[Keyframe]:
    count = max(len(prompts), len(seeds))
    if {len(prompts), len(seeds)} - {1, count}:
        raise click.UsageError(
            f"{len(prompts)} prompts and {len(seeds)} seeds: pass one of either, or equal numbers "
            "of both"
        )
    pairs = zip(prompts * (count // len(prompts)), seeds * (count // len(seeds)))
    return [Keyframe(prompt, seed) for prompt, seed in pairs]


def _shape(text: str) -> tuple[int, int]:
    rows, _, columns = text.lower().partition("x")
    if not (rows.isdecimal() and columns.isdecimal()):
        raise click.UsageError(f"--grid is ROWSxCOLUMNS, such as 5x7, got {text!r}")
    return int(rows), int(columns)


def _refuse_existing(out: Path, force: bool) -> None:
    if out.suffix:
        refuse_existing(out, force)
    elif not force and any(out.glob("[0-9]*.png")):
        raise GalipEdgeError(
            f"{out} has frames: choose another --out, or pass --force to replace them"
        )


def _save(
    frames: Iterator[Images],
    out: Path,
    columns: int,
    recipe: SeriesRecipe,
    signer: Signer | None,
) -> None:
    ending = out.suffix.lower()
    if ending in ENDINGS:
        save_animation(frames, out, recipe.options["fps"], recipe=recipe, signer=signer)
    elif ending == ".png":
        save_png(contact_sheet(list(frames), columns), out, recipe, signer)
    else:
        raise click.UsageError(f"--out ends in {', '.join(ENDINGS)} or .png, or is a folder: {out}")


def _save_frames(
    frames: Iterator[Images],
    blends: list[Interpolation],
    folder: Path,
    manifest: Manifest,
    signer: Signer | None,
) -> None:
    for old in folder.glob("[0-9]*.png"):  # with --force
        old.unlink()
    for index, (frame, blend) in enumerate(zip(frames, blends)):
        metadata = ImageMetadata.of_interpolation(blend, manifest.name, manifest.model_hash)
        save_png(frame, folder / f"{index:05d}.png", metadata, signer)
